"""``rmm_linear`` and ``addmm`` on inputs and under configs that nobody chose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.codecs import StochasticCodec, get_codec
from rmm_gnn.control_variates import column_means
from rmm_gnn.functional import addmm
from tests.examples import examples
from tests.nn.recording import saved_tensors
from tests.properties.configs import configs
from tests.properties.matrices import DTYPES, SEEDS, shapes, tensors
from tests.sketches.cases import norms_for

EPS = {torch.float32: 2**-23, torch.float64: 2**-52, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@st.composite
def layers(draw, min_rows=0, min_columns=0, max_dims=4, dtypes=DTYPES):
    """x [*, N], weight [M, N], bias [M] or None and the gradient of the output [*, M], of any strides."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes(min_rows, min_columns, max_dims))
    rows = draw(st.integers(0 if min_columns == 0 else 1, 8))
    x = draw(tensors(shape, dtype, max_exponent=0 if dtype == torch.float16 else 2))
    weight, bias = draw(tensors((rows, shape[-1]), dtype, max_exponent=0)), None
    if draw(st.booleans()):
        bias = draw(tensors((rows,), dtype, max_exponent=0))
    grad_output = draw(tensors((*shape[:-1], rows), dtype, max_exponent=-1))
    return x, weight, bias, grad_output


def leaves(*given: Tensor | None) -> list[Tensor | None]:
    """The same tensors, of the same strides, as ones that have a gradient."""
    return [None if tensor is None else tensor.detach().requires_grad_() for tensor in given]


def flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.numel() else tensor.new_empty(0, tensor.shape[-1])


def norms(config: RMMConfig, x: Tensor) -> Tensor | None:
    return norms_for(config.family, x.shape[:-1].numel())


def gradients(call, given, grad_output):
    out = call(*given)
    found = torch.autograd.grad(out, [tensor for tensor in given if tensor is not None], grad_output)
    return out.detach(), found


def dense_estimate(x: Tensor, grad_output: Tensor, config: RMMConfig, seed: int) -> tuple[Tensor, Tensor]:
    """The estimate that ``to_dense`` defines, in float64, and how far rounding may lead each of its entries away."""
    rows, y = flat(x), flat(grad_output)
    config = config.for_shape(x.shape[:-1])
    family, size, drawn = config.family, config.sketch_size(rows.shape[0]), torch.tensor(seed)
    mean = column_means(rows, config.workspace_bytes) if config.center else None
    state = family.prepare(rows, mean, drawn, size, config.workspace_bytes, norms(config, x))
    dense = family.to_dense(rows.shape[0], size, drawn, state=state, dtype=torch.float64)
    rows, y = rows.double(), y.double()
    mean = torch.zeros(rows.shape[1], dtype=torch.float64) if mean is None else mean.double()
    sketch, y_sketch = dense.T @ (rows - mean), dense.T @ y
    # Sums are formed in the accumulation type, what is kept is rounded to its own.
    compute = 2**-50 if x.dtype == torch.float64 else 2**-21
    magnitude = dense.abs().T @ (rows.abs() + mean.abs())
    codec = get_codec(config.codec)
    if isinstance(codec, StochasticCodec):
        scales = codec.encode_matrix(sketch, drawn)[1].double()
        groups = scales.shape[1] // 2
        steps = scales[:, groups:].repeat_interleave(codec.group_size or max(1, rows.shape[1]), 1)[:, : rows.shape[1]]
        off = 1.02 * steps + 2**-7 * magnitude * compute + 1e-38
    else:
        kept = codec.dtype or x.dtype
        off = sketch.abs() * EPS[kept] + (2**-24 if kept == torch.float16 else 1e-38)
    off += compute * 4 * magnitude
    total = y_sketch.T @ sketch + torch.outer(y.sum(0), mean)
    y_magnitude = dense.abs().T @ y.abs()
    bound = y_sketch.abs().T @ off + compute * rows.shape[0] ** 0.5 * 4 * (y_magnitude.T @ magnitude)
    bound += compute * rows.shape[0] ** 0.5 * 4 * torch.outer(y.abs().sum(0), mean.abs())
    smallest = 2**-24 if x.dtype == torch.float16 else 1e-37
    return total, bound + total.abs() * 2 * EPS[x.dtype] + smallest


@examples(30)
@given(layers(), configs(), SEEDS, st.sampled_from([(True, True), (True, False), (False, True)]))
def test_all_but_the_weight_gradient_is_exact(layer, config, seed, needs):
    x, weight, bias, grad_output = layer
    event(f"{config.family.name}, {config.codec}")
    given, plain = leaves(x, weight, bias), leaves(x, weight, bias)
    for tensors_ in (given, plain):
        tensors_[0].requires_grad_(needs[0])
        tensors_[1].requires_grad_(needs[1])
    out = rmm_linear(*given, config=config, seed=seed, row_norms=norms(config, x))
    # Of an x whose leading dimensions do not lie in one run torch adds the bias in a second step, which rounds anew.
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x
    expected = F.linear(*plain)
    assert torch.equal(out, F.linear(rows, weight, bias).view(out.shape) if needs[1] else expected)
    assert out.shape == expected.shape and out.dtype == expected.dtype
    wanted = [index for index in (0, 2) if given[index] is not None and given[index].requires_grad]
    if not wanted:
        return
    found = torch.autograd.grad(out, [given[index] for index in wanted], grad_output)
    exact = torch.autograd.grad(expected, [plain[index] for index in wanted], grad_output)
    for own, other in zip(found, exact, strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
        largest = other.abs().max().item() if other.numel() else 0.0
        # Sums of the same products in another order: of M for x, of B for the bias.
        torch.testing.assert_close(own, other, rtol=4 * EPS[x.dtype], atol=4 * EPS[x.dtype] * largest + 1e-6)


@examples(30)
@given(layers(min_rows=1, min_columns=1), configs(), SEEDS)
def test_the_weight_gradient_is_the_one_that_to_dense_defines(layer, config, seed):
    x, weight, bias, grad_output = layer
    event(f"{config.family.name}, {config.codec}")
    given = leaves(x, weight, bias)
    call = lambda *tensors: rmm_linear(*tensors, config=config, seed=seed, row_norms=norms(config, x))  # noqa: E731
    _, found = gradients(call, given, grad_output)
    estimate, bound = dense_estimate(x, grad_output, config, seed)
    limit = torch.finfo(x.dtype).max if config.codec != "fp16" else torch.finfo(torch.float16).max
    if estimate.abs().max() >= 0.1 * limit:  # what is kept overflows, as documented
        return
    assert ((found[1].double() - estimate).abs() <= bound).all()


@examples(25)
@given(layers(min_rows=1, min_columns=1), st.data(), SEEDS)
def test_at_rate_one_a_count_sketch_is_exact(layer, data, seed):
    config = data.draw(configs(codecs=["fp32"], rate=1.0, sketch="count_sketch", min_size=None, max_size=None))
    x, weight, bias, grad_output = layer
    _, found = gradients(
        lambda *given: rmm_linear(*given, config=config, seed=seed), leaves(x, weight, bias), grad_output
    )
    exact = flat(grad_output).double().T @ flat(x).double()
    terms = flat(grad_output).double().abs().T @ flat(x).double().abs()
    rounding = (8 + flat(x).shape[0] ** 0.5) * EPS[x.dtype]
    smallest = 2**-24 if x.dtype == torch.float16 else 1e-37
    assert ((found[1].double() - exact).abs() <= rounding * terms + 1e-6 * EPS[x.dtype] + smallest).all()


@examples(30)
@given(layers(), configs(), SEEDS)
def test_what_is_kept_has_the_documented_bytes_and_nothing_of_x(layer, config, seed):
    x, weight, bias, _ = layer
    given = leaves(x, weight, bias)
    with saved_tensors() as saved:
        rmm_linear(*given, config=config, seed=seed, row_norms=norms(config, x))
    addresses = {tensor.untyped_storage().data_ptr() for tensor in given if tensor is not None and tensor.numel()}
    kept = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in saved
        if tensor.numel() and tensor.untyped_storage().data_ptr() != given[1].untyped_storage().data_ptr()
    }
    if x.numel() == 0:  # torch's own function: nothing is to be estimated
        assert sum(kept.values()) == 0
        return
    assert not addresses & set(kept)
    shaped = config.for_shape(x.shape[:-1])
    assert sum(kept.values()) == shaped.saved_bytes(x.shape[:-1].numel(), x.shape[-1], x.dtype)


@examples(25)
@given(layers(min_rows=1, min_columns=1), configs(), SEEDS, SEEDS)
def test_the_seed_decides(layer, config, seed, other):
    x, weight, bias, grad_output = layer

    def weight_grad(seed):
        call = lambda *given: rmm_linear(*given, config=config, seed=seed, row_norms=norms(config, x))  # noqa: E731
        return gradients(call, leaves(x, weight, bias), grad_output)[1][1]

    first = weight_grad(seed)
    weight_grad(other)
    assert torch.equal(first, weight_grad(torch.tensor(seed))) or first.isnan().any()


@examples(25)
@given(layers(min_rows=1, min_columns=1, max_dims=2), configs(), SEEDS, st.sampled_from([0.0, 1.0, -2.0, 0.5]))
def test_addmm_is_the_linear_layer_transposed(layer, config, seed, alpha):
    """The same sketch of the same rows: the gradient of the weight is ``alpha`` times that of the layer."""
    x, weight, bias, grad_output = layer
    bias = torch.zeros(weight.shape[0], dtype=x.dtype) if bias is None else bias
    if config.family.reads_row_norms or config.family.reads_shape:
        return
    given = leaves(bias, x, weight.t())
    out = addmm(*given, alpha=alpha, config=config, seed=seed)
    assert torch.equal(out, torch.addmm(bias, x, weight.t(), alpha=alpha))
    found = torch.autograd.grad(out, given, grad_output)
    linear = leaves(x, weight)
    other = torch.autograd.grad(rmm_linear(*linear, config=config, seed=seed), linear, grad_output)
    if not other[1].isfinite().all():
        return
    torch.testing.assert_close(found[2], (other[1] * alpha).t(), rtol=4 * EPS[x.dtype], atol=1e-30)
    torch.testing.assert_close(found[1], other[0] * alpha, rtol=4 * EPS[x.dtype], atol=1e-30)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (5, 0), (0, 0), (2, 0, 0)])
@pytest.mark.parametrize("outputs", [0, 3])
def test_no_entries(shape, outputs):
    x, weight = torch.randn(shape).requires_grad_(), torch.randn(outputs, shape[-1]).requires_grad_()
    out = rmm_linear(x, weight, config=RMMConfig(rate=0.5))
    assert torch.equal(out, F.linear(x, weight))
    out.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any() and weight.grad.shape == weight.shape
