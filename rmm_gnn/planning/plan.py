"""From a budget of bytes, or of noise, to a config for every layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from rmm_gnn._validation import check_bool, check_rate
from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import convert_to_rmm
from rmm_gnn.diagnostics.table import format_bytes
from rmm_gnn.planning.budget import parse_budget
from rmm_gnn.planning.choose import choose
from rmm_gnn.planning.decision import Plan, PlanRow
from rmm_gnn.planning.items import OUTSIDE
from rmm_gnn.planning.survey import Survey, survey_of
from rmm_gnn.planning.trials import Trials
from rmm_gnn.wrapped import is_wrapped

_KINDS = {"norm_codec": "normalisation (functions)", "act_codec": "GELU, SiLU, ELU", "x0_codec": "x_0 of GCN2Conv"}
# A plan whose measured bytes miss the predicted ones is made again with the difference; it settles at once or twice.
_MAX_ATTEMPTS = 5
# Noise below this, summed over the weights, is not measured: the rounding of what stands for exact would show.
_LEAST_MEASURED = 1e-2
# How often a plan for a level of noise is made again when more is measured.
_MAX_TIGHTENINGS = 4


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

    *Products.*  A probe step measures the norms of every layer's input and output gradient; from these the noise under
    every sketch size, codec and centring follows in closed form (``rmm_variance``), the rounding of codecs from a
    sample of sketch rows.  Layers that read ``inputs``, or dropout of them, are exact and keep nothing new: the tensors
    in ``inputs`` are taken to live on in any case (``held`` of ``compress_activations``).

    *The rest.*  Every normalisation layer gets a codec and a share of rows of its own: its noise in one code is
    measured by one more step, and goes with the variance of what is read back in the others.  Activations, x_0, and
    normalisation that is called as a function, get one codec for all of a kind, measured in INT2 and INT1.

    Choices are made by noise to signal, summed over all weights: what optimisers that scale every weight's gradient,
    such as Adam, are sensitive to.  What was chosen is then measured as a whole, corrected for the normalisation
    layers, chosen again, and the noise that the plan states is the measured one (below 0.01, summed over the weights,
    the predicted one).  A level of noise is aimed at up to four times more where more was measured; compare
    ``Plan.noise``.  In all this takes about 25 steps and one for each normalisation layer, of copies of the model.

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
            message has the least that can), the model is in evaluation mode, distributed already, trains no weight by a
            product, or has one without a gradient, ``config`` is anchored, or the variance of its family does not
            follow from the moments.
        RuntimeError: If the model keeps more or less from one pass to the next.

    Example:
        >>> import torch
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
    trials = Trials(model, arguments, loss_fn, lean, progress or (lambda text: None))
    survey = survey_of(trials, settings)
    max_bytes = None
    if budget is not None:
        max_bytes = parse_budget(budget, survey.stock_bytes)
    elif rate is not None:
        max_bytes = _bytes_of_rate(trials, replace(settings, rate=rate, size=None))
    max_noise = None if noise is None else noise * survey.num_weights

    made, survey = _settle(trials, survey, settings, max_bytes, max_noise)
    of_norms = sum(row.noise for row in made.rows if any(item.modules == row.layers for item in survey.norms))
    if of_norms >= _LEAST_MEASURED:
        survey = survey.with_norms_scaled(trials.noise_of(made, norms_alone=True) / of_norms)
        made, survey = _settle(trials, survey, settings, max_bytes, max_noise)
    factor = _measured_share(trials, made)
    wanted = max_noise
    for _ in range(_MAX_TIGHTENINGS):
        found = factor * made.noise * survey.num_weights
        if wanted is None or max_noise is None or found <= max_noise:
            break
        wanted *= max_noise / found
        made, survey = _settle(trials, survey, settings, max_bytes, wanted)
        factor = _measured_share(trials, made)
    return made.scaled(factor)


def _measured_share(trials: Trials, made: Plan) -> float:
    """The measured noise of a plan over the predicted one."""
    predicted = sum(row.noise for row in made.rows)
    return trials.noise_of(made) / predicted if predicted >= _LEAST_MEASURED else 1.0


def _bytes_of_rate(trials: Trials, uniform: RMMConfig) -> int:
    """What the model keeps with one config for all layers."""
    mode = compress_activations(uniform, held=trials.held) if trials.lean else nullcontext()

    def prepare(model: Module) -> Module:
        return convert_to_rmm(model, uniform, lean=trials.lean) if trials.converts(model) else model

    return trials.bytes_under(prepare, mode)


def _settle(
    trials: Trials, survey: Survey, settings: RMMConfig, max_bytes: int | None, max_noise: float | None
) -> tuple[Plan, Survey]:
    """Choose, count the bytes, and choose again until both agree; returns the survey with what was missed, too."""
    for _ in range(_MAX_ATTEMPTS):
        made = _solve(survey, settings, trials.lean, max_bytes, max_noise)
        trials.progress("bytes of the model under the plan")
        missed = trials.bytes_under(made.apply, made.context(*trials.held)) - made.saved_bytes
        if missed == 0:
            return made, survey
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
    kinds = {type(part) for part in model.modules()}
    distributed = [kind.__name__ for kind in kinds if issubclass(kind, DistributedDataParallel) or is_wrapped(kind)]
    if distributed:
        raise ValueError(
            f"'model' must not be distributed yet (got {min(distributed)}). Plan the plain model on one rank, hand "
            "the plan to the others, apply it, and wrap or shard the model then."
        )
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
        raise ValueError("'config' must not be anchored (got anchor=True). A plan does not weigh that: leave it out.")
    if not settings.family.variance_follows_from_moments:
        raise ValueError(
            f"'config' must have a family whose variance follows from a, c, d (got {settings.family.name!r}). "
            "Plan with count_sketch, the default."
        )
    return settings
