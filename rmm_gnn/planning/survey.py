"""What planning has to know of a model: its layers' noise, and the bytes of everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
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
# Passes from which the noise of other operators is measured, for each codec.
_NOISE_DRAWS = 3


@dataclass(frozen=True, eq=False)
class Survey:
    """A model, measured.

    Attributes:
        items: The layers to be decided.
        stock_bytes: What the model keeps as it is.
        base_bytes: What nobody decides.
        others: For each of `KINDS` that the model has, what each codec costs.
        num_weights: How many weights the noise is summed over.
        exact: Weights whose products read what the caller holds: nothing is to be decided.
    """

    items: tuple[Item, ...]
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
        items = tuple(items_of(seen, self._copy(EXACT), shared=self.lean))
        if not (items or exact):
            raise ValueError(
                "'model' must have layers to plan (got none that trains a weight by a matrix product). "
                "Put it in training mode, and its weights to requires_grad."
            )
        plain = _PLAIN
        whole = _sum(self._entries(plain))
        base = whole - sum(item.cost(EXACT).saved_bytes for item in items)
        others = {}
        for kind in KINDS if self.lean else ():
            others[kind] = self._other(kind, plain, whole)
            base -= others[kind]["fp32"].saved_bytes if others[kind] else 0
        return Survey(
            items=items,
            stock_bytes=stock,
            base_bytes=base,
            others={kind: costs for kind, costs in others.items() if costs},
            num_weights=sum(len(item.products) for item in items) + len(exact),
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

    def _other(self, kind: str, plain: RMMConfig, whole: int) -> dict[str, Cost]:
        """What one kind of operator costs in every codec; empty where the model has none of the kind.

        ``whole`` is what the model keeps under ``plain``, where nothing is coded.
        """
        saved = {}
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
