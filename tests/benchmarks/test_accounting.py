"""The bytes of every method by hand, and against what a training step really leaves allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block, row_bytes
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.methods import METHODS
from benchmarks.harness.propagation import normalized_adjacency
from benchmarks.harness.train import train
from rmm_gnn import RMMConfig

PROTOCOL = Block(channels=256, layers=16)
N, C = 10_000, 16


def test_stock_layers_keep_4352_bytes():
    assert accounting.stock(PROTOCOL) == 4352  # four activations of 1024, a mask of 256
    assert accounting.stock(replace(PROTOCOL, mask_bytes=4)) == 5 * 1024  # on CPU
    assert accounting.stock(replace(PROTOCOL, shared_weights=True)) == 4352 - 1024
    assert accounting.stock(replace(PROTOCOL, dropout=False)) == 4 * 1024


def test_products_only():
    # Sketch 0.1 x 1024, x_0 1024 / 16, BatchNorm's input and ReLU's output 1024 each, mask 256.
    assert accounting.rmm(PROTOCOL, 0.1, "fp32") == pytest.approx(102.4 + 64 + 1024 + 1024 + 256)
    assert accounting.rmm(PROTOCOL, 0.1, "int8") == pytest.approx(26 + 64 + 2304)
    assert accounting.rmm(replace(PROTOCOL, shared_weights=True), 0.1, "bf16") == pytest.approx(51.2 + 2304)


def test_the_whole_model():
    # BatchNorm 256 / 4 + 4, ReLU 256 / 8, sketch 0.1 x (256 + 4), x_0 (128 + 4) / 16.
    kept = accounting.rmm_lean(PROTOCOL, 0.1, "int8", "int2", "int4")
    assert kept == pytest.approx(68 + 32 + 26 + 8.25) and 4352 / kept == pytest.approx(32.4, abs=0.05)
    kept = accounting.rmm_lean(PROTOCOL, 0.1, "int4", "int2", "int8")
    assert kept == pytest.approx(68 + 32 + 13.2 + 16.25) and 4352 / kept == pytest.approx(33.6, abs=0.05)
    assert accounting.rmm_lean(PROTOCOL, 0.1, "int8", "int2", "fp32") == pytest.approx(190)
    # BatchNorm 0.2 x 68
    assert accounting.rmm_lean(PROTOCOL, 0.1, "int8", "int2", "int4", 0.2) == pytest.approx(13.6 + 32 + 26 + 8.25)


def test_exact_at_its_published_setting():
    # BatchNorm 64 + 8, two products of 32 features 8 + 8 each, masks of one bit for ReLU and for dropout.
    assert accounting.exact(PROTOCOL, 0.125, 2) == 72 + 16 + 16 + 32 + 32 == 168
    assert accounting.exact(PROTOCOL, 1.0, 8) == 3 * (256 + 8) + 64
    assert accounting.exact(replace(PROTOCOL, shared_weights=True, dropout=False), 0.125, 2) == 72 + 16 + 32
    assert accounting.exact(Block(channels=10, layers=2), 0.25, 1) == (2 + 8) + 2 * (1 + 8) + 2 + 2  # 3 of 10 features


def test_checkpoint_keeps_the_inputs_of_blocks():
    assert accounting.checkpoint(PROTOCOL) == 1024 + 64


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("fp32", 1024), ("bf16", 512), ("fp16", 512), ("int8", 260), ("int4", 132), ("int2", 68), ("int1", 36)],
)
def test_a_row_of_each_codec(codec, expected):
    assert row_bytes(codec, 256) == expected


def test_unknown_codecs_are_refused():
    with pytest.raises(ValueError, match="'codec' must be"):
        row_bytes("int3", 256)


@pytest.fixture(scope="module")
def graph() -> NodeDataset:
    """Large enough for what grows with the nodes to dwarf what does not."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(N, (2, 3 * N), generator=generator)
    return NodeDataset(
        name="graph",
        title="graph",
        x=torch.randn(N, 4, generator=generator),
        y=torch.arange(N) % 3,
        adjacency=normalized_adjacency(edges, N),
        num_classes=3,
    )


SETTINGS = {
    "baseline": [{}],
    "rmm": [{}, {"rate": (0.5,), "codec": ("bf16",)}, {"anchor": ("on",)}],
    "rmm-lean": [
        {},
        {"rate": (0.5,), "codec": ("int8",), "x0_codec": ("int4",), "norm_codec": ("int4",)},
        {"norm_rate": (0.25,)},
        {"x0_codec": ("int4",), "anchor": ("on",)},
    ],
    "exact": [{"rate": (0.125,)}, {"rate": (0.5,), "exact_bits": (4,)}],
    "checkpoint": [{}],
    "offload": [{}],
}


def test_every_method_is_accounted_for_or_left_to_the_data(make_run):
    block = Block(C, 2)
    open_ones = {name for name in METHODS if METHODS[name].theory(block, make_run(method=(name,))) is None}
    assert open_ones == METHODS.keys() - SETTINGS.keys() == {"rmm-plan", "rmm-uniform"}


def kept_bytes(make_run: Callable, graph: NodeDataset, method: str, **settings: Any) -> tuple[int, float]:
    """Measured bytes of a step, and the theory's of its blocks, both on CPU."""
    run = make_run(method=(method,), hidden=C, epochs=1, **settings)
    block = Block(C, run.layers, run.shared_weights, mask_bytes=4)
    return train(run, graph, quiet=True).saved.total, N * run.layers * METHODS[method].theory(block, run)


@pytest.mark.parametrize(
    ("method", "settings"), [(name, settings) for name in SETTINGS for settings in SETTINGS[name]], ids=str
)
@pytest.mark.parametrize("shared_weights", [False, True], ids=["two weights", "one weight"])
def test_another_layer_costs_what_the_theory_says(
    graph: NodeDataset, make_run: Callable, method: str, settings: dict, shared_weights: bool
):
    settings = settings | {"shared_weights": shared_weights}
    (kept, theory), (kept_more, theory_more) = (
        kept_bytes(make_run, graph, method, layers=layers, **settings) for layers in (2, 3)
    )
    rest = (kept_more - kept) - (theory_more - theory)
    # A scaled weight, a projection or a fit, means, statistics, seeds: nothing that grows with N.
    assert 0 <= rest < 4 * C * ((2 if "anchor" in settings else 1) * C + 16)


def test_features_that_are_held_cost_a_seed_in_the_place_of_a_sketch(graph: NodeDataset, make_run: Callable):
    kept = [kept_bytes(make_run, graph, "rmm-lean", held=(held,), rate=(0.5,))[0] for held in ("off", "on")]
    # On both sides dropout keeps a seed, which belongs to the linear layer where the features are held.
    assert kept[0] - kept[1] == RMMConfig(rate=0.5).saved_bytes(*graph.x.shape) - 8


def test_x_0_is_kept_once_and_as_its_codec_says(graph: NodeDataset, make_run: Callable):
    (whole, theory_whole), (coded, theory_coded) = (
        kept_bytes(make_run, graph, "rmm-lean", layers=3, x0_codec=(codec,)) for codec in ("fp32", "int4")
    )
    assert theory_whole - theory_coded == pytest.approx(N * (4 * C - (C / 2 + 4)))
    assert whole - coded == pytest.approx(theory_whole - theory_coded, abs=4 * C * 16)
