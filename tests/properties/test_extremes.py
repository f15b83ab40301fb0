"""Values at the ends of a type's range: near the largest, denormal, of mixed magnitude, constant, zeros."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.codecs import StochasticCodec
from tests.codecs.cases import CASES as CODECS
from tests.examples import examples
from tests.properties.matrices import DTYPES, SEEDS

CODEC = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def read_back(codec, matrix, seed=3):
    payload = codec.encode_matrix(matrix, torch.tensor(seed))
    return codec.decode(payload, 0, matrix.shape[0], matrix.shape[1], matrix.dtype)


def groups_of(codec, matrix):
    """Runs of columns that share an offset and a step."""
    size = getattr(codec, "group_size", None) or matrix.shape[1]
    return [slice(start, start + size) for start in range(0, matrix.shape[1], size)]


def widest_step(codec, part):
    """Step of each row of a group: its range over the levels, after offset and step were rounded outwards."""
    low, high = part.amin(1, keepdim=True).double(), part.amax(1, keepdim=True).double()
    relative = 2.0**-7 if codec.scale == "bf16" else 2.0**-22
    tiny = torch.finfo(torch.bfloat16 if codec.scale == "bf16" else torch.float32).smallest_normal * 2.0**-6
    return ((high - low) + relative * low.abs() + tiny) / codec.levels * (1 + relative) + tiny


@CODEC
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_near_the_largest_stay_numbers(codec, dtype):
    """A row whose range fits the type of its scale is read back as numbers, however large they are."""
    largest = torch.finfo(dtype).max
    if getattr(codec, "dtype", None) == torch.float16 and dtype != torch.float16:
        largest = torch.finfo(torch.float16).max
    elif dtype == torch.float64 and codec.name != "fp32":
        largest = torch.finfo(torch.float32).max  # what scales and casts hold
    matrix = torch.rand(6, 40, dtype=torch.float64).mul(0.9).to(dtype) * largest
    for sign in (1.0, -1.0):
        assert read_back(codec, matrix * sign).isfinite().all()


@CODEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_denormal_values_stay_within_a_step(codec, dtype):
    if codec.name == "fp16":
        return  # it rounds them to 0, the nearest of its numbers
    matrix = torch.randn(30, 13, dtype=torch.float64).mul(1e-39).to(dtype)
    found = read_back(codec, matrix)
    if isinstance(codec, StochasticCodec):
        for part in groups_of(codec, matrix):
            step = widest_step(codec, matrix[:, part])
            assert ((found[:, part].double() - matrix[:, part].double()).abs() <= step).all()
        if codec.bits == 8:
            assert found.unique().numel() > 50  # they did not all become one number
    else:
        torch.testing.assert_close(found, matrix, rtol=0.0, atol=1e-40)


@CODEC
def test_zeros_of_either_sign_and_constants(codec):
    for value in (0.0, -0.0, 1.0, -(2.0**-100) if codec.name != "fp16" else -(2.0**-10)):
        matrix = torch.full((4, 9), value)
        assert torch.equal(read_back(codec, matrix), matrix)
    mixed = torch.tensor([[0.0, -0.0, 1.0, -1.0]]).repeat(3, 4)
    assert read_back(codec, mixed).abs().max() <= 1.02


@CODEC
def test_a_huge_value_does_not_touch_other_rows(codec):
    matrix = torch.randn(5, 16)
    clean = read_back(codec, matrix)
    matrix[2, 3] = 6e4
    found = read_back(codec, matrix)
    assert torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]]) and found.isfinite().all()


@examples(60)
@given(
    st.sampled_from(sorted(name for name in CODECS if name.startswith("int"))), st.sampled_from(DTYPES), SEEDS,
    st.integers(1, 30), st.integers(1, 70), st.lists(st.integers(-40, 30), min_size=1, max_size=8),
)  # fmt: skip
def test_read_back_lies_within_a_step(name, dtype, seed, rows, columns, exponents):
    """Rows of mixed magnitude, between 1e-40 and 1e30 and of both signs."""
    codec = CODECS[name]
    generator = torch.Generator().manual_seed(seed % 2**32)
    scale = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    scale = scale[torch.randint(len(exponents), (rows, columns), generator=generator)]
    matrix = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale).to(dtype)
    matrix = matrix.nan_to_num(posinf=6e4, neginf=-6e4) if dtype == torch.float16 else matrix
    found, eps = read_back(codec, matrix, seed).double(), torch.finfo(dtype).eps
    for part in groups_of(codec, matrix):
        own = matrix[:, part].double()
        off = widest_step(codec, own) + eps * own.abs().amax(1, keepdim=True) + 1e-44
        if dtype == torch.float16:
            off += 2.0**-24
        assert ((found[:, part] - own).abs() <= off * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e15])
def test_a_layer_on_any_scale(dtype, scale):
    """At rate 1 the weight gradient is the exact one wherever the exact one is a number of the type."""
    if dtype == torch.float16:
        scale = {1e-38: 1e-7, 1e-20: 1e-5, 1e15: 1e3}[scale]
    x = (torch.randn(40, 6, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(3, 6).to(dtype).requires_grad_()
    grad_output = torch.randn(40, 3).to(dtype)
    exact = grad_output.double().T @ x.double()
    terms = grad_output.double().abs().T @ x.double().abs()
    rmm_linear(x, weight, config=RMMConfig(rate=1.0)).backward(grad_output)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * 64
    assert ((weight.grad.double() - exact).abs() <= 8 * torch.finfo(dtype).eps * terms + tiny).all()


FUNCTIONS = {
    "relu": (lambda x: lean.relu(x), lambda x: F.relu(x), 0.0),
    "leaky_relu": (lambda x: lean.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.1), 0.0),
    # The derivative is kept in a type or 255 steps of it: it lies in [-0.2, 1.2].
    "gelu": (lambda x: lean.gelu(x, codec="int8"), F.gelu, 0.02),
    "gelu_tanh": (lambda x: lean.gelu(x, "tanh", codec="int8"), lambda x: F.gelu(x, approximate="tanh"), 0.02),
    "silu": (lambda x: lean.silu(x, codec="int8"), F.silu, 0.02),
    "elu": (lambda x: lean.elu(x, codec="int8"), F.elu, 0.02),
}
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-5, 1.0, 30.0, 88.0, 89.0, 104.0, 1e4, 3e38, 6e4]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_of_special_values(name, dtype):
    """Output bit for bit torch's; gradient torch's in float64 to within a step of what is kept."""
    own, torchs, step = FUNCTIONS[name]
    values = torch.tensor([*SPECIAL, *(-value for value in SPECIAL)], dtype=torch.float64).to(dtype)
    values = values[values.isfinite()].reshape(1, -1)
    x, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
    out, expected = own(x), torchs(plain)
    assert torch.equal(out.nan_to_num(), expected.nan_to_num()) and torch.equal(out.signbit(), expected.signbit())
    out.sum().backward()
    reference = values.double().requires_grad_()
    torchs(reference).sum().backward()
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=2 * torch.finfo(dtype).eps, atol=step + 1e-6)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["constant", "zero", "denormal", "one huge", "large"])
def test_normalisation_of_special_rows(name, dtype, kind):
    """Rows, or columns, without any spread and with all of it in one entry: as torch has them, to within a step."""
    x = torch.randn(12, 12, dtype=torch.float64)
    if kind == "constant":
        x[:] = 3.0
    elif kind == "zero":
        x[:] = 0.0
    elif kind == "denormal":
        x *= 1e-7 if dtype == torch.float16 else 1e-39
    elif kind == "one huge":
        x[4, 7] = 1e3
    else:
        x *= 100.0 if dtype == torch.float16 else 1e6
    x, grad_output = x.to(dtype), torch.randn(12, 12).to(dtype)

    def run(function, x, **rest):
        gamma = torch.ones(12, dtype=x.dtype)
        if name == "batch_norm":
            return function.batch_norm(x, None, None, gamma, training=True, **rest)
        return getattr(function, name)(x, [12], gamma, eps=1e-5, **rest)

    given, plain = x.clone().requires_grad_(), x.double().requires_grad_()
    out = run(lean, given, codec="int8")
    torch.testing.assert_close(out, run(F, x), rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    out.backward(grad_output)
    run(F, plain).backward(grad_output.double())
    # Within the spread that one step of x_hat, a 255th of its range, has times what multiplies it.
    largest = plain.grad.abs().max().item()
    assert given.grad.isfinite().all()
    off = (given.grad.double() - plain.grad).abs().max().item()
    assert off <= (0.1 + 16 * torch.finfo(dtype).eps) * largest + (1e-2 if dtype != torch.float64 else 1e-6) * max(
        1.0, 1e2 if kind in ("constant", "zero", "denormal") else 1.0
    )
