"""RMMConfig: everything that decides what is kept between forward and backward, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch

from rmm_gnn._validation import check_bool, check_positive_int, check_rate
from rmm_gnn.codecs import CODECS, Codec, get_codec
from rmm_gnn.kernels import check_backend
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches import (
    DEFAULT_WORKSPACE_BYTES,
    FAMILIES,
    Sketch,
    from_settings,
    from_spec,
    get_sketch,
)

DEFAULT_RATE = 0.1


@dataclass(frozen=True)
class RMMConfig:
    """How the input X [B, N] of a linear layer, and what other operators need, is kept between forward and backward.

    Args:
        rate: Share of the B rows to keep, k = round(rate B), in (0, 1]; 0.1 where neither this nor ``size`` is given.
        size: Number of rows to keep instead of a share.
        min_size: Keep at least so many rows, or all where there are fewer.
        max_size: Keep at most so many rows.
        sketch: Name of a sketch family, or a configured one such as ``SORSSketch(transform="dct")``.
        center: Subtract the column means before sketching and add their exact rank-one term in backward.
        codec: How the sketch is stored: "fp32" keeps the type of the input, "bf16" and "fp16" round it, "int8", "int4",
            "int2" and "int1" round it at random without bias (``StochasticCodec``; settings as
            "int4:group_size=64").  The rows of a sketch are larger than those of x by about rate^-1/2, so float16
            overflows that much earlier.
        workspace_bytes: Bound on transient memory in forward and in backward; the families' docstrings list exceptions.
        backend: "auto", "torch", "native" (for ``count_sketch``, the codecs of few bits, ReLU, dropout and batch
            normalisation on the CPU, compiled on installation where there is a C compiler; what "auto" takes there),
            "scatter" (bucket sums of ``count_sketch`` through torch-scatter) or "triton" (for the same and the dense
            families, on a GPU; what "auto" takes there but for the dense families).  What a backend does not have,
            plain torch does; the code of x_0 takes what "auto" takes.
        norm_codec: How lean normalisation keeps its normalised input.
        norm_rate: Share of the rows that lean batch normalisation keeps, as a sketch, in ``norm_codec``; 1 keeps the
            rows themselves.  Layer normalisation keeps them all: its statistics are those of a row.
        act_codec: How lean GELU, SiLU and ELU keep their derivative.
        x0_codec: How ``RMMGCN2Conv`` layers with two weights keep the x_0 they share; "fp32" keeps x_0 itself.
        anchor: Have ``RMMGCN2Conv`` sketch the residual of the least-squares fit of its features on x_0, with the exact
            term of the fit added in backward (``functional.anchored_linear``): less noise for one more N x N matrix a
            layer, which ``saved_bytes`` does not count, and one more sketch.  Other layers and functions ignore it.

    Raises:
        ValueError: If a value is out of range, a name is unknown, both ``rate`` and ``size`` are given, ``min_size``
            exceeds ``max_size``, the family has no implementation on ``backend``, or ``anchor`` is given with a family
            that depends on the data.
        TypeError: If a value is of the wrong type.
        ImportError: If what ``backend`` needs is not installed.

    Example:
        >>> config = RMMConfig(rate=0.1, sketch="count_sketch")
        >>> config.sketch_size(1000), config.saved_bytes(1000, 64, torch.float32)
        (100, 25864)
    """

    rate: float | None = None
    size: int | None = None
    min_size: int | None = None
    max_size: int | None = None
    sketch: str | Sketch = "count_sketch"
    center: bool = True
    codec: str | Codec = "fp32"
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    backend: str = "auto"
    norm_codec: str | Codec = "int2"
    norm_rate: float = 1.0
    act_codec: str | Codec = "int4"
    x0_codec: str | Codec = "fp32"
    anchor: bool = False
    # What ``spec`` returns; ClassVar keeps it from being a setting.
    _spec: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.rate is not None and self.size is not None:
            raise ValueError(
                f"'rate' must be left out where 'size' is given (got rate={self.rate}, size={self.size}). "
                "Give one of them; in dataclasses.replace, set the other to None."
            )
        if self.size is None:
            rate = DEFAULT_RATE if self.rate is None else self.rate
            object.__setattr__(self, "rate", check_rate("rate", rate))
        for name in ("size", "min_size", "max_size"):
            object.__setattr__(self, name, check_positive_int(name, getattr(self, name), optional=True))
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(
                f"'min_size' must not exceed 'max_size' (got {self.min_size} and {self.max_size}). Swap them."
            )
        object.__setattr__(self, "norm_rate", check_rate("norm_rate", self.norm_rate))
        object.__setattr__(self, "sketch", get_sketch(self.sketch))
        check_bool("center", self.center)
        for name in ("codec", "norm_codec", "act_codec", "x0_codec"):
            object.__setattr__(self, name, _registered_spec(name, getattr(self, name)))
        object.__setattr__(self, "workspace_bytes", check_positive_int("workspace_bytes", self.workspace_bytes))
        check_backend(self.backend)
        if self.backend not in ("auto", "torch", *self.family.backends):
            raise ValueError(
                f"'backend' must be one that computes {self.family.name!r} (got {self.backend!r}). Use backend='auto'."
            )
        if check_bool("anchor", self.anchor):
            self.check_anchor()
        # Spelled out once, here: a traced forward only reads it, since torch.compile cannot trace the json encoder.
        settings = {"sketch": self.family.spec, **{name: getattr(self, name) for name in _LINEAR_FIELDS}}
        object.__setattr__(self, "_spec", json.dumps(settings))

    @property
    def family(self) -> Sketch:
        """The configured sketch family."""
        assert isinstance(self.sketch, Sketch)
        return self.sketch

    def sketch_size(self, num_rows: int) -> int:
        """Return k for B = ``num_rows``: the rate's or the given size, inside [min_size, max_size] and [1, B].

        A family that does not have every size takes the nearest one below.
        """
        size = self.size if self.size is not None else round(self.rate * num_rows)  # type: ignore[operator]
        if self.min_size is not None:
            size = torch.sym_max(size, self.min_size)
        if self.max_size is not None:
            size = torch.sym_min(size, self.max_size)
        return self.family.admissible_size(num_rows, torch.sym_max(1, torch.sym_min(size, num_rows)))

    def saved_bytes(self, num_rows: int, num_columns: int, dtype: torch.dtype = torch.float32) -> int:
        """Return the bytes kept for an input [num_rows, num_columns]: sketch + means + state of the family + seed.

        For a family that reads the shape of x, ask the config that ``for_shape`` returns.
        The layer's own weight, kept for the exact gradient of x as in torch, is not counted.
        """
        size = self.sketch_size(num_rows)
        total = get_codec(self.codec).num_bytes(size, num_columns, dtype)
        if self.center:
            total += num_columns * accumulation_dtype(dtype).itemsize
        for tensor in self.family.empty_state(num_rows, size, dtype, torch.device("meta")):
            total += tensor.numel() * tensor.element_size()
        return total + torch.int64.itemsize

    def for_shape(self, leading_shape: Sequence[int]) -> RMMConfig:
        """Return this config for an x with these dimensions before the last; itself unless the family reads them."""
        return _for_shape(self, tuple(leading_shape)) if self.family.reads_shape else self

    def check_anchor(self) -> None:
        """Check that the family can sketch a residual of which there is no copy.

        Raises:
            ValueError: If what it draws depends on the data.
        """
        if self.family.depends_on_data:
            raise ValueError(
                "'sketch' must be a family that does not depend on the data where it is anchored "
                f"(got {self.family.name!r}). Use 'count_sketch', or anchor=False."
            )

    @property
    def spec(self) -> str:
        """What linear layers go by, as the string that their operators take and ``from_spec`` turns back."""
        return self._spec

    @staticmethod
    def from_spec(spec: str) -> RMMConfig:
        """Rebuild the config behind ``spec``; settings of other operators have their defaults."""
        config = _from_spec(spec)
        if FAMILIES.get(config.family.name) is not type(config.family):  # defined anew since
            _from_spec.cache_clear()
            config = _from_spec(spec)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for records."""
        return {"sketch": self.family.to_dict(), **{name: getattr(self, name) for name in _PLAIN_FIELDS}}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> RMMConfig:
        """Rebuild the config that ``to_dict`` gave, from a record for instance.

        Raises:
            ValueError: If a setting is missing, unknown or out of range.
            TypeError: If ``settings`` is no mapping, or a setting is of the wrong type.
        """
        if not isinstance(settings, Mapping):
            raise TypeError(
                f"'settings' must be what to_dict gave (got {type(settings).__name__}). Give a dictionary of settings."
            )
        settings = {"norm_rate": 1.0, "anchor": False, **settings}  # older records lack them
        given, known = set(settings), {"sketch", *_PLAIN_FIELDS}
        if given != known:
            wrong = f"without {sorted(known - given)}" if known - given else f"with {sorted(map(repr, given - known))}"
            raise ValueError(f"'settings' must be what to_dict gave (got one {wrong}). Take them from a record.")
        plain = {name: settings[name] for name in _PLAIN_FIELDS}
        return RMMConfig(sketch=from_settings(settings["sketch"]), **plain)

    def extra_repr(self) -> str:
        """Return what a layer prints of it: the rate or size, then the settings that are not the defaults."""
        shown = [f"size={self.size}" if self.size is not None else f"rate={self.rate:g}"]
        default = RMMConfig()
        if self.family != default.family:
            plain = self.family == get_sketch(self.family.name)
            shown.append(f"sketch={self.family.name!r}" if plain else f"sketch={self.family!r}")
        for name in _PLAIN_FIELDS:
            value = getattr(self, name)
            if name not in ("rate", "size") and value != getattr(default, name):
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


_PLAIN_FIELDS = tuple(field.name for field in fields(RMMConfig) if field.name != "sketch")
_OTHER_OPERATORS = ("norm_codec", "norm_rate", "act_codec", "x0_codec", "anchor")
_LINEAR_FIELDS = tuple(name for name in _PLAIN_FIELDS if name not in _OTHER_OPERATORS)


@lru_cache(maxsize=256)
def _for_shape(config: RMMConfig, leading_shape: tuple[int, ...]) -> RMMConfig:
    return replace(config, sketch=config.family.for_shape(leading_shape))


@lru_cache(maxsize=256)
def _from_spec(spec: str) -> RMMConfig:
    settings = json.loads(spec)
    return RMMConfig(sketch=from_spec(settings.pop("sketch")), **settings)


def _registered_spec(name: str, given: str | Codec) -> str:
    codec = get_codec(given, name)
    # Only the spec travels to the operators; it has to lead back to the same codec.
    if codec.name not in CODECS or get_codec(codec.spec) != codec:
        raise ValueError(
            f"'{name}' must be a registered codec (got {codec!r}). Add it to rmm_gnn.codecs.CODECS under its name."
        )
    return codec.spec


def resolve_config(
    config: RMMConfig | None,
    *,
    rate: float | None = None,
    sketch: str | Sketch | None = None,
    positional: object = None,
) -> RMMConfig:
    """Return ``config``, or one made of ``rate`` and ``sketch``: what the layers' keyword arguments mean.

    ``positional`` is the layer's last positional argument, where a config ends up that was given without its keyword.

    Raises:
        ValueError: If ``config`` is given together with ``rate`` or ``sketch``.
        TypeError: If ``config`` is not an ``RMMConfig``, or was given by position.
    """
    if isinstance(positional, RMMConfig):
        raise TypeError("'config' must be given by keyword (got it by position). Write config=RMMConfig(...).")
    if config is None:
        return RMMConfig(rate=rate, sketch="count_sketch" if sketch is None else sketch)
    if not isinstance(config, RMMConfig):
        raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
    if rate is not None or sketch is not None:
        raise ValueError(
            f"'config' must be given alone (got rate={rate}, sketch={sketch!r} beside it). Put them into the config."
        )
    return config
