"""Lean operators on inputs that nobody chose: output torch's, gradients within what the rounding of the code allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig
from rmm_gnn.functional import anchored_linear, rmm_linear
from tests.examples import examples
from tests.properties.matrices import DTYPES, SEEDS, shapes, tensors

CODECS = ["fp32", "bf16", "int8", "int4", "int4:group_size=3", "int8:scale=fp32"]
# A step of a code in shares of the range of what is kept, and what rounding outwards adds to it.
STEP = {"fp32": 2**-23, "bf16": 2**-8, "int8": 1.03 / 255 + 2**-7 / 255, "int4": 1.03 / 15 + 2**-7 / 15}


def step_of(codec: str, dtype: torch.dtype) -> float:
    step = STEP[codec.partition(":")[0]]
    return max(step, torch.finfo(dtype).eps) if codec in ("fp32", "bf16") else step


@st.composite
def inputs(draw, min_rows=0, max_dims=4, min_columns=0, dtypes=DTYPES):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes(min_rows, min_columns, max_dims))
    x = draw(tensors(shape, dtype, max_exponent=1))
    return x, draw(tensors(shape, dtype, max_exponent=0))


def run(function, x, grad_output):
    x = x.detach().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, x, grad_output)[0] if out.requires_grad else None


MASKED = {
    "relu": (lean.relu, F.relu),
    "leaky_relu": (lambda x: lean.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    "leaky_relu-negative": (lambda x: lean.leaky_relu(x, -0.5), lambda x: F.leaky_relu(x, -0.5)),
}


@examples(60)
@given(inputs(), st.sampled_from(sorted(MASKED)))
def test_relu_is_torch_bit_for_bit(tensors_, name):
    own, torchs = (run(function, *tensors_) for function in MASKED[name])
    for found, expected in zip(own, torchs, strict=True):
        assert torch.equal(found, expected) and torch.equal(found.signbit(), expected.signbit())


@examples(60)
@given(inputs(), st.floats(0.01, 0.99), SEEDS, st.booleans())
def test_dropout_has_one_mask_in_both_passes(tensors_, p, seed, with_relu):
    x, grad_output = tensors_
    function = (
        (lambda x: lean.relu_dropout(x, p, seed=seed)) if with_relu else (lambda x: lean.dropout(x, p, seed=seed))
    )
    out, grad = run(function, x, grad_output)
    ones, _ = run(lambda x: lean.dropout(x, p, seed=seed), torch.ones_like(x), grad_output)
    kept = ones != 0
    inner = F.relu(x) if with_relu else x
    assert not out[~kept].any() and not grad[~kept].any()
    scale = 1.0 / (1.0 - p)
    eps = 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(out[kept].double(), inner[kept].double() * scale, rtol=eps, atol=1e-7)
    expected = grad_output.double() * scale * ((x > 0) if with_relu else 1.0)
    torch.testing.assert_close(grad[kept].double(), expected[kept], rtol=eps, atol=1e-7)


SMOOTH = {
    "gelu": (lean.gelu, F.gelu, 1.3),
    "gelu_tanh": (
        lambda x, **rest: lean.gelu(x, "tanh", **rest), lambda x: F.gelu(x, approximate="tanh"), 1.3,
    ),
    "silu": (lean.silu, F.silu, 1.3),
    "elu": (lean.elu, F.elu, 1.0),
}  # fmt: skip


@examples(60)
@given(inputs(), st.sampled_from(sorted(SMOOTH)), st.sampled_from(CODECS), SEEDS)
def test_activations_are_off_by_a_step_of_their_derivative(tensors_, name, codec, seed):
    own, torchs, spread = SMOOTH[name]
    x, grad_output = tensors_
    event(f"{name}, {codec}")
    out, grad = run(lambda x: own(x, codec=codec, seed=seed), x, grad_output)
    assert torch.equal(out, torchs(x))
    _, exact = run(torchs, x.double(), grad_output.double())
    off = (spread * step_of(codec, x.dtype) + 4 * torch.finfo(x.dtype).eps) * grad_output.double().abs() + 1e-6
    assert ((grad.double() - exact).abs() <= off).all()


@examples(60)
@given(
    # Where few numbers are nearly equal, statistics in 8 or 11 bits leave nothing to compare.
    inputs(min_rows=2, max_dims=2, min_columns=2, dtypes=[torch.float32, torch.float64]),
    st.sampled_from(["layer_norm", "rms_norm", "batch_norm"]),
    st.sampled_from(CODECS), SEEDS,
)  # fmt: skip
def test_normalisation_is_off_by_a_step_of_its_input(tensors_, name, codec, seed):
    """x_hat is off by a step of its range at most, and so the gradients by what multiplies it."""
    x, grad_output = tensors_
    columns = x.shape[1]
    if name == "batch_norm" and x.shape[0] < 2:
        return
    gamma = torch.linspace(0.5, 2.0, columns).to(x.dtype)

    def function(module, gamma, **rest):
        if name == "batch_norm":
            return lambda x: module.batch_norm(x, None, None, gamma, training=True, **rest)
        return lambda x: getattr(module, name)(x, [columns], gamma, eps=1e-5, **rest)

    own_gamma, plain_gamma = gamma.clone().requires_grad_(), gamma.double().requires_grad_()
    given, plain = x.detach().requires_grad_(), x.double().requires_grad_()
    out = function(lean, own_gamma, codec=codec, seed=seed)(given)
    with torch.no_grad():
        reference = function(F, gamma)(x)
    torch.testing.assert_close(
        out.double(),
        reference.double(),
        rtol=8 * torch.finfo(x.dtype).eps,
        atol=1e-5 if x.dtype != torch.bfloat16 else 2e-2,
    )
    found = torch.autograd.grad(out, [given, own_gamma], grad_output)
    exact = torch.autograd.grad(function(F, plain_gamma)(plain), [plain, plain_gamma], grad_output.double())
    axis = 0 if name == "batch_norm" else 1
    wide = x.double() - (0.0 if name == "rms_norm" else x.double().mean(axis, keepdim=True))
    inverse = (wide.square().mean(axis, keepdim=True) + 1e-5).rsqrt()
    x_hat, scaled = wide * inverse, grad_output.double() * gamma.double()
    step = step_of(codec, x.dtype) * 2.0 * x_hat.abs().max(1, keepdim=True).values + 8 * torch.finfo(x.dtype).eps
    # Statistics of low-precision or nearly constant values are as torch forms them, in float32.
    shaky = 2**-20 * (x.double().abs().amax(axis, keepdim=True) * inverse).square() * (1 + x_hat.abs())
    step = step + (shaky if x.dtype != torch.float64 else 1e-9 * shaky)
    products = scaled.abs() * step
    mean_of = lambda t: t.mean(axis, keepdim=True)  # noqa: E731
    off = inverse * (step * mean_of(scaled.abs() * (x_hat.abs() + step)) + (x_hat.abs() + step) * mean_of(products))
    slack = (
        torch.finfo(x.dtype).eps * 8 * (exact[0].abs() + inverse * scaled.abs().amax())
        + 1e-5
        + inverse * shaky * scaled.abs().amax()
    )
    assert ((found[0].double() - exact[0]).abs() <= 2 * off + slack).all()
    off_gamma = (grad_output.double().abs() * step).sum(0)
    assert (
        (found[1].double() - exact[1]).abs()
        <= 2 * off_gamma + 8 * torch.finfo(x.dtype).eps * (grad_output.double().abs() * x_hat.abs()).sum(0) + 1e-5
    ).all()


@examples(30)
@given(inputs(min_rows=1, min_columns=1), st.integers(1, 5), SEEDS, st.booleans(), st.sampled_from([0.2, 1.0]))
def test_an_anchored_layer_is_exact_at_rate_one(tensors_, outputs, seed, second, rate):
    """Outputs and the gradients of x and x_0 always, that of W_0 too, and of W where all rows are kept."""
    x, x_0 = tensors_
    generator = torch.Generator().manual_seed(seed % 2**32)
    weights = [torch.randn(outputs, x.shape[-1], generator=generator).to(x.dtype) for _ in range(2 if second else 1)]
    grad_output = torch.randn(*x.shape[:-1], outputs, generator=generator).to(x.dtype)
    own = [tensor.detach().requires_grad_() for tensor in (x, weights[0], x_0, *weights[1:])]
    out = anchored_linear(*own, config=RMMConfig(rate=rate), seed=seed)
    plain = [tensor.detach().double().requires_grad_() for tensor in own]
    expected = F.linear(plain[0], plain[1]) + (F.linear(plain[2], plain[3]) if second else 0.0)
    eps, size = torch.finfo(x.dtype).eps, x.abs().amax().item() + x_0.abs().amax().item()
    torch.testing.assert_close(out.double(), expected, rtol=8 * eps, atol=16 * eps * size * x.shape[-1] ** 0.5 + 1e-6)
    wanted = own[:3] if second else own[:2]
    found = torch.autograd.grad(out, own if second else wanted, grad_output)
    exact = torch.autograd.grad(expected, plain if second else plain[:2], grad_output.double())
    rows = x.reshape(-1, x.shape[-1]).shape[0]
    for number, (mine, other) in enumerate(zip(found, exact, strict=True)):
        if number == 1 and rate < 1.0:
            continue
        # The fit on x_0 is subtracted and added again: as large as x, with coefficients that x_0 may make larger.
        room = 64 * eps * (1.0 + size) * rows if number in (1, 3) else 16 * eps * (1.0 + other.abs().amax().item())
        if number == 1 and x.dtype == torch.float64:
            room += 1e-9
        torch.testing.assert_close(mine.double(), other, rtol=0.05 if number == 1 else 16 * eps, atol=room + 1e-6)


@examples(30)
@given(inputs(min_rows=1, min_columns=1), st.integers(1, 5), SEEDS, st.sampled_from(["int8", "int4", "bf16"]))
def test_a_code_of_x_is_off_by_a_step(tensors_, outputs, seed, codec):
    x, _ = tensors_
    generator = torch.Generator().manual_seed(seed % 2**32)
    weight = torch.randn(outputs, x.shape[-1], generator=generator).to(x.dtype).requires_grad_()
    grad_output = torch.randn(*x.shape[:-1], outputs, generator=generator).to(x.dtype)
    out = lean.shared_input_linear(x, weight, codec=codec, seed=seed)
    rows, y = x.reshape(-1, x.shape[-1]).double(), grad_output.reshape(-1, outputs).double()
    found = torch.autograd.grad(out, weight, grad_output)[0]
    step = step_of(codec, x.dtype) * (
        rows.amax(1) - rows.amin(1) if codec != "bf16" else rows.abs().amax(1)
    ) + 2**-7 / 15 * rows.abs().amax(1)
    off = (y.abs().T @ step).unsqueeze(1) + 16 * torch.finfo(x.dtype).eps * (y.abs().T @ rows.abs()) + 1e-6
    assert ((found.double() - y.T @ rows).abs() <= off).all()
    assert rmm_linear(x, weight, config=RMMConfig()).shape == out.shape
