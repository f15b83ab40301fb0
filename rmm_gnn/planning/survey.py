"""What planning has to know of a model: each layer's moments and rounding noise, and the bytes of everything else."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.codecs import get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.control_variates import column_means
from rmm_gnn.convert import LEAN_SWAPS, SWAPS, convert_to_rmm, revert_rmm
from rmm_gnn.diagnostics.memory import saved_entries
from rmm_gnn.diagnostics.products import Product, WatchProducts
from rmm_gnn.diagnostics.report import SavedEntry
from rmm_gnn.diagnostics.variance import rounding_variance
from rmm_gnn.functional._calling import autocast_dtype
from rmm_gnn.planning.choose import Cost
from rmm_gnn.sketches.moments import Moments, moments

LossFn = Callable[[Any], Tensor]
# Where the rounding noise is measured; between these rates it is interpolated.
MEASURED_RATES = (1.0, 0.5, 0.25, 0.1, 0.04, 0.015, 0.005)
RATES = tuple(round(10 ** (-exponent / 20), 4) for exponent in range(53))
LINEAR_CODECS = ("fp32", "int8", "int4", "int2", "int1")
OTHER_CODECS = ("fp32", "int8", "int4", "int2", "int1")
# Operators whose codec is one decision for all of the kind, by the config's setting.
KINDS = {
    "norm_codec": {"rmm_gnn.batch_norm", "rmm_gnn.layer_norm"},
    "act_codec": {"rmm_gnn.activation"},
    "x0_codec": {"rmm_gnn.coded_linear"},
}
# Passes from which the noise of other operators is measured, for each codec.
_NOISE_DRAWS = 3
# Stands for the products of functions that no layer owns: the mode's config is theirs.
OUTSIDE = "(functions)"
# Sketch rows from which the rounding noise is measured; they are exchangeable.
_SAMPLED_ROWS = 2048
# The cheapest setting that is exact but for the order of additions: a signed permutation of the rows.
EXACT = RMMConfig(rate=1.0, center=False)


@dataclass(frozen=True, eq=False)
class LayerNoise:
    """What a product's weight gradient is worth, and its noise by what is kept of X [B, N].

    Attributes:
        name: Of the weight.
        num_rows: B.
        num_columns: N.
        signal: |X^T Y|^2.
        plain: Moments of X and Y.
        centred: The same with X less its column means.
        rounding: Noise of each stochastic codec at each of `MEASURED_RATES`, as S^T X is kept with the better centring.
    """

    name: str
    num_rows: int
    num_columns: int
    signal: float
    plain: Moments
    centred: Moments
    rounding: dict[str, list[float]]

    @property
    def center(self) -> bool:
        """Whether centring lowers the noise of a sketch."""
        return _spread(self.centred) < _spread(self.plain)

    def noise(self, config: RMMConfig) -> float:
        """Noise to signal under ``config``, whose centring is this layer's."""
        m = self.centred if config.center else self.plain
        variance = config.family.variance_of_moments(m, self.num_rows, config.sketch_size(self.num_rows))
        assert variance is not None
        rounding = self._rounding(config.codec, config.rate or 1.0) if config.codec in self.rounding else 0.0
        return (max(0.0, float(variance)) + rounding) / self.signal if self.signal > 0 else 0.0

    def _rounding(self, codec: Any, rate: float) -> float:
        """Interpolate the logarithm over that of the rate; beyond the measured ones, the nearest goes on as 1/rate."""
        noise = self.rounding[codec]
        rate = max(rate, 1 / self.num_rows)
        if rate <= MEASURED_RATES[-1]:
            return noise[-1] * MEASURED_RATES[-1] / rate
        for (high, upper), (low, lower) in itertools.pairwise(zip(MEASURED_RATES, noise, strict=True)):
            if rate >= low:
                if min(upper, lower) <= 0:
                    return max(upper, lower)
                share = math.log(rate / high) / math.log(low / high)
                return math.exp((1 - share) * math.log(upper) + share * math.log(lower))
        raise AssertionError(rate)


@dataclass(frozen=True, eq=False)
class Item:
    """Layers that read one tensor, or cannot be told apart: one config for all of them.

    Attributes:
        modules: Names of the layers; `OUTSIDE` for products outside of layers that can be converted.
        products: The products with their trained weights.
        inputs: How many different tensors they read: each is kept once.
    """

    modules: tuple[str, ...]
    products: tuple[LayerNoise, ...]
    inputs: tuple[tuple[int, int, torch.dtype], ...]

    def choices(self, workspace: RMMConfig) -> list[tuple[RMMConfig, Cost]]:
        """Every config worth considering, and what it costs."""
        center = sum(product.center for product in self.products) * 2 > len(self.products)
        configs = [replace(EXACT, workspace_bytes=workspace.workspace_bytes)]
        configs += [
            replace(workspace, rate=rate, size=None, codec=codec, center=center)
            for codec in LINEAR_CODECS
            for rate in RATES
        ]
        return [(config, self.cost(config)) for config in configs]

    def cost(self, config: RMMConfig) -> Cost:
        saved = sum(config.saved_bytes(*shape) for shape in self.inputs)
        return Cost(saved, sum(product.noise(config) for product in self.products))


@dataclass(frozen=True, eq=False)
class Survey:
    """A model, measured.

    Attributes:
        items: The layers to be decided.
        stock_bytes: What the model keeps as it is.
        base_bytes: What nobody decides.
        others: For each of `KINDS` that the model has, what each codec costs.
        num_weights: How many weights the noise is summed over.
    """

    items: tuple[Item, ...]
    stock_bytes: int
    base_bytes: int
    others: dict[str, dict[str, Cost]]
    num_weights: int


@dataclass
class _Seen:
    """A product as the probe saw it."""

    product: LayerNoise
    reads: int
    shape: tuple[int, int, torch.dtype]


@dataclass
class Surveyor:
    """Measures a copy of the model; the model itself is left as it is."""

    model: Module
    inputs: tuple[Any, ...]
    loss_fn: LossFn
    settings: RMMConfig
    lean: bool
    progress: Callable[[str], None] = field(default=lambda text: None)

    def __post_init__(self) -> None:
        self.model = revert_rmm(copy.deepcopy(self.model))
        with torch.random.fork_rng(), torch.no_grad():
            self.model(*self.inputs)  # fills caches, which are the model's then

    def survey(self) -> Survey:
        """Measure the stock model, then the converted one."""
        self.progress("bytes of the model as it is")
        stock = self.stock_bytes()
        self.progress("noise of every layer")
        items = tuple(_items(self._products(), self._copy(EXACT), shared=self.lean))
        if not items:
            raise ValueError(
                "'model' must have layers to plan (got none that trains a weight by a matrix product). "
                "Put it in training mode, and its weights to requires_grad."
            )
        plain = _with(EXACT, dict.fromkeys(KINDS, "fp32"))
        base = _sum(self._entries(plain)) - sum(item.cost(EXACT).saved_bytes for item in items)
        others = {}
        for kind in KINDS if self.lean else ():
            others[kind] = self._other(kind, plain)
            base -= others[kind]["fp32"].saved_bytes if others[kind] else 0
        return Survey(
            items=items,
            stock_bytes=stock,
            base_bytes=base,
            others={kind: costs for kind, costs in others.items() if costs},
            num_weights=sum(len(item.products) for item in items),
        )

    def stock_bytes(self) -> int:
        """Bytes kept by the model as it is."""
        return _sum(self._recorded(self._copy(None)))

    def bytes_under(self, prepare: Callable[[Module], Module], context: AbstractContextManager[Any]) -> int:
        """Bytes kept by a stock copy of the model after ``prepare``, with its forward pass under ``context``."""
        model = prepare(self._copy(None))
        with context:
            return _sum(self._recorded(model))

    def _mode(self, config: RMMConfig) -> AbstractContextManager[Any]:
        return compress_activations(config) if self.lean else nullcontext()

    def _entries(self, config: RMMConfig) -> tuple[SavedEntry, ...]:
        model = self._copy(config)
        with self._mode(config):
            return self._recorded(model)

    def _recorded(self, model: Module) -> tuple[SavedEntry, ...]:
        with torch.random.fork_rng():
            return saved_entries(model, self.inputs, self.loss_fn)

    def _copy(self, config: RMMConfig | None) -> Module:
        model = copy.deepcopy(self.model)
        swapped = SWAPS | LEAN_SWAPS if self.lean else SWAPS
        if config is None or not any(type(module) in swapped for module in model.modules()):
            return model
        return convert_to_rmm(model, config, lean=self.lean)

    def _gradients(self, config: RMMConfig, seed: int) -> list[Tensor]:
        """Gradients of all trained matrices; configs that round the same kinds see the same dropout."""
        model = self._copy(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with self._mode(config):
                loss = self.loss_fn(model(*self.inputs))
            loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad and p.dim() == 2 and p.grad is not None]

    def _other(self, kind: str, plain: RMMConfig) -> dict[str, Cost]:
        """What one kind of operator costs in every codec; empty where the model has none of the kind."""
        saved = {}
        whole = _sum(self._entries(plain))
        for codec in OTHER_CODECS[1:]:
            self.progress(f"bytes of {kind} {codec}")
            entries = self._entries(_with(plain, {kind: codec}))
            saved[codec] = sum(entry.saved_bytes for entry in entries if entry.operator in KINDS[kind])
            # Uncoded, they may keep what others keep too: what they take is what the model takes more.
            saved["fp32"] = saved[codec] + whole - _sum(entries)
        if not any(saved.values()):
            return {}
        self.progress(f"noise of {kind}")
        return {codec: Cost(saved[codec], noise) for codec, noise in self._noise_of(kind).items()}

    def _noise_of(self, kind: str) -> dict[str, float]:
        """The noise that coding one kind of operator brings into the gradients of all weights, by Monte Carlo.

        INT8 in fp32 scales stands for the exact gradient: it draws the same random numbers, so that dropout is the
        same, and its own noise is 1/7000 of INT2's.  That of INT4 and INT8 follows from INT2's by the steps' ratio.
        """
        others = dict.fromkeys(KINDS, "int8:scale=fp32")
        noise = dict.fromkeys(OTHER_CODECS, 0.0)
        for draw in range(_NOISE_DRAWS):
            exact = self._gradients(_with(EXACT, others), draw)
            for codec in ("int2", "int1"):
                found = self._gradients(_with(EXACT, others | {kind: codec}), draw)
                noise[codec] += sum(map(_relative_error, found, exact)) / _NOISE_DRAWS
        return noise | {"int4": noise["int2"] * (3 / 15) ** 2, "int8": noise["int2"] * (3 / 255) ** 2}

    def _products(self) -> list[_Seen]:
        model = self._copy(EXACT)
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        seen: list[_Seen] = []
        inputs: list[Tensor] = []  # held, so that an id stands for one tensor

        def watch(product: Product) -> None:
            if product.codec is not None:
                return  # x_0, which is decided for all layers together
            name = product.name
            known = next((index for index, x in enumerate(inputs) if x is product.x), len(inputs))
            if known == len(inputs):
                inputs.append(product.x)
            held, dtype = [product.rows], autocast_dtype(product.x) or product.x.dtype

            def measure(grad_output: Tensor) -> None:
                if held:
                    with torch.no_grad(), torch.autocast(grad_output.device.type, enabled=False):
                        gradient = grad_output.reshape(-1, grad_output.shape[-1])
                        noise = measure_layer(name, held.pop(), gradient, self.settings)
                    seen.append(_Seen(noise, known, (gradient.shape[0], noise.num_columns, dtype)))

            product.out.register_hook(measure)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            with WatchProducts(names, watch):
                loss = self.loss_fn(model(*self.inputs))
            loss.backward()
        return seen


def measure_layer(name: str, rows: Tensor, gradient: Tensor, settings: RMMConfig) -> LayerNoise:
    """Measure moments and rounding noise of X [B, N] and Y [B, M]."""
    mean = column_means(rows, settings.workspace_bytes)
    plain, centred = moments(rows, gradient), moments(rows, gradient, mean)
    subtracted = mean if _spread(centred) < _spread(plain) else None
    rounding: dict[str, list[float]] = {codec: [] for codec in LINEAR_CODECS if get_codec(codec).rounds_at_random}
    for rate in MEASURED_RATES:
        for codec, values in rounding.items():
            config = replace(settings, rate=rate, size=None, codec=codec, center=subtracted is not None)
            seed = torch.zeros((), dtype=torch.int64, device=rows.device)
            values.append(float(rounding_variance(rows, gradient, config, seed, subtracted, _SAMPLED_ROWS)))
    return LayerNoise(name, rows.shape[0], rows.shape[1], float(plain.c), plain, centred, rounding)


def _relative_error(found: Tensor, exact: Tensor) -> float:
    square = float(exact.double().square().sum())
    return float((found - exact).double().square().sum()) / square if square else 0.0


def _with(config: RMMConfig, settings: Mapping[str, Any]) -> RMMConfig:
    return replace(config, **settings)


def _sum(entries: Iterable[SavedEntry]) -> int:
    return sum(entry.saved_bytes for entry in entries)


def _spread(m: Moments) -> float:
    return float(m.a + m.c - 2.0 * m.d)


_Group = tuple[set[str], set[int], list[_Seen]]


def _items(seen: Iterable[_Seen], model: Module, shared: bool) -> Iterator[Item]:
    """Group the products of a layer, those outside of layers, and, where sketches are ``shared``, readers of one x."""
    modules = dict(model.named_modules())
    groups: list[_Group] = []
    for product in seen:
        owner = product.product.name.rpartition(".")[0]
        name = owner if isinstance(getattr(modules.get(owner), "config", None), RMMConfig) else OUTSIDE
        merged: _Group = ({name}, {product.reads}, [product])
        for group in [group for group in groups if name in group[0] or (shared and _read_alike(name, group, product))]:
            groups.remove(group)
            merged = (merged[0] | group[0], merged[1] | group[1], group[2] + merged[2])
        groups.append(merged)
    for names, _, products in groups:
        shapes = {product.reads if shared else number: product.shape for number, product in enumerate(products)}
        yield Item(
            modules=tuple(sorted(names)),
            products=tuple(product.product for product in products),
            inputs=tuple(shapes.values()),
        )


def _read_alike(name: str, group: _Group, product: _Seen) -> bool:
    return OUTSIDE not in (name, *group[0]) and product.reads in group[1]
