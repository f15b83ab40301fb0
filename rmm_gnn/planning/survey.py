"""What planning has to know of a model: its layers' noise, and the bytes of everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import LEAN_SWAPS, SWAPS, convert_to_rmm, revert_rmm
from rmm_gnn.diagnostics.memory import saved_entries
from rmm_gnn.diagnostics.products import Product, WatchProducts
from rmm_gnn.diagnostics.report import SavedEntry
from rmm_gnn.diagnostics.storages import tensors_in
from rmm_gnn.functional._calling import autocast_dtype
from rmm_gnn.planning.choose import Cost
from rmm_gnn.planning.items import EXACT, Item, SeenProduct, items_of
from rmm_gnn.planning.layer_noise import measure_layer
from rmm_gnn.planning.norm_items import NORMS, REFERENCE_CODEC, NormItem, SeenNorm, watch_norms

LossFn = Callable[[Any], Tensor]
OTHER_CODECS = ("fp32", "int8", "int4", "int2", "int1")
# Operators whose codec is one decision for all of the kind, by the config's setting.
KINDS = {
    "norm_codec": {"rmm_gnn.batch_norm", "rmm_gnn.layer_norm"},
    "act_codec": {"rmm_gnn.activation"},
    "x0_codec": {"rmm_gnn.coded_linear"},
}
# Converted, but nothing is coded or left out.
_PLAIN = replace(EXACT, norm_codec="fp32", act_codec="fp32", x0_codec="fp32")
# All but exact, and reads the random numbers that any other int code reads.
_FINE = replace(EXACT, **dict.fromkeys(KINDS, "int8:scale=fp32"))  # type: ignore[arg-type]
# Gradients, each of one weight in one pass, from which the noise of a code is measured, at least.
_MEASURED_GRADIENTS = 12


@dataclass(frozen=True, eq=False)
class Survey:
    """A model, measured.

    Attributes:
        items: The layers to be decided: products and normalisations.
        stock_bytes: What the model keeps as it is.
        base_bytes: What nobody decides.
        others: For each of `KINDS` that the model has, what each codec costs.
        num_weights: How many weights the noise is summed over.
        exact: Weights whose products read what the caller holds: nothing is to be decided.
    """

    items: tuple[Item | NormItem, ...]
    stock_bytes: int
    base_bytes: int
    others: dict[str, dict[str, Cost]]
    num_weights: int
    exact: tuple[str, ...] = ()


@dataclass
class Surveyor:
    """Measures a copy of the model; the model itself is left as it is."""

    model: Module
    inputs: tuple[Any, ...]
    loss_fn: LossFn
    settings: RMMConfig
    lean: bool
    progress: Callable[[str], None] = field(default=lambda text: None)
    _exact: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = revert_rmm(copy.deepcopy(self.model))
        with torch.random.fork_rng(), torch.no_grad():
            self.model(*self.inputs)  # fills caches, which are the model's then

    def survey(self) -> Survey:
        """Measure the stock model, then the converted one."""
        self.progress("bytes of the model as it is")
        stock = self.stock_bytes()
        self.progress("noise of every layer")
        seen, exact = self._products()
        products = tuple(items_of(seen, self._copy(_PLAIN), shared=self.lean))
        if not (products or exact):
            raise ValueError(
                "'model' must have layers to plan (got none that trains a weight by a matrix product). "
                "Put it in training mode, and its weights to requires_grad."
            )
        norms = tuple(self._norm_items())
        whole = _sum(self._entries(_PLAIN))
        base = whole - sum(item.cost(_PLAIN).saved_bytes for item in products)
        base -= sum(item.cost("fp32", 1.0).saved_bytes for item in norms)
        others = {}
        for kind in KINDS if self.lean else ():
            others[kind] = self._other(kind, whole, [name for item in norms for name in item.modules])
            base -= others[kind]["fp32"].saved_bytes if others[kind] else 0
        return Survey(
            items=(*products, *norms),
            stock_bytes=stock,
            base_bytes=base,
            others={kind: costs for kind, costs in others.items() if costs},
            num_weights=sum(len(item.products) for item in products) + len(exact),
            exact=tuple(sorted(exact)),
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
        return compress_activations(config, held=self.held) if self.lean else nullcontext()

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Tensors of the inputs, which whoever runs the model has in hand until backward."""
        return tuple(tensors_in(*self.inputs))

    def _entries(self, config: RMMConfig) -> tuple[SavedEntry, ...]:
        model = self._copy(config)
        with self._mode(config):
            return self._recorded(model)

    def _recorded(self, model: Module) -> tuple[SavedEntry, ...]:
        with torch.random.fork_rng():
            return saved_entries(model, self.inputs, self.loss_fn)

    def _copy(self, config: RMMConfig | None, norms: Mapping[str, RMMConfig] | None = None) -> Module:
        """A copy of the model, converted unless ``config`` is None.

        Normalisation layers are decided one by one: they are coded as ``norms`` says, where it is given finely if not
        at all, and else not at all.
        """
        model = copy.deepcopy(self.model)
        swapped = SWAPS | LEAN_SWAPS if self.lean else SWAPS
        if config is None or not any(type(module) in swapped for module in model.modules()):
            return model
        convert_to_rmm(model, config, lean=self.lean)
        for name, module in model.named_modules():
            if isinstance(module, NORMS):
                module.config = _PLAIN if norms is None else norms.get(name, _FINE)
        return model

    def _gradients(self, config: RMMConfig, seed: int, norms: Mapping[str, RMMConfig] | None = None) -> list[Tensor]:
        """Gradients of all trained matrices; configs that round the same kinds see the same dropout."""
        model = self._copy(config, norms)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with self._mode(config):
                loss = self.loss_fn(model(*self.inputs))
            loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad and p.dim() == 2 and p.grad is not None]

    def _norm_items(self) -> Iterator[NormItem]:
        """Normalisation layers, each with the noise that coding it alone brings into the gradients of all weights.

        The noise is measured in one code; that of another goes with the variance of what is read back.
        """
        if not self.lean:
            return
        seen: dict[str, SeenNorm] = {}
        model = self._copy(_PLAIN)
        handles = list(watch_norms(model, seen))
        with torch.random.fork_rng(), torch.no_grad(), self._mode(_PLAIN):
            model(*self.inputs)
        for handle in handles:
            handle.remove()
        noise = dict.fromkeys(seen, 0.0)
        for draw in range(self._draws):
            for name in seen:
                self.progress(f"noise of {name}")
                noise[name] += self._noise_under(draw, norms={name: replace(_FINE, norm_codec=REFERENCE_CODEC)})
        for name, norm in seen.items():
            yield NormItem((name,), norm, noise[name] / norm.variance(REFERENCE_CODEC, 1.0))

    def _other(self, kind: str, whole: int, decided: Collection[str]) -> dict[str, Cost]:
        """What one kind of operator costs in every codec; empty where the model has none of the kind.

        ``whole`` is what the model keeps where nothing is coded; modules that are ``decided`` one by one do not count.
        """
        saved = {}
        for codec in OTHER_CODECS[1:]:
            self.progress(f"bytes of {kind} {codec}")
            entries = self._entries(_with(_PLAIN, {kind: codec}))
            of_kind = [e for e in entries if e.operator in KINDS[kind] and e.module not in decided]
            if not of_kind:
                return {}
            saved[codec] = sum(entry.saved_bytes for entry in of_kind)
            # Uncoded, they may keep what others keep too: what they take is what the model takes more.
            saved["fp32"] = saved[codec] + whole - _sum(entries)
        self.progress(f"noise of {kind}")
        return {codec: Cost(saved[codec], noise) for codec, noise in self._noise_of(kind).items()}

    def _noise_of(self, kind: str) -> dict[str, float]:
        """The noise that coding one kind of operator brings; that of INT4 and INT8 by the steps' ratio to INT2's."""
        noise = dict.fromkeys(OTHER_CODECS, 0.0)
        for draw in range(self._draws):
            for codec in ("int2", "int1"):
                noise[codec] += self._noise_under(draw, _with(_FINE, {kind: codec}))
        return noise | {"int4": noise["int2"] * (3 / 15) ** 2, "int8": noise["int2"] * (3 / 255) ** 2}

    @property
    def _draws(self) -> int:
        """Passes for a setting: each averages over the gradients of all weights."""
        weights = sum(p.requires_grad and p.dim() == 2 for p in self.model.parameters())
        return max(1, -(-_MEASURED_GRADIENTS // max(1, weights)))

    def _noise_under(
        self, draw: int, config: RMMConfig | None = None, norms: Mapping[str, RMMConfig] | None = None
    ) -> float:
        """A share of the noise to signal, summed over all weights, that coding more coarsely than `_FINE` brings.

        `_FINE` stands for the exact gradient: it draws the same random numbers, so that dropout is the same, and its
        own noise is 1/7000 of INT2's.
        """
        if draw not in self._exact:
            self._exact[draw] = self._gradients(_FINE, draw, {})
        found = self._gradients(config or _FINE, draw, norms or {})
        return sum(map(_relative_error, found, self._exact[draw])) / self._draws

    def _products(self) -> tuple[list[SeenProduct], set[str]]:
        """Products as one step shows them, and the weights of those that read what the caller holds."""
        model = self._copy(_PLAIN)
        exact: set[str] = set()
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        seen: list[SeenProduct] = []
        inputs: list[Tensor] = []  # held, so that an id stands for one tensor

        def watch(product: Product) -> None:
            if product.held:
                exact.add(product.name)
                return
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
                    seen.append(SeenProduct(noise, known, (gradient.shape[0], noise.num_columns, dtype)))

            product.out.register_hook(measure)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            with self._mode(_PLAIN), WatchProducts(names, watch):
                loss = self.loss_fn(model(*self.inputs))
            loss.backward()
        return seen, exact


def _relative_error(found: Tensor, exact: Tensor) -> float:
    square = float(exact.double().square().sum())
    return float((found - exact).double().square().sum()) / square if square else 0.0


def _with(config: RMMConfig, settings: Mapping[str, Any]) -> RMMConfig:
    return replace(config, **settings)


def _sum(entries: Iterable[SavedEntry]) -> int:
    return sum(entry.saved_bytes for entry in entries)
