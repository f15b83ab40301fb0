"""What planning has to know of a model: its layers' noise, and the bytes of everything else."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rmm_gnn.config import RMMConfig
from rmm_gnn.diagnostics.products import Product, WatchProducts, marked_rows
from rmm_gnn.functional._calling import autocast_dtype
from rmm_gnn.planning.choose import Cost
from rmm_gnn.planning.items import Item, SeenProduct, items_of
from rmm_gnn.planning.layer_noise import measure_layer
from rmm_gnn.planning.norm_items import REFERENCE_CODEC, NormItem, SeenNorm, watch_norms
from rmm_gnn.planning.trials import FINE, PLAIN, Trials, sum_of

OTHER_CODECS = ("fp32", "int8", "int4", "int2", "int1")
# Operators whose codec is one decision for all of the kind, by the config's setting.
KINDS = {
    "norm_codec": {"rmm_gnn.batch_norm", "rmm_gnn.layer_norm", "rmm_gnn.rms_norm"},
    "act_codec": {"rmm_gnn.activation"},
    "x0_codec": {"rmm_gnn.coded_linear"},
}


@dataclass(frozen=True, eq=False)
class Survey:
    """A model, measured.

    Attributes:
        products: The layers with products to be decided.
        norms: The normalisation layers to be decided.
        stock_bytes: What the model keeps as it is.
        base_bytes: What nobody decides.
        others: For each of `KINDS` that the model has, what each codec costs.
        num_weights: How many weights the noise is summed over.
        exact: Weights whose products read what the caller holds: nothing is to be decided.
    """

    products: tuple[Item, ...]
    norms: tuple[NormItem, ...]
    stock_bytes: int
    base_bytes: int
    others: dict[str, dict[str, Cost]]
    num_weights: int
    exact: tuple[str, ...] = ()

    @property
    def items(self) -> tuple[Item | NormItem, ...]:
        """All layers to be decided."""
        return (*self.products, *self.norms)

    def with_norms_scaled(self, factor: float) -> Survey:
        """The survey with the noise of the normalisation layers times ``factor``."""
        norms = [replace(item, noise_per_variance=factor * item.noise_per_variance) for item in self.norms]
        return replace(self, norms=tuple(norms))


@dataclass
class _SeenModel:
    """The products of one step.

    Attributes:
        products: Those to be decided.
        exact: Weights that read what the caller holds.
        undecided: Weights whose input is not decided layer by layer: x_0, or what is kept as it is in any case.
    """

    products: list[SeenProduct]
    exact: set[str]
    undecided: set[str]


def survey_of(trials: Trials, settings: RMMConfig) -> Survey:
    """Measure the stock model, then the converted one.

    Raises:
        ValueError: If the model trains no weight by a product, or has one without a gradient.
    """
    trials.progress("bytes of the model as it is")
    stock = trials.stock_bytes()
    trials.progress("noise of every layer")
    seen = _products(trials, settings)
    weights = {product.product.name for product in seen.products} | seen.exact | seen.undecided
    if not weights:
        raise ValueError(
            "'model' must have layers to plan (got none that trains a weight by a matrix product). "
            "Put it in training mode, and its weights to requires_grad."
        )
    silent = sorted({product.product.name for product in seen.products if product.product.signal == 0.0})
    if silent:
        raise ValueError(
            f"'model' must have a gradient for every weight (got none for {', '.join(silent)}). "
            "Noise is judged by it: train a step first, as after an initialisation to zero."
        )
    products = tuple(items_of(seen.products, trials.copy(PLAIN), shared=trials.lean))
    norms = tuple(_norm_items(trials))
    whole = sum_of(trials.entries(PLAIN))
    base = whole - sum(item.cost(PLAIN).saved_bytes for item in products)
    base -= sum(item.cost("fp32", 1.0).saved_bytes for item in norms)
    others = {}
    for kind in KINDS if trials.lean else ():
        others[kind] = _other(trials, kind, whole, [name for item in norms for name in item.modules])
        base -= others[kind]["fp32"].saved_bytes if others[kind] else 0
    return Survey(
        products=products,
        norms=norms,
        stock_bytes=stock,
        base_bytes=base,
        others={kind: costs for kind, costs in others.items() if costs},
        num_weights=len(weights),
        exact=tuple(sorted(seen.exact)),
    )


def _norm_items(trials: Trials) -> Iterator[NormItem]:
    """Normalisation layers, each with the noise that coding it alone brings into the gradients of all weights.

    The noise is measured in one code; that of another goes with the variance of what is read back.
    """
    if not trials.lean:
        return
    seen: dict[str, SeenNorm] = {}
    model = trials.copy(PLAIN)
    handles = list(watch_norms(model, seen))
    with torch.random.fork_rng(), trials.mode(PLAIN):
        model(*trials.inputs)
    for handle in handles:
        handle.remove()
    for name, norm in seen.items():
        trials.progress(f"noise of {name}")
        noise = trials.noise_under(norms={name: replace(FINE, norm_codec=REFERENCE_CODEC)})
        variance = norm.variance(REFERENCE_CODEC, 1.0)
        yield NormItem((name,), norm, noise / variance if variance else 0.0)


def _other(trials: Trials, kind: str, whole: int, decided: Collection[str]) -> dict[str, Cost]:
    """What one kind of operator costs in every codec; empty where the model has none of the kind.

    ``whole`` is what the model keeps where nothing is coded; modules that are ``decided`` one by one do not count.
    """
    saved = {}
    for codec in OTHER_CODECS[1:]:
        trials.progress(f"bytes of {kind} {codec}")
        entries = trials.entries(_coded(PLAIN, kind, codec))
        of_kind = [e for e in entries if e.operator in KINDS[kind] and e.module not in decided]
        if not of_kind:
            return {}
        saved[codec] = sum_of(of_kind)
        # Uncoded, they may keep what others keep too: what they take is what the model takes more.
        saved["fp32"] = saved[codec] + whole - sum_of(entries)
    trials.progress(f"noise of {kind}")
    noise = {codec: trials.noise_under(_coded(FINE, kind, codec)) for codec in ("int2", "int1")}
    # Of the others by the ratio of the steps.
    noise |= {"fp32": 0.0, "int4": noise["int2"] * (3 / 15) ** 2, "int8": noise["int2"] * (3 / 255) ** 2}
    return {codec: Cost(saved[codec], noise[codec]) for codec in OTHER_CODECS}


def _coded(config: RMMConfig, kind: str, codec: str) -> RMMConfig:
    change: dict[str, Any] = {kind: codec}
    return replace(config, **change)


def _products(trials: Trials, settings: RMMConfig) -> _SeenModel:
    """Products as one step shows them, each judged by the gradient of its weight, of which it may be one of several."""
    model = trials.copy(PLAIN)
    names: dict[Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    found = _SeenModel([], set(), set())
    gradients: dict[str, Tensor] = {}
    inputs: list[Tensor] = []  # held, so that an id stands for one tensor

    def watch(product: Product) -> None:
        if product.held:
            found.exact.add(product.name)
            return
        if product.codec is not None or product.config is None:
            # x_0, which is decided for all layers together; or nothing of this library takes the product.
            found.undecided.add(product.name)
            return
        name = product.name
        known = next((index for index, x in enumerate(inputs) if x is product.x), len(inputs))
        if known == len(inputs):
            inputs.append(product.x)
        row_mask = product.row_mask
        held, dtype = [product.rows], autocast_dtype(product.x) or product.x.dtype

        def measure(grad_output: Tensor) -> None:
            if held:
                with torch.no_grad(), torch.autocast(grad_output.device.type, enabled=False):
                    rows, gradient = held.pop(), marked_rows(grad_output, row_mask)
                    noise = measure_layer(name, rows, gradient, settings)
                    _add(gradients, name, rows.to(gradient.dtype).T @ gradient)
                found.products.append(SeenProduct(noise, known, (gradient.shape[0], noise.num_columns, dtype)))

        product.out.register_hook(measure)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        with trials.mode(PLAIN), WatchProducts(names, watch):
            loss = trials.loss_fn(model(*trials.inputs))
        loss.backward()
    signals = {name: float(gradient.double().square().sum()) for name, gradient in gradients.items()}
    for product in found.products:
        product.product = replace(product.product, signal=signals[product.product.name])
    return found


def _add(gradients: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add up the gradients of a weight over its uses; where it is used both ways round, so are they."""
    if name not in gradients:
        gradients[name] = gradient
    else:
        gradients[name] = gradients[name] + (gradient if gradient.shape == gradients[name].shape else gradient.T)
