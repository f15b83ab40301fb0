"""Every argument check of the package and its wording: ``'<arg>' must <rule> (got <value>). <What to do.>``."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def check_choice(name: str, value: Any, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the names in ``known``, else raise an error that lists them."""
    names = sorted(known)
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be a name (got {type(value).__name__}). Choose one of {', '.join(names)}.")
    if value not in names:
        raise ValueError(f"'{name}' must be a known name (got {value!r}). Choose one of {', '.join(names)}.")
    return value


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return torch.inf if value > 0 else -torch.inf


def check_rate(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a share in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__}). Give the share of rows to keep.")
    if not 0.0 < _as_float(value) <= 1.0:
        raise ValueError(f"'{name}' must lie in (0, 1] (got {value}). It is the share of rows to keep, 0.1 for 10 %.")
    return float(value)


def check_share(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a probability weight in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__}). Give a share, such as 0.1.")
    if not 0.0 < _as_float(value) <= 1.0:
        raise ValueError(f"'{name}' must lie in (0, 1] (got {value}). At 0 a row could be lost for good.")
    return float(value)


def check_top_share(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a share in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__}). Give a share, such as 0.5.")
    if not 0.0 <= _as_float(value) < 1.0:
        raise ValueError(f"'{name}' must lie in [0, 1) (got {value}). The other rows need a share of the sketch too.")
    return float(value)


def check_probability(p: Any) -> float:
    """Return ``p`` as a float if it is a number in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(f"'p' must be a number (got {type(p).__name__}). Give the share to drop, such as 0.1.")
    if not 0.0 <= _as_float(p) <= 1.0:
        raise ValueError(f"'p' must lie in [0, 1] (got {p}). It is the share of entries to drop.")
    return float(p)


def check_positive_int(name: str, value: Any, *, optional: bool = False) -> int | None:
    """Return ``value`` as an int if it is a whole number of at least 1 (or None where ``optional``)."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"'{name}' must be a whole number (got {value!r}). Give a count of 1 or more.")
    if int(value) < 1:
        raise ValueError(f"'{name}' must be at least 1 (got {value}). Give a count of 1 or more.")
    return int(value)


def check_pattern(name: str, value: Any, way_out: str, *, keys: bool = False) -> re.Pattern[str]:
    """Return ``value`` compiled if it is a regular expression: the argument, or one of its keys."""
    rule = "have regular expressions as keys" if keys else "be a valid regular expression"
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must {rule} (got {value!r}). {way_out}")
    try:
        return re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"'{name}' must {rule} (got {value!r}: {error}). {way_out}") from error


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"'{name}' must be True or False (got {value!r}). Pass a bool.")
    return value


def check_matrix(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a dense, real floating-point matrix."""
    check_floating(name, value)
    if value.dim() != 2:
        raise ValueError(f"'{name}' must have two dimensions (got shape {tuple(value.shape)}). Flatten it to [B, N].")
    return value


def check_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"'{name}' must be a tensor (got {type(value).__name__}). Convert it with torch.as_tensor.")
    return value


def check_floating(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a dense tensor of a real floating-point type."""
    check_tensor(name, value)
    if value.is_nested:
        raise TypeError(
            f"'{name}' must be a dense tensor (got a nested one). "
            "Keep layers with nested input exact (module_filter_fn of convert_to_rmm), or call .to_padded_tensor(0.0)."
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"'{name}' must be a dense tensor (got layout {value.layout}). "
            "Keep layers with sparse input exact (module_filter_fn of convert_to_rmm), or call .to_dense()."
        )
    if value.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(
            f"'{name}' must be of type float32, float64, bfloat16 or float16 (got {value.dtype}). Call .float() first."
        )
    return value


def check_local(name: str, value: Any) -> None:
    """Check that ``value`` is not spread over the ranks of a job, as tensor parallelism spreads inputs and weights."""
    # By name: to import the class takes a second, and whoever has one has imported it.
    if isinstance(value, Tensor) and type(value).__module__.startswith("torch.distributed.tensor"):
        raise TypeError(
            f"'{name}' must not be spread over ranks (got {type(value).__name__}). Sketches and lean functions do not "
            "go with tensor parallelism: leave such layers out with module_filter_fn of convert_to_rmm."
        )


def check_number(name: str, value: Any) -> None:
    """Check that ``value`` is a real number."""
    if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__}). Give a float.")


def check_lengths(name: str, value: Any) -> list[int]:
    """Return ``value`` as a list if it is a sequence of whole numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"'{name}' must be a sequence of whole numbers (got {value!r}). Write [{value}].")
    return list(value)


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Check that ``tensor`` is on the device of ``like``.

    Kernels on the CPU are given addresses, and a meta tensor has none: torch's own would read what lies elsewhere.
    """
    if tensor.device != like.device:
        raise ValueError(
            f"'{name}' must be on the device of '{like_name}', {like.device} (got {tensor.device}). Move one of them."
        )


def check_companions(x: Any, **companions: Any) -> None:
    """Check that ``x`` is a tensor and that what is computed with it are floating-point ones on its device, or None."""
    check_tensor("x", x)
    for name, tensor in companions.items():
        if tensor is not None:
            check_device(name, check_floating(name, tensor), "x", x)


def check_linear_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check that ``x [*, N]``, ``weight [M, N]`` and ``bias [M]`` fit together: shapes, types and devices."""
    if x.dim() == 0:
        raise ValueError("'x' must have at least one dimension (got a scalar). Give features of shape [*, N].")
    if weight.dim() != 2:
        raise ValueError(
            f"'weight' must have shape [M, N] (got {tuple(weight.shape)}). See torch.nn.functional.linear."
        )
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"'x' must have {weight.shape[1]} features in its last dimension (got {x.shape[-1]}). "
            "They must match weight.shape[1]."
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"'bias' must have shape [{weight.shape[0]}] (got {tuple(bias.shape)}). Give one per output.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise TypeError(
                f"'{name}' must have the type of 'x', {x.dtype} (got {tensor.dtype}). "
                "Convert one of them, or run under torch.autocast."
            )
        check_device(name, tensor, "x", x)


def check_row_norms(row_norms: Any, x: Tensor, family: str, *, reads: bool) -> None:
    """Check that ``row_norms`` [B] has a number for each row of ``x`` [*, N], for a family that reads them."""
    if not reads:
        raise ValueError(
            f"'row_norms' must come with a family that reads them (got {family!r}). "
            "Use sketch='importance_sampling', or leave them out."
        )
    check_floating("row_norms", row_norms)
    num_rows = x.shape[:-1].numel()
    if row_norms.dim() != 1 or row_norms.shape[0] != num_rows:
        raise ValueError(
            f"'row_norms' must have one number for each of the {num_rows} rows of 'x' (got shape "
            f"{tuple(row_norms.shape)}). Leave them out where the rows are not those of the step before."
        )
    check_device("row_norms", row_norms, "x", x)


def check_row_mask(row_mask: Any, x: Tensor, family: str, *, on_a_grid: bool) -> None:
    """Check that ``row_mask`` has a bool for each row of ``x`` [*, N], in the shape of its leading dimensions."""
    check_bool_tensor("row_mask", row_mask)
    check_maskable(family, on_a_grid=on_a_grid)
    if row_mask.shape != x.shape[:-1]:
        raise ValueError(
            f"'row_mask' must have the leading shape of 'x', {tuple(x.shape[:-1])} (got {tuple(row_mask.shape)}). "
            "Reshape it as 'x' is."
        )
    check_device("row_mask", row_mask, "x", x)


def check_maskable(family: str, *, on_a_grid: bool) -> None:
    """Check that a family whose rows are masked does not need them all for a grid."""
    if on_a_grid:
        raise ValueError(
            f"'row_mask' must come with a family that needs no grid of rows (got {family!r}). "
            "Use sketch='count_sketch', or leave the mask out."
        )


def check_bool_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a dense tensor of bools."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"'{name}' must be a dense tensor of bools (got {got}). Compare an attention mask with 1.")
    return value


def check_seed(seed: Any, device: torch.device) -> Tensor:
    """Return ``seed`` as an int64 scalar tensor on ``device``; takes a Python int or such a tensor."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"'seed' must be an int64 scalar tensor (got {seed.dtype} of shape {tuple(seed.shape)}). "
                "Draw one with rmm_gnn.draw_seed."
            )
        if seed.device != device:
            raise ValueError(
                f"'seed' must be on the device of 'x', {device} (got {seed.device}). Draw it with draw_seed(x)."
            )
        return seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            f"'seed' must be an int or an int64 scalar tensor (got {type(seed).__name__}). Use draw_seed(x)."
        )
    if not -(2**63) <= int(seed) < 2**63:
        raise ValueError(f"'seed' must fit in 64 bits (got {seed}). Take it modulo 2**63.")
    return torch.full((), int(seed), dtype=torch.int64, device=device)


def check_anchor(x: Tensor, x_0: Any, weight: Tensor, weight_0: Any, *, any_type: bool) -> None:
    """Check that ``x_0`` has the shape of ``x`` and ``weight_0`` that of ``weight``, on the same device.

    Types must be equal unless ``any_type`` says that autocast converts.
    """
    for name, given, like_name, like in (("x_0", x_0, "x", x), ("weight_0", weight_0, "weight", weight)):
        if given is None and name == "weight_0":
            continue
        check_floating(name, given)
        if given.shape != like.shape:
            raise ValueError(
                f"'{name}' must have the shape of '{like_name}', {tuple(like.shape)} (got {tuple(given.shape)}). "
                "Without an anchor the two may differ: use rmm_linear."
            )
        check_device(name, given, like_name, like)
        if given.dtype != like.dtype and (not any_type or torch.float64 in (given.dtype, like.dtype)):
            raise TypeError(
                f"'{name}' must have the type of '{like_name}', {like.dtype} (got {given.dtype}). "
                "Convert one of them, or run under torch.autocast."
            )
