"""The lean modules are torch's modules in everything but what they keep in training."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

import rmm_gnn.nn
from rmm_gnn import RMMConfig
from rmm_gnn.nn import (
    LeanBatchNorm1d,
    LeanBatchNorm2d,
    LeanBatchNorm3d,
    LeanDropout,
    LeanELU,
    LeanGELU,
    LeanLayerNorm,
    LeanLeakyReLU,
    LeanReLU,
    LeanReLUDropout,
    LeanRMSNorm,
    LeanSiLU,
)
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

EXACT = RMMConfig(norm_codec="fp32", act_codec="fp32")
ROWS, CHANNELS = 12, 6


@dataclass(frozen=True)
class Case:
    """A lean class, torch's, their arguments, what the repr says, and the bytes kept of an input of ``shape``."""

    lean: type[Module]
    stock: type[Module]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (ROWS, CHANNELS)
    says: str = ""
    kept_bytes: int = 0
    draws: bool = True
    random: bool = False

    def make(self, config: RMMConfig | None = None) -> Module:
        return self.lean(*self.arguments, **self.keywords, config=config)

    def twins(self, config: RMMConfig | None = None) -> tuple[Module, Module]:
        stock, lean = self.stock(*self.arguments, **self.keywords), self.make(config)
        for parameter in stock.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        lean.load_state_dict(stock.state_dict())
        return lean, stock

    def x(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1)).mul_(2).add_(0.3)


def norm(rows: int, columns: int, statistics: int) -> int:
    """Two bits an entry, offset and step of a row, 1/sigma."""
    return rows * (ceil(columns / 4) + 4) + 4 * statistics


SIZE = ROWS * CHANNELS
CASES = {
    "relu": Case(LeanReLU, torch.nn.ReLU, says="LeanReLU()", kept_bytes=SIZE // 8, draws=False),
    "leaky_relu": Case(
        LeanLeakyReLU, torch.nn.LeakyReLU, (0.2,), says="negative_slope=0.2", kept_bytes=SIZE // 8, draws=False
    ),
    "dropout": Case(LeanDropout, torch.nn.Dropout, (0.3,), says="p=0.3, inplace=False", kept_bytes=8, random=True),
    "gelu": Case(LeanGELU, torch.nn.GELU, says="approximate='none'", kept_bytes=ROWS * (3 + 4)),
    "gelu_tanh": Case(LeanGELU, torch.nn.GELU, ("tanh",), says="approximate='tanh'", kept_bytes=ROWS * (3 + 4)),
    "silu": Case(LeanSiLU, torch.nn.SiLU, says="act_codec='int4'", kept_bytes=ROWS * (3 + 4)),
    "elu": Case(LeanELU, torch.nn.ELU, (0.7,), says="alpha=0.7", kept_bytes=ROWS * (3 + 4)),
    "batch_norm": Case(
        LeanBatchNorm1d, torch.nn.BatchNorm1d, (CHANNELS,), says="norm_codec='int2'", kept_bytes=norm(ROWS, 6, 6)
    ),
    "batch_norm 3d": Case(
        LeanBatchNorm1d, torch.nn.BatchNorm1d, (6, 1e-3, 0.3), {}, (12, 6, 5), "momentum=0.3", norm(12, 30, 6)
    ),
    "batch_norm, no affine": Case(
        LeanBatchNorm1d, torch.nn.BatchNorm1d, (6,), {"affine": False}, says="affine=False", kept_bytes=norm(12, 6, 6)
    ),
    "batch_norm, no statistics": Case(
        LeanBatchNorm1d,
        torch.nn.BatchNorm1d,
        (6,),
        {"track_running_stats": False},
        says="track_running_stats=False",
        kept_bytes=norm(12, 6, 6),
    ),
    "batch_norm, average": Case(
        LeanBatchNorm1d, torch.nn.BatchNorm1d, (6,), {"momentum": None}, says="momentum=None", kept_bytes=norm(12, 6, 6)
    ),
    "batch_norm2d": Case(
        LeanBatchNorm2d, torch.nn.BatchNorm2d, (6,), {}, (4, 6, 3, 5), "LeanBatchNorm2d(6", norm(4, 90, 6)
    ),
    "batch_norm3d": Case(
        LeanBatchNorm3d, torch.nn.BatchNorm3d, (6,), {}, (4, 6, 2, 3, 2), "LeanBatchNorm3d(6", norm(4, 72, 6)
    ),
    "layer_norm": Case(
        LeanLayerNorm, torch.nn.LayerNorm, (CHANNELS,), says="norm_codec='int2'", kept_bytes=norm(ROWS, 6, ROWS)
    ),
    "layer_norm, no affine": Case(
        LeanLayerNorm, torch.nn.LayerNorm, (6, 1e-3, False), says="affine=False", kept_bytes=norm(12, 6, 12)
    ),
    "layer_norm, no bias": Case(
        LeanLayerNorm, torch.nn.LayerNorm, (6,), {"bias": False}, says="bias=False", kept_bytes=norm(12, 6, 12)
    ),
    "layer_norm of two": Case(LeanLayerNorm, torch.nn.LayerNorm, ((3, 4),), {}, (5, 3, 4), "(3, 4)", norm(5, 12, 5)),
    "rms_norm": Case(
        LeanRMSNorm, torch.nn.RMSNorm, (CHANNELS,), says="norm_codec='int2'", kept_bytes=norm(ROWS, 6, ROWS)
    ),
    "rms_norm, no affine": Case(
        LeanRMSNorm, torch.nn.RMSNorm, (6, 1e-3, False), says="affine=False", kept_bytes=norm(12, 6, 12)
    ),
    "rms_norm of two": Case(LeanRMSNorm, torch.nn.RMSNorm, ((3, 4),), {}, (5, 3, 4), "(3, 4)", norm(5, 12, 5)),
}
UNBIASED = [name for name in CASES if name not in ("relu", "leaky_relu", "dropout")]


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def gradients(layer: Module, x: Tensor, grad_output: Tensor | None = None) -> list[Tensor]:
    """Gradients of x and of the parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    if grad_output is None:
        grad_output = x.detach() + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad(out, [x, *layer.parameters()], grad_output.to(out.dtype)))


def test_batch_norm_keeps_the_share_of_the_rows_that_the_config_says():
    x = CASES["batch_norm"].x().requires_grad_()
    for rate, rows, seed in ((1.0, ROWS, 0), (0.5, ROWS // 2, 8)):
        layer = LeanBatchNorm1d(CHANNELS, config=RMMConfig(norm_rate=rate))
        with saved_tensors() as saved:
            layer(x)
        assert sum(kept_storages(saved, besides=layer.parameters()).values()) == norm(rows, 6, 6) + seed
        assert ("norm_rate=0.5" in repr(layer)) == (rate == 0.5)


def test_every_module_has_a_case():
    lean = {getattr(rmm_gnn.nn, name) for name in rmm_gnn.nn.__all__ if name.startswith("Lean")}
    assert lean == {case.lean for case in CASES.values()} | {LeanReLUDropout}


def test_arguments_are_torchs(case):
    """The same arguments in the same order; ``config`` by keyword alone."""
    names = list(inspect.signature(case.stock.__init__).parameters)[1:]
    given = dict(zip(names, case.arguments, strict=False)) | case.keywords
    reference = case.stock(**given)
    for layer in (case.make(), case.lean(**given)):
        assert isinstance(layer, case.stock) and layer.config == RMMConfig()
        assert {name: getattr(layer, name) for name in vars(reference) if name[0] != "_"} == {
            name: value for name, value in vars(reference).items() if name[0] != "_"
        }
    assert case.make(EXACT).config is EXACT


def test_what_is_no_config_is_refused(case):
    with pytest.raises(TypeError, match="'config' must be an RMMConfig"):
        case.lean(*case.arguments, **case.keywords, config=0.1)


def test_device_and_dtype_arguments():
    for layer in (
        LeanBatchNorm1d(4, device="meta", dtype=torch.float64),
        LeanLayerNorm(4, device="meta", dtype=torch.float64),
    ):
        assert layer.weight.device.type == "meta" and layer.weight.dtype == torch.float64


def test_training_output_is_torchs(case):
    lean, stock = case.twins()
    x = case.x()
    if case.random:
        out = lean(x)
        assert torch.equal(out, x * (out != 0).float().div_(1 - lean.p))
        return
    for _ in range(3):  # running statistics move too
        assert torch.equal(lean(x.clone().requires_grad_()), stock(x))
        x = 1.1 * x + 0.2
    for (name, mine), theirs in zip(lean.state_dict().items(), stock.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_gradients_are_torchs_where_nothing_is_rounded(case):
    lean, stock = case.twins(EXACT)
    if case.random:
        return
    torch.testing.assert_close(gradients(lean, case.x()), gradients(stock, case.x()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "elu"])
def test_gradients_of_activations_are_unbiased(name):
    lean, stock = CASES[name].twins()
    exact = gradients(stock, CASES[name].x())[0]
    assert_unbiased(lambda: gradients(lean, CASES[name].x())[0], exact, draws=200)


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "batch_norm2d"])
def test_gradients_of_gamma_are_unbiased(name):
    lean, stock = CASES[name].twins(RMMConfig(norm_codec="int4"))
    exact = gradients(stock, CASES[name].x())[1]
    assert_unbiased(lambda: gradients(lean, CASES[name].x())[1], exact, draws=200)


def test_kept_bytes(case):
    layer = case.make()
    x = case.x().requires_grad_()
    with saved_tensors() as saved:
        layer(x)
    assert sum(kept_storages(saved, besides=layer.parameters()).values()) == case.kept_bytes


@pytest.mark.parametrize("codec", ["int8", "fp32"])
def test_the_config_decides_the_codec(codec):
    sizes = {"int8": 12 * (6 + 4), "fp32": 12 * 24}
    for name, statistics in (("gelu", 0), ("silu", 0), ("elu", 0), ("batch_norm", 24), ("layer_norm", 48)):
        layer = CASES[name].make(RMMConfig(act_codec=codec, norm_codec=codec))
        with saved_tensors() as saved:
            layer(CASES[name].x().requires_grad_())
        assert sum(kept_storages(saved, besides=layer.parameters()).values()) == sizes[codec] + statistics


def test_training_draws_also_with_grad_mode_off(case):
    layer = case.make()
    for enabled in (True, False):
        state = torch.get_rng_state()
        with torch.set_grad_enabled(enabled):
            layer(case.x().requires_grad_())
        assert torch.equal(torch.get_rng_state(), state) != case.draws


def test_no_grad_keeps_nothing(case):
    with torch.no_grad(), saved_tensors() as saved:
        case.make()(case.x())
    assert saved == []


def test_eval_is_torchs(case):
    """The same values and gradients, what torch keeps and nothing else; nothing is drawn."""
    lean, stock = (layer.eval() for layer in case.twins())
    state = torch.get_rng_state()
    kept = []
    for layer in (lean, stock):
        x = case.x().requires_grad_()
        with saved_tensors() as saved:
            out = layer(x)
        kept.append([(tensor.shape, tensor.dtype) for tensor in saved])
        assert out.grad_fn is None or "rmm_gnn" not in out.grad_fn.name()
    assert kept[0] == kept[1]
    assert torch.equal(lean(case.x()), stock(case.x()))
    assert all(torch.equal(a, b) for a, b in zip(gradients(lean, case.x()), gradients(stock, case.x()), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_running_statistics_serve_eval(case):
    """After a few steps in training, both give the same in eval()."""
    lean, stock = case.twins()
    for step in range(3):
        for layer in (lean, stock):
            layer(case.x() * (step + 1) + step)
    assert torch.equal(lean.eval()(case.x()), stock.eval()(case.x()))


def test_training_steps_in_a_row(case):
    """Each step has its own graph: buffers must not carry one step's into the next."""
    layer = case.make()
    for _ in range(3):
        out = layer(case.x().requires_grad_())
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        out.square().sum().backward()


def test_state_dict_goes_both_ways(case):
    lean, stock = case.twins()
    stock(case.x())
    lean.load_state_dict(stock.state_dict())
    assert list(lean.state_dict()) == list(stock.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(lean.state_dict().values(), stock.state_dict().values(), strict=True))
    other = case.stock(*case.arguments, **case.keywords)
    other.load_state_dict(lean.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(lean.state_dict().values(), other.state_dict().values(), strict=True))


def test_repr(case):
    text = repr(case.make())
    assert text.startswith(case.lean.__name__) and case.says in text
    assert (repr(case.stock(*case.arguments, **case.keywords)).partition("(")[2][:-1]) in text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(case, duplicate):
    layer = case.make(EXACT)
    twin = duplicate(layer)
    assert type(twin) is case.lean and twin.config == EXACT
    assert not {id(parameter) for parameter in layer.parameters()} & {id(parameter) for parameter in twin.parameters()}
    torch.manual_seed(1)
    expected = layer(case.x())
    torch.manual_seed(1)
    assert torch.equal(twin(case.x()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(case, dtype):
    lean, stock = (layer.to(dtype) for layer in case.twins())
    x = case.x().to(dtype).requires_grad_()
    out = lean(x)
    assert out.dtype == dtype
    if not case.random:
        assert torch.equal(out, stock(x))
    out.sum().backward()
    assert x.grad.dtype == dtype


def test_autocast_is_torchs(case):
    lean, stock = case.twins()
    for dtype in (torch.float32, torch.bfloat16):
        x = case.x().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, expected = lean(x), stock(x)
        assert out.dtype == expected.dtype
        if not case.random:
            assert torch.equal(out, expected)
        out.float().square().sum().backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "dropout", "silu", "elu"])
def test_in_place(name):
    case = CASES[name]
    layer, plain = case.lean(*case.arguments, inplace=True), case.make()
    results = []
    for candidate in (layer, plain):
        torch.manual_seed(4)
        leaf = case.x().requires_grad_()
        x = 1 * leaf
        out = candidate(x)
        assert (out is x) == (candidate is layer)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    with torch.no_grad():
        x = case.x()
        assert layer(x) is x and layer.eval()(x) is x


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("batch_norm", (3, 5)),
        ("batch_norm 3d", (3, 7, 4)),
        ("batch_norm2d", (3, 5, 4, 2)),
        ("batch_norm3d", (3, 7, 2, 2, 2)),
    ],
)
def test_wrong_shapes_raise_as_in_torch(name, wrong):
    lean, stock = CASES[name].twins()
    for shape in ((3,), (1, 6), (3, 6, 2, 2, 2, 2), wrong):
        x = torch.ones(shape, requires_grad=True)
        with pytest.raises((ValueError, RuntimeError)) as theirs:
            stock(x)
        with pytest.raises((ValueError, RuntimeError)) as ours:
            lean(x)
        assert str(ours.value) == str(theirs.value) and ours.type is theirs.type


def test_parameters_may_be_frozen_or_fed_by_a_frozen_input(case):
    """Gradients of what is left are those of torch."""
    for needs_x in (True, False):
        for needs_parameters in (True, False):
            results = []
            for layer in case.twins(EXACT):
                torch.manual_seed(0)
                layer.requires_grad_(needs_parameters)
                x = case.x().requires_grad_(needs_x)
                out = layer(x)
                if out.requires_grad:
                    out.square().mul(0.5).sum().backward()
                results.append([None if leaf.grad is None else leaf.grad for leaf in (x, *layer.parameters())])
            for mine, exact in zip(*results, strict=True):
                assert (mine is None) == (exact is None)
                if exact is not None and not case.random:
                    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)


class TestReLUDropout:
    def test_it_is_relu_and_dropout_in_one(self):
        layer, pair = LeanReLUDropout(0.3), torch.nn.Sequential(LeanReLU(), LeanDropout(0.3))
        results = []
        for candidate in (layer, pair):
            torch.manual_seed(2)
            results.append([candidate(CASES["relu"].x())])
            torch.manual_seed(2)
            results[-1] += gradients(candidate, CASES["relu"].x())
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)

    def test_one_bit_in_all(self):
        with saved_tensors() as saved:
            LeanReLUDropout()(CASES["relu"].x().requires_grad_())
        assert sum(kept_storages(saved, besides=[]).values()) == SIZE // 8

    def test_eval_is_relu(self):
        x = CASES["relu"].x()
        assert torch.equal(LeanReLUDropout(0.3).eval()(x), F.relu(x))

    def test_surface(self):
        layer = LeanReLUDropout(0.3, config=EXACT)
        assert repr(layer) == "LeanReLUDropout(p=0.3)" and layer.config is EXACT and not layer.state_dict()
        assert LeanReLUDropout().p == 0.5 and copy.deepcopy(layer).p == 0.3
        with pytest.raises(ValueError, match=r"'p' must lie in \[0, 1\]"):
            LeanReLUDropout(1.5)


def blocks(width: int = CHANNELS) -> dict[str, Callable[[], Module]]:
    def exact_layers() -> Module:
        return torch.nn.Sequential(
            torch.nn.Linear(width, 20), LeanReLU(), LeanDropout(0.3), torch.nn.Linear(20, 9), LeanReLUDropout(0.4)
        )

    def estimating_layers() -> Module:
        return torch.nn.Sequential(
            LeanLayerNorm(width), LeanGELU(), LeanBatchNorm1d(width), LeanSiLU(), LeanDropout(0.3), LeanELU()
        )

    return {"exact": exact_layers, "estimating": estimating_layers}


@pytest.mark.parametrize("build", blocks().values(), ids=blocks())
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing_gives_the_same_masks_and_gradients(build, use_reentrant):
    """From the same generator state, over several steps, every one of which has masks of its own."""
    torch.manual_seed(0)
    block = build()

    def steps(run: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
        torch.manual_seed(1)
        results = []
        for _ in range(3):
            x = torch.randn(30, CHANNELS, generator=torch.Generator().manual_seed(4)).requires_grad_()
            out = run(x)
            leaves = [x, *block.parameters()]
            for leaf in leaves:
                leaf.grad = None
            out.square().sum().backward()  # reentrant checkpointing knows no torch.autograd.grad
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
        return results

    plain, recomputed = steps(block), steps(lambda x: checkpoint(block, x, use_reentrant=use_reentrant))
    for expected, actual in zip(plain, recomputed, strict=True):
        assert all(torch.equal(*pair) for pair in zip(expected, actual, strict=True))
    assert not torch.equal(plain[0][0], plain[1][0]) and not torch.equal(plain[1][0], plain[2][0])
