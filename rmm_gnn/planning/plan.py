"""From a budget of bytes, or of noise, to a config for every layer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn._validation import check_bool, check_rate
from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import LEAN_SWAPS, convert_to_rmm
from rmm_gnn.diagnostics.storages import tensors_in
from rmm_gnn.diagnostics.table import align, format_bytes
from rmm_gnn.planning.budget import parse_budget
from rmm_gnn.planning.choose import choose
from rmm_gnn.planning.items import OUTSIDE
from rmm_gnn.planning.survey import Survey, Surveyor
from rmm_gnn.sketches.moments import Moments

ModelT = TypeVar("ModelT", bound=Module)
_KINDS = {"norm_codec": "normalisation (functions)", "act_codec": "GELU, SiLU, ELU", "x0_codec": "x_0 of GCN2Conv"}
# A plan whose measured bytes miss the predicted ones is made again with the difference; it settles at once or twice.
_MAX_ATTEMPTS = 5


@dataclass(frozen=True)
class PlanRow:
    """One decision.

    Attributes:
        layers: The layers it is for, which read one tensor; or the kind of operator.
        setting: What was decided, such as ``rate=0.2, codec='int2'``.
        saved_bytes: Bytes kept by it.
        noise: Noise to signal it adds, summed over the weights that it reaches.
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
        """Noise to signal of a weight gradient, E|G - Y^T X|^2 / |Y^T X|^2, on average over the weights."""
        return sum(row.noise for row in self.rows) / self.num_weights

    def apply(self, model: ModelT) -> ModelT:
        """Convert ``model`` in place and return it; run its forward pass under ``context()``.

        Raises:
            ValueError: If the model does not have the layers of the plan.
        """
        config: dict[str, RMMConfig | None] = {re.escape(name): config for name, config in self.configs.items()}
        if self.lean and any(type(module) in LEAN_SWAPS for module in model.modules()):
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
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"'text' must be a plan written by to_json (got {error!r}). Make it anew with rmm_gnn.plan."
            ) from error


def plan(
    model: Module,
    inputs: Any,
    loss_fn: Callable[[Any], Tensor],
    *,
    budget: int | str | None = None,
    rate: float | None = None,
    noise: float | None = None,
    lean: bool = True,
    config: RMMConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Decide what every layer keeps, so that gradients are least noisy for the bytes, or bytes fewest for the noise.

    A probe step measures the norms of every layer's input and output gradient; from these the noise under every sketch
    size, codec and centring follows in closed form (``rmm_variance``), the rounding of codecs from a sample of sketch
    rows.  The noise of coded normalisation, activations and x_0 is measured by a few more steps, one codec for all
    layers of a kind.  Choices are then made by noise to signal, summed over all weights: what optimisers that scale
    every weight's gradient, such as Adam, are sensitive to.

    The plan is made for the model, the batch and the weights as they are; noise changes over training, so plan again,
    or after some epochs of training, where that matters.  The bytes are counted as ``memory_report`` counts them.

    Args:
        model: The model in training mode; a copy is measured, and it stays as it is.  Layers that keep sketches already
            are planned anew.
        inputs: Arguments of ``forward``: a tuple, or the only one.
        loss_fn: Takes the output and returns the scalar loss.
        budget: Bytes to keep for backward: a number, "2GiB", or "10%" of what the model keeps as it is.
        rate: As many bytes as this rate for all layers, in ``config``'s codecs, would keep.
        noise: Or the noise to signal to accept, on average over the weights; the bytes are then the fewest.
        lean: Compress ReLU, dropout, normalisation and activations too, where they are modules and, under
            ``plan.context()``, where they are functions.  With False, products alone.
        config: The sketch family and the workspace to use; rates and codecs are the plan's.
        progress: Called with a line of text before each step.

    Returns:
        The plan; print it, then ``apply`` it and run the forward pass under ``context()``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If not exactly one of ``budget``, ``rate`` and ``noise`` is given, the budget cannot be met (the
            message has the least that can), the model is in evaluation mode or trains no weight by a product,
            ``config`` is anchored, or the variance of its sketch family does not follow from the moments.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        >>> x = torch.randn(1000, 64)
        >>> made = plan(model, x, lambda out: out.square().mean(), budget="20%")
        >>> made.saved_bytes <= made.stock_bytes / 5
        True
        >>> with made.context(x):
        ...     loss = made.apply(model)(x).square().mean()
    """
    settings = _checked(model, loss_fn, config, lean, budget=budget, rate=rate, noise=noise)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    surveyor = Surveyor(model, arguments, loss_fn, settings, lean)
    if progress is not None:
        surveyor.progress = progress
    survey = surveyor.survey()
    max_bytes = None
    if budget is not None:
        max_bytes = parse_budget(budget, survey.stock_bytes)
    elif rate is not None:
        uniform = replace(settings, rate=rate, size=None)
        mode = compress_activations(uniform, held=surveyor.held) if lean else nullcontext()
        max_bytes = surveyor.bytes_under(lambda model: convert_to_rmm(model, uniform, lean=lean), mode)
    max_noise = None if noise is None else noise * survey.num_weights
    for _ in range(_MAX_ATTEMPTS):
        made = _solve(survey, settings, lean, max_bytes, max_noise)
        surveyor.progress("bytes of the model under the plan")
        missed = surveyor.bytes_under(made.apply, made.context(*surveyor.held)) - made.saved_bytes
        if missed == 0:
            return made
        survey = replace(survey, base_bytes=survey.base_bytes + missed)
    raise RuntimeError("The bytes of this model do not settle: its layers keep more or less from one pass to the next.")


def _solve(survey: Survey, settings: RMMConfig, lean: bool, max_bytes: int | None, max_noise: float | None) -> Plan:
    choices = [item.choices(settings) for item in survey.items]
    costs = [[cost for _, cost in options] for options in choices]
    costs += [list(options.values()) for options in survey.others.values()]
    least = survey.base_bytes + sum(min(options).saved_bytes for options in costs)
    if max_bytes is not None and least > max_bytes:
        raise ValueError(
            f"'budget' must be at least {least} bytes, {format_bytes(least)}, for this model and batch "
            f"(got {max_bytes}). Allow more, or {'use a smaller batch' if lean else 'plan with lean=True'}."
        )
    left = None if max_bytes is None else max_bytes - survey.base_bytes
    chosen = choose(costs, max_bytes=left, max_noise=max_noise)

    codecs: dict[str, Any] = {
        kind: list(options)[index]
        for (kind, options), index in zip(survey.others.items(), chosen[len(choices) :], strict=True)
    }
    common = replace(settings, **codecs)
    configs: dict[str, RMMConfig] = {}
    functions = common
    rows = []
    for item, options, index in zip(survey.items, choices, chosen, strict=False):
        changes, cost = options[index]
        config = replace(common, **changes)
        rows.append(PlanRow(item.modules, item.describe(config), *cost))
        for name in item.modules:
            if name == OUTSIDE:
                functions = config
            else:
                configs[name] = config
    for kind, codec in codecs.items():
        rows.append(PlanRow((_KINDS[kind],), codec, *survey.others[kind][codec]))
    totals = survey.base_bytes, survey.stock_bytes, survey.num_weights
    return Plan(configs, functions, lean, tuple(rows), *totals, survey.exact)


def _checked(
    model: Any, loss_fn: Any, config: RMMConfig | None, lean: Any, **targets: int | str | float | None
) -> RMMConfig:
    if not isinstance(model, Module):
        raise TypeError(f"'model' must be a torch.nn.Module (got {type(model).__name__}). Pass the model itself.")
    if not model.training:
        raise ValueError("'model' must be in training mode (got one in evaluation mode). Call model.train() first.")
    if not callable(loss_fn):
        raise TypeError(f"'loss_fn' must be callable (got {type(loss_fn).__name__}). Take the output, return the loss.")
    check_bool("lean", lean)
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"'budget', 'rate' or 'noise' must be given, one of them (got {given or 'none'}). Choose one.")
    if "rate" in given:
        check_rate("rate", given["rate"])
    noise = given.get("noise", 1.0)
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise TypeError(f"'noise' must be a number (got {type(noise).__name__}). It is noise to signal, such as 0.1.")
    if not noise > 0:
        raise ValueError(f"'noise' must be positive (got {noise}). It is noise to signal, such as 0.1.")
    if config is not None and not isinstance(config, RMMConfig):
        raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig().")
    settings = RMMConfig() if config is None else config
    if settings.anchor:
        raise ValueError(
            "'config' must not be anchored (got anchor=True). A plan does not weigh that: leave it out."
        )
    one = torch.ones((), dtype=torch.float64)
    if settings.family.variance_of_moments(Moments(one, one, one), 2, 1) is None:
        raise ValueError(
            f"'config' must have a family whose variance follows from a, c, d (got {settings.family.name!r}). "
            "Plan with count_sketch, the default."
        )
    return settings
