"""The arguments of ``apply_rmm`` as a dataclass, for ``HfArgumentParser`` beside ``TrainingArguments``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch.nn import Module

from rmm_gnn.hf.apply import apply_rmm
from rmm_gnn.hf.targets import ALL_LINEAR

ModelT = TypeVar("ModelT", bound=Module)


@dataclass
class RMMArguments:
    """What a command line or a JSON file says of sketches; ``HfArgumentParser((TrainingArguments, RMMArguments))``.

    Without ``rmm_config`` nothing is converted.  Strings that hold a JSON list are read as one.

    Args:
        rmm_config: Settings as JSON, ``'{"rate": 0.1}'``, or the path of a file with them; see ``read_config``.
        rmm_target_modules: Which layers; see ``apply_rmm``.
        rmm_exclude: Which layers not.
        rmm_whole_block: Also convert normalisation, dropout and activations.
        rmm_share: Whether layers that read one tensor keep one sketch of it.
        rmm_row_mask: Whether to sketch no padding.

    Example:
        >>> arguments = RMMArguments(rmm_config='{"rate": 0.1}', rmm_exclude='["1"]')
        >>> arguments.apply(Module())  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ValueError: 'model' must have a linear layer to convert (got 0 candidates, none selected).
    """

    rmm_config: str | None = field(
        default=None, metadata={"help": "Settings of the sketches: JSON such as '{\"rate\": 0.1}', or a file with it."}
    )
    rmm_target_modules: str = field(
        default=ALL_LINEAR,
        metadata={"help": "all-linear, a regular expression for whole names, or a JSON list of ends of names."},
    )
    rmm_exclude: str | None = field(
        default=None, metadata={"help": "What to leave as it is, in the same words; output-head for the classifier."}
    )
    rmm_whole_block: bool = field(
        default=False, metadata={"help": "Also convert normalisation, dropout and activations."}
    )
    rmm_share: bool = field(default=True, metadata={"help": "Let layers that read one tensor keep one sketch of it."})
    rmm_row_mask: bool = field(default=False, metadata={"help": "Sketch no padding; the loss must not read it."})

    def apply(self, model: ModelT) -> ModelT:
        """Convert ``model`` as the arguments say, in place, and return it.

        Raises:
            ValueError: If a list is not valid JSON; and as ``apply_rmm`` does.
        """
        if self.rmm_config is None:
            return model
        return apply_rmm(
            model,
            self.rmm_config,
            _names("rmm_target_modules", self.rmm_target_modules),
            None if self.rmm_exclude is None else _names("rmm_exclude", self.rmm_exclude),
            whole_block=self.rmm_whole_block,
            share=self.rmm_share,
            row_mask=self.rmm_row_mask,
        )


def _names(argument: str, text: str) -> Any:
    if not text.lstrip().startswith('["'):  # no regular expression of use begins so
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"'{argument}' must be a valid JSON list (got {text!r}: {error}). Write '[\"query\", \"value\"]'."
        ) from error
