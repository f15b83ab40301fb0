"""Arguments of the wrong kind: each is refused with the name of the argument, the rule and what was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, StochasticCodec

CONFIG = RMMConfig(rate=0.5)
CODED_X_0 = RMMConfig(rate=0.5, x0_codec="int4")


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


@dataclass(frozen=True)
class Call:
    """A function, the shapes of its tensors by name, and its other arguments."""

    function: Any
    tensors: dict[str, tuple[int, ...]]
    rest: dict[str, Any]

    def __call__(self, **changed: Any) -> Tensor:
        given = {name: tensor(*shape) for name, shape in self.tensors.items()}
        for name in ("running_mean", "running_var"):
            if name in given:
                given[name] = given[name].detach()
        return self.function(**{**given, **self.rest, **changed})

    @property
    def first(self) -> str:
        """The tensor that the others go with."""
        return next(iter(self.tensors))


NORM = {"x": (10, 4), "weight": (4,), "bias": (4,)}
BATCH = {"x": (10, 4), "running_mean": (4,), "running_var": (4,), "weight": (4,), "bias": (4,)}
LINEAR = {"x": (10, 4), "weight": (3, 4), "bias": (3,)}
ANCHORED = {"x": (10, 4), "weight": (3, 4), "x_0": (10, 4), "weight_0": (3, 4)}
CALLS = {
    "rmm_linear": Call(lean.rmm_linear, LINEAR, {"config": CONFIG}),
    "rmm_linear-importance": Call(
        lean.rmm_linear, {**LINEAR, "row_norms": (10,)}, {"config": RMMConfig(sketch="importance_sampling")}
    ),
    "addmm": Call(lean.addmm, {"mat1": (10, 4), "mat2": (4, 3), "input": (3,)}, {"config": CONFIG}),
    "shared_input_linear": Call(lean.shared_input_linear, {"x": (10, 4), "weight": (3, 4)}, {"codec": "int4"}),
    "anchored_linear": Call(lean.anchored_linear, ANCHORED, {"config": CONFIG}),
    "anchored_linear-int4": Call(lean.anchored_linear, ANCHORED, {"config": CODED_X_0}),
    "batch_norm": Call(lean.batch_norm, BATCH, {"training": True}),
    "batch_norm-sketched": Call(lean.batch_norm, BATCH, {"training": True, "rate": 0.5}),
    "layer_norm": Call(lean.layer_norm, NORM, {"normalized_shape": [4]}),
    "rms_norm": Call(lean.rms_norm, {"x": (10, 4), "weight": (4,)}, {"normalized_shape": [4]}),
    "relu": Call(lean.relu, {"x": (10, 4)}, {}),
    "leaky_relu": Call(lean.leaky_relu, {"x": (10, 4)}, {}),
    "gelu": Call(lean.gelu, {"x": (10, 4)}, {}),
    "silu": Call(lean.silu, {"x": (10, 4)}, {}),
    "elu": Call(lean.elu, {"x": (10, 4)}, {}),
    "dropout": Call(lean.dropout, {"x": (10, 4)}, {}),
    "relu_dropout": Call(lean.relu_dropout, {"x": (10, 4)}, {}),
}
EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@EVERY
def test_the_calls_themselves_are_right(call):
    assert call().sum().isfinite()


@EVERY
def test_what_is_no_tensor(call):
    for name in call.tensors:
        for value in ([1.0, 2.0], "x", 1.5, torch.Size([4])):
            with pytest.raises(TypeError, match=rf"'{name}' must be a tensor \(got {type(value).__name__}\)"):
                call(**{name: value})


@EVERY
def test_types_that_are_not_real_floating_point_ones(call):
    for name, shape in call.tensors.items():
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
            given = torch.ones(shape).to(dtype)
            if len(call.tensors) == 1:
                if not dtype.is_complex:
                    continue  # it cannot need a gradient: where none is needed torch's own function has the word
                given.requires_grad_()
            with pytest.raises(TypeError, match=rf"'{name}' must be of type float32, float64, bfloat16 or float16"):
                call(**{name: given})


@EVERY
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_layouts_that_are_not_dense(call):
    for name, shape in call.tensors.items():
        parts = [torch.ones(2, 4), torch.ones(3, 4)]
        for given in (
            torch.ones(shape).to_sparse(),
            torch.ones(shape if len(shape) == 2 else (1, *shape)).to_sparse_csr(),
            torch.nested.nested_tensor(parts),
            torch.nested.nested_tensor(parts, layout=torch.jagged),
        ):
            if len(call.tensors) == 1:
                given.requires_grad_()
            match = rf"'{name}' must be a dense tensor \(got (layout torch\.|a nested one)"
            with pytest.raises(TypeError, match=match):
                call(**{name: given})


@EVERY
def test_another_device(call):
    """A kernel for the CPU that is given a meta tensor, which has no address, may read what lies elsewhere."""
    first = torch.ones(call.tensors[call.first], device="meta")
    for name in [name for name in call.tensors if name != call.first]:
        with pytest.raises(ValueError, match=rf"'{name}' must be on the device of '\w+', cpu \(got meta\). Move one"):
            call(**{name: torch.ones(call.tensors[name], device="meta")})
        with pytest.raises(ValueError, match=rf"must be on the device of '{call.first}', meta \(got cpu\). Move one"):
            call(**{call.first: first})


def test_another_device_where_no_gradient_is_needed():
    x, meta = torch.ones(10, 4), torch.ones(4, device="meta")
    for arguments in ((meta, torch.ones(4)), (torch.ones(4), meta), (torch.ones(4), torch.ones(4), meta)):
        with pytest.raises(ValueError, match="must be on the device of 'x', cpu"):
            lean.batch_norm(x, *arguments)
    with pytest.raises(ValueError, match="'mat2' must be on the device of 'mat1', cpu"):
        lean.addmm(torch.ones(3), x, torch.ones(4, 3, device="meta"), config=CONFIG)
    with pytest.raises(ValueError, match="'weight' must be on the device of 'x', cpu"):
        lean.shared_input_linear(x, torch.ones(3, 4, device="meta"))


@EVERY
def test_backends_that_are_no_names(call):
    for value in (None, ["torch"], 1, True, 1j):
        match = rf"'backend' must be a name \(got {type(value).__name__}\). Choose one of auto"
        with pytest.raises(TypeError, match=match):
            if "config" in call.rest or "codec" in call.rest:
                RMMConfig(backend=value)
            else:
                call(backend=value)


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "batch_norm", "layer_norm", "rms_norm", "shared_input_linear"])
def test_codecs_that_are_neither_names_nor_codecs(name):
    for value in (None, ["int4"], 4, True, 1j, b"int4"):
        with pytest.raises(TypeError, match=rf"'codec' must be a name \(got {type(value).__name__}\). Choose one of"):
            CALLS[name](codec=value)
    assert CALLS[name](codec=StochasticCodec(4)).sum().isfinite()


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("addmm", "beta"), ("addmm", "alpha"), ("batch_norm", "momentum"), ("batch_norm", "eps"),
        ("layer_norm", "eps"), ("rms_norm", "eps"), ("leaky_relu", "negative_slope"), ("elu", "alpha"),
        ("dropout", "p"), ("relu_dropout", "p"), ("batch_norm", "rate"),
    ],
)  # fmt: skip
def test_what_is_no_number(name, argument):
    for value in ("0.1", [0.1], 1j, object):
        with pytest.raises(TypeError, match=rf"'{argument}' must be a number \(got {type(value).__name__}\)"):
            CALLS[name](**{argument: value})


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_what_is_no_shape(name):
    for value in (4, None, "4", 4.0):
        match = rf"'normalized_shape' must be a sequence of whole numbers \(got {value!r}\)"
        with pytest.raises(TypeError, match=match):
            CALLS[name](normalized_shape=value)
