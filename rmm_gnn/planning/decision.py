"""What a plan is: a config for every layer, what it is predicted to cost, and how it is put to use."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import LEAN_SWAPS, convert_to_rmm
from rmm_gnn.diagnostics.storages import tensors_in
from rmm_gnn.diagnostics.table import align, format_bytes
from rmm_gnn.wrapped import class_behind

ModelT = TypeVar("ModelT", bound=Module)


@dataclass(frozen=True)
class PlanRow:
    """One decision.

    Attributes:
        layers: The layers it is for, which read one tensor; or the kind of operator.
        setting: What was decided, such as ``rate=0.2, codec='int2'``.
        saved_bytes: Bytes kept by it.
        noise: Noise to signal it adds, summed over the weights that it reaches; the rows' sum was measured.
    """

    layers: tuple[str, ...]
    setting: str
    saved_bytes: int
    noise: float


@dataclass(frozen=True)
class Plan:
    """A config for every layer of a model, with what it is predicted to cost; made by ``rmm_gnn.plan``.

    Attributes:
        configs: Config of each layer, by qualified name.
        functions: Config of the mode, for products and other operators that the model calls as functions.
        lean: Whether operators other than products are compressed too.
        rows: The decisions.
        other_bytes: Bytes that no decision changes: the bits of ReLU, the loss, operators that are not known.
        stock_bytes: Bytes that the model keeps without a plan.
        num_weights: Number of weights that noise is summed over.
        exact: Weights whose products read the model's input, or dropout of it: exact, and nothing is kept for them.
    """

    configs: dict[str, RMMConfig]
    functions: RMMConfig
    lean: bool
    rows: tuple[PlanRow, ...]
    other_bytes: int
    stock_bytes: int
    num_weights: int
    exact: tuple[str, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward, as ``memory_report`` counts them; measured on a copy when the plan was made."""
        return self.other_bytes + sum(row.saved_bytes for row in self.rows)

    @property
    def noise(self) -> float:
        """Noise to signal of a weight gradient, ``E|G - Y^T X|^2 / |Y^T X|^2``, on average over the weights."""
        return sum(row.noise for row in self.rows) / self.num_weights

    def scaled(self, factor: float) -> Plan:
        """The plan with the noise of every row times ``factor``."""
        return replace(self, rows=tuple(replace(row, noise=factor * row.noise) for row in self.rows))

    def apply(self, model: ModelT) -> ModelT:
        """Convert ``model`` in place and return it; run its forward pass under ``context()``.

        Raises:
            ValueError: If the model does not have the layers of the plan.
        """
        config: dict[str, RMMConfig | None] = {re.escape(name): config for name, config in self.configs.items()}
        if self.lean and any(class_behind(type(module)) in LEAN_SWAPS for module in model.modules()):
            config[".*"] = self.functions
        return convert_to_rmm(model, config, lean=self.lean) if config else model

    def context(self, *inputs: Any) -> AbstractContextManager[Any]:
        """Return what the forward pass runs under: the mode for operators called as functions, or nothing.

        Args:
            *inputs: What the model is given: the tensors among them are ``held``, see ``compress_activations``.

        Raises:
            ValueError: If there is no tensor among them, and the plan keeps nothing for weights that read the inputs.
        """
        if not self.lean:
            return nullcontext()
        held = tuple(tensors_in(*inputs))
        if self.exact and not held:
            raise ValueError(
                f"'inputs' must be the model's inputs, which {', '.join(self.exact)} reads (got no tensor). "
                "Write `with plan.context(x):`."
            )
        return compress_activations(self.functions, held=held)

    def table(self) -> str:
        """Return the decisions, largest first, with predicted bytes and noise, as a person reads them."""
        rows = sorted(self.rows, key=lambda row: -row.saved_bytes)
        cells = [
            [", ".join(row.layers), row.setting, format_bytes(row.saved_bytes), f"{row.noise:.2g}"] for row in rows
        ]
        if self.exact:
            cells.append([", ".join(self.exact), "exact: reads the input", format_bytes(0), "0"])
        cells.append(["(all else)", "", format_bytes(self.other_bytes), "0"])
        share = f"{100 * self.saved_bytes / self.stock_bytes:.2f} % of {format_bytes(self.stock_bytes)}"
        foot = ["total", share, format_bytes(self.saved_bytes), f"{self.noise * self.num_weights:.2g}"]
        return align(["layer", "kept", "bytes", "noise / signal"], cells, foot, right={2, 3})

    def __str__(self) -> str:
        return f"{self.table()}\nnoise to signal of a weight gradient, on average: {self.noise:.3g}"

    def to_json(self) -> str:
        """Return the plan as JSON that ``from_json`` reads."""
        values = asdict(self)  # tuples become lists
        values["configs"] = {name: config.to_dict() for name, config in self.configs.items()}
        values["functions"] = self.functions.to_dict()
        return json.dumps(values, indent=2)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Rebuild the plan that ``to_json`` wrote.

        Raises:
            ValueError: If the text is not such a plan.
        """
        try:
            values = json.loads(text)
            rows = [PlanRow(**(row | {"layers": tuple(row["layers"])})) for row in values.pop("rows")]
            configs = {name: RMMConfig.from_dict(config) for name, config in values.pop("configs").items()}
            functions = RMMConfig.from_dict(values.pop("functions"))
            exact = tuple(values.pop("exact"))
            return Plan(configs=configs, functions=functions, rows=tuple(rows), exact=exact, **values)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"'text' must be a plan written by to_json (got {error!r}). Make it anew with rmm_gnn.plan."
            ) from error
