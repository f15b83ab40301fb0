"""What a plan decides about: layers, grouped where one config has to serve several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.planning.choose import Cost
from rmm_gnn.planning.layer_noise import LINEAR_CODECS, RATE_ALONE, LayerNoise

RATES = tuple(round(10 ** (-exponent / 20), 4) for exponent in range(53))
# The cheapest setting that is exact but for the order of additions: a signed permutation of the rows.
EXACT = RMMConfig(rate=1.0, center=False)
# Stands for the products of functions that no layer owns: the mode's config is theirs.
OUTSIDE = "(functions)"


@dataclass(frozen=True, eq=False)
class Item:
    """Layers that read one tensor, or cannot be told apart: one config for all of them.

    Attributes:
        modules: Names of the layers; `OUTSIDE` for products outside of layers that can be converted.
        products: The products with their trained weights.
        inputs: Rows, columns and type of what is kept: of each tensor they read, once where sketches are shared.
    """

    modules: tuple[str, ...]
    products: tuple[LayerNoise, ...]
    inputs: tuple[tuple[int, int, torch.dtype], ...]

    def choices(self, settings: RMMConfig) -> list[tuple[dict[str, Any], Cost]]:
        """Settings worth considering, to be put into ``settings``, and what they cost."""
        center = sum(product.center for product in self.products) * 2 > len(self.products)
        whole = {"sketch": EXACT.sketch, "rate": 1.0, "codec": "fp32", "center": False}
        changes: list[dict[str, Any]] = [
            {"rate": rate, "codec": codec, "center": center} for codec in LINEAR_CODECS for rate in RATES
        ]
        changes = [RATE_ALONE | change for change in (whole, *changes)]
        return [(change, self.cost(replace(settings, **change))) for change in changes]

    def describe(self, config: RMMConfig) -> str:
        """What is kept under ``config``, for a table."""
        if config.rate == 1.0 and config.codec == "fp32":
            return "whole"
        return f"rate {config.rate:g}, {config.codec}" + ("" if config.center else ", uncentred")

    def cost(self, config: RMMConfig) -> Cost:
        """Bytes kept under ``config``, and noise to signal summed over the weights."""
        saved = sum(config.saved_bytes(*shape) for shape in self.inputs)
        return Cost(saved, sum(product.noise(config) for product in self.products))


@dataclass
class SeenProduct:
    """A product as one step showed it.

    Attributes:
        product: Its noise.
        reads: Number of the tensor it reads.
        shape: Rows, columns and type of that tensor as it is kept.
    """

    product: LayerNoise
    reads: int
    shape: tuple[int, int, torch.dtype]


_Group = tuple[set[str], set[int], list[SeenProduct]]


def items_of(seen: Iterable[SeenProduct], model: Module, *, shared: bool) -> Iterator[Item]:
    """Group the products of a layer, those outside of layers, and, where sketches are ``shared``, readers of one x."""
    owners = _owners(model)
    groups: list[_Group] = []
    for product in seen:
        names = owners.get(product.product.name, {OUTSIDE})
        merged: _Group = (set(names), {product.reads}, [product])
        for group in [g for g in groups if names & g[0] or (shared and _read_alike(names, g, product))]:
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


def _owners(model: Module) -> dict[str, set[str]]:
    """For each parameter, by the first of its names, the layers with a config that have it: several if it is tied."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    owners: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "config", None), RMMConfig):
            for parameter in module.parameters(recurse=False):
                owners.setdefault(first[parameter], set()).add(name)
    return owners


def _read_alike(names: set[str], group: _Group, product: SeenProduct) -> bool:
    return OUTSIDE not in names | group[0] and product.reads in group[1]
