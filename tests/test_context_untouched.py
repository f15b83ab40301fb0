"""What compress_activations does not know, it leaves to torch: values, what is kept, errors; and when it ends."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter, ReLU, Sequential
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch_geometric import EdgeIndex

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, compress_activations, memory_report
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

ROWS, WIDTH = 64, 16
CONFIG = RMMConfig(rate=0.25)
torch.manual_seed(1)
WEIGHT, BIAS = Parameter(torch.randn(WIDTH, WIDTH)), Parameter(torch.randn(WIDTH))
FROZEN = Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
RING = torch.stack([torch.arange(ROWS), (torch.arange(ROWS) + 1) % ROWS])
DENSE_GRAPH = torch.rand(ROWS, ROWS)
BILINEAR = torch.nn.Bilinear(WIDTH, WIDTH, 4)


class Tagged(Tensor):
    """A subclass with nothing of its own."""


UNTOUCHED = {
    "F.linear of a vector": lambda x: F.linear(x[0], WEIGHT, BIAS),
    "F.linear with a frozen weight": lambda x: F.linear(x, FROZEN, BIAS),
    "F.linear with a bias to broadcast": lambda x: F.linear(x, WEIGHT, BIAS[:1]),
    "x @ a vector": lambda x: x @ BIAS,
    "a vector @ W": lambda x: x[0] @ WEIGHT,
    "x @ a frozen weight": lambda x: x @ FROZEN,
    "x @ activations": lambda x: x @ x.t(),
    "mm of a graph": lambda x: torch.mm(DENSE_GRAPH, x),
    "addmm of a graph": lambda x: torch.addmm(BIAS, DENSE_GRAPH, x),
    "addmm with a frozen weight": lambda x: torch.addmm(BIAS, x, FROZEN),
    "mm(out=)": lambda x: torch.mm(x.detach(), FROZEN, out=torch.empty(ROWS, WIDTH)) * x,
    "addmm of before": lambda x: torch.addmm(2.0, BIAS, 3.0, x, WEIGHT),
    "relu of whole numbers": lambda x: F.relu(torch.arange(-8, 8)) * x,
    "Tensor.relu of whole numbers": lambda x: torch.arange(-8, 8).relu() * x,
    "relu of a subclass": lambda x: F.relu(x.as_subclass(Tagged)).as_subclass(Tensor),
    "linear of a subclass": lambda x: F.linear(x, WEIGHT.as_subclass(Tagged)).as_subclass(Tensor),
    "linear of a sparse matrix": lambda x: F.linear(torch.eye(WIDTH).to_sparse(), WEIGHT) * x.sum(),
    "EdgeIndex @ x": lambda x: EdgeIndex(RING, sparse_size=(ROWS, ROWS), sort_order="row") @ x.detach() * x,
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False) * x,
    "dropout of nothing": lambda x: F.dropout(x, 0.0) * x,
    "dropout of all": lambda x: F.dropout(x, p=1) * x,
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "relu6": F.relu6,
    "softmax": lambda x: x.softmax(-1),
    "nn.Bilinear": lambda x: BILINEAR(x, x),
}
ERRORS = {
    "F.linear: shapes": lambda x: F.linear(x, WEIGHT[:, :-1]),
    "F.linear: types": lambda x: F.linear(x.double(), WEIGHT),
    "F.linear: bias": lambda x: F.linear(x, WEIGHT, BIAS[:3]),
    "mm: shapes": lambda x: torch.mm(x, WEIGHT[:-1]),
    "mm: three dimensions": lambda x: torch.mm(x[None], WEIGHT),
    "matmul: types": lambda x: x.half() @ WEIGHT,
    "addmm: shapes": lambda x: torch.addmm(BIAS[:3], x, WEIGHT),
    "addmm: no matrix": lambda x: torch.addmm(BIAS, x, mat3=WEIGHT),
    "relu: complex": lambda x: F.relu(x.to(torch.complex64)),
    "relu: argument": lambda x: F.relu(x, slope=1),
    "relu_: a leaf": lambda x: torch.relu_(WEIGHT),
    "relu_: expanded": lambda x: F.relu(x[:1].expand(4, -1), inplace=True),
    "dropout: probability": lambda x: F.dropout(x, 1.5),
    "dropout: no probability": lambda x: F.dropout(x, "half"),
    "gelu: by position": lambda x: F.gelu(x, "tanh"),
    "gelu: approximation": lambda x: F.gelu(x, approximate="best"),
    "batch_norm: one dimension": lambda x: F.batch_norm(x[0], None, None, training=True),
    "batch_norm: one sample": lambda x: F.batch_norm(x[:1], None, None, training=True),
    "batch_norm: no statistics": lambda x: F.batch_norm(x, None, None),
    "batch_norm: half of the statistics": lambda x: F.batch_norm(x, BIAS.detach(), None, training=True),
    "batch_norm: short weight": lambda x: F.batch_norm(x, None, None, BIAS[:3], None, True),
    "batch_norm: long statistics": lambda x: F.batch_norm(x, torch.zeros(99), torch.ones(99), training=True),
    "layer_norm: shape": lambda x: F.layer_norm(x, (3,)),
    "layer_norm: short weight": lambda x: F.layer_norm(x, (WIDTH,), BIAS[:3]),
}


def step(call, context):
    torch.manual_seed(3)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with context, saved_tensors() as saved:
        out = call(x * 1)
    (grad,) = torch.autograd.grad(out.sum(), x, allow_unused=True)
    return (
        out.detach(),
        grad,
        sorted((tuple(tensor.shape), tensor.dtype) for tensor in saved if tensor.dtype.is_floating_point),
    )


@pytest.mark.parametrize("name", UNTOUCHED)
@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated", "ignore:Sparse invariant checks")
def test_other_calls_are_as_before(name):
    stock = step(UNTOUCHED[name], contextlib.nullcontext())
    before = torch.get_rng_state()
    ours = step(UNTOUCHED[name], compress_activations(CONFIG))
    torch.testing.assert_close(ours[:2], stock[:2], rtol=0, atol=0)
    assert ours[2] == stock[2] and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_torch(name):
    def error() -> BaseException:
        with pytest.raises(Exception) as caught:
            ERRORS[name](torch.randn(ROWS, WIDTH))
        return caught.value

    stock = error()
    with compress_activations(CONFIG):
        ours = error()
    assert type(ours) is type(stock) and str(ours) == str(stock)
    assert not _get_current_function_mode_stack()


def test_weights_that_are_computed_are_sketched_too():
    layer = torch.nn.utils.parametrizations.weight_norm(Linear(WIDTH, 4))
    x, seen = torch.randn(ROWS, WIDTH) + 1, torch.randn(ROWS, 4) + 1

    def grad() -> Tensor:
        grads = torch.autograd.grad((layer(x) * seen).sum(), list(layer.parameters()))
        return torch.cat([grad.flatten() for grad in grads])

    exact = grad()
    with compress_activations(CONFIG):
        assert_unbiased(grad, exact, draws=600)


def test_the_ledger_lists_what_is_not_known():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = Linear(WIDTH, WIDTH), ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.relu(self.linear(x * 1))).softmax(-1)

    model, x = Model(), torch.randn(ROWS, WIDTH)
    with compress_activations(CONFIG):
        report = memory_report(model, x)
    assert report.untouched() == {"tanh": ROWS * WIDTH * 4, "softmax": ROWS * WIDTH * 4}
    assert report.by_module() == {
        "(model)": 2 * ROWS * WIDTH * 4, "linear": CONFIG.saved_bytes(ROWS, WIDTH), "relu": ROWS * WIDTH // 8,
    }  # fmt: skip


class Calls(TorchFunctionMode):
    """Counts the calls of relu that reach it."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (F.relu, torch.relu, lean.relu)
        return func(*args, **(kwargs or {}))


def test_of_nested_modes_the_inner_one_decides():
    model, x = Sequential(Linear(WIDTH, WIDTH), ReLU(), Linear(WIDTH, 4)), torch.randn(ROWS, WIDTH)
    inner = RMMConfig(rate=0.5, center=False)

    def kept(*contexts) -> int:
        with contextlib.ExitStack() as stack, saved_tensors() as saved:
            for context in contexts:
                stack.enter_context(context)
            model(x)
        return sum(kept_storages(saved, besides=model.parameters()).values())

    alone = kept(compress_activations(inner))
    assert alone == 2 * inner.saved_bytes(ROWS, WIDTH) + ROWS * WIDTH // 8
    assert kept(compress_activations(CONFIG), compress_activations(inner)) == alone
    mode = compress_activations(inner)
    assert kept(mode, mode) == alone
    with Calls() as calls:
        kept(compress_activations(CONFIG), compress_activations(inner))
    assert calls.count == 0, "a call that was handled must not be handled again"


def test_a_mode_can_be_entered_again_and_an_exception_leaves_none_behind():
    mode, x = compress_activations(CONFIG), torch.randn(ROWS, WIDTH, requires_grad=True)
    for _ in range(2):
        with mode, saved_tensors() as saved:
            x.relu()
        assert [tensor.nbytes for tensor in saved] == [ROWS * WIDTH // 8]
        with pytest.raises(ZeroDivisionError), mode:
            x.relu() / (1 // 0)
        assert not _get_current_function_mode_stack()
        with saved_tensors() as saved:
            x.relu()
        assert [tensor.nbytes for tensor in saved] == [ROWS * WIDTH * 4]


def test_the_config_is_checked():
    assert compress_activations().config == RMMConfig()
    with pytest.raises(TypeError, match=r"'config' must be an RMMConfig \(got float\)"):
        compress_activations(0.1)
