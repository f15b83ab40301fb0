"""The weight gradient of ``rmm_linear`` through every codec: mean, variance, kept bytes, inf and nan."""

from functools import cache

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.codecs import get_codec, stochastic
from rmm_gnn.compression import CompressedActivation, compress, compress_like, weight_grad
from rmm_gnn.sketches import get_sketch
from tests.codecs.cases import CASES, STOCHASTIC

NUM_SEEDS = 500
NUM_ROWS = 40
CODEC = pytest.mark.parametrize("codec", CASES.values(), ids=CASES.keys())
ROUNDED_AT_RANDOM = pytest.mark.parametrize("codec", STOCHASTIC.values(), ids=STOCHASTIC.keys())
BITS = pytest.mark.parametrize("codec", ["int8", "int4", "int2", "int1"])
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def problem(dtype=torch.float64, num_rows=NUM_ROWS):
    """X and Y whose product is large against the noise, so that a wrong scale shows, and a weight."""
    generator = torch.Generator().manual_seed(1)
    common = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.5
    noise = torch.randn(num_rows, 11, generator=generator, dtype=torch.float64)
    x = common * torch.linspace(0.5, 2.0, 9, dtype=torch.float64) + 0.3 * noise[:, :9]
    grad_output = common * torch.tensor([1.5, -1.0], dtype=torch.float64) + 0.3 * noise[:, 9:]
    weight = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), grad_output.to(dtype)


def gradient(x, weight, grad_output, config, seed=5):
    weight = weight.detach().requires_grad_()
    rmm_linear(x, weight, config=config, seed=seed).backward(grad_output)
    return weight.grad


@cache
def gradients(codec, **settings):
    """Weight gradients [NUM_SEEDS, M, N] of the problem; settings are those of the config."""
    x, weight, grad_output = problem()
    config = RMMConfig(codec=codec, **settings)
    return torch.stack([gradient(x, weight, grad_output, config, 1_000_003 * n + 17) for n in range(NUM_SEEDS)])


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)


@pytest.mark.parametrize(
    ("codec", "settings"),
    [(codec, {"rate": 1.0, "center": False}) for codec in ("int8", "int4", "int2", "int1")]
    + [(codec, {"rate": 0.5, "center": True}) for codec in ("int8", "int2", "int1")]
    + [("int1", {"rate": 0.5, "center": True, "sketch": "gaussian"})],
)
def test_mean_over_seeds_is_the_exact_gradient_and_5_percent_more_would_show(codec, settings):
    x, _, grad_output = problem()
    estimates, exact = gradients(codec, **settings), grad_output.T @ x
    along = (estimates * exact).sum((1, 2)) / exact.square().sum()
    assert z_score(along, 1.0) < 5
    assert z_score(1.05 * along, 1.0) > 5
    deviation = (estimates.mean(0) - exact).abs() / (estimates.std(0) / NUM_SEEDS**0.5)
    assert deviation.max() < 5


@BITS
def test_variance_at_full_rate_is_that_of_the_rounding(codec):
    """At rate 1 a count sketch is a signed permutation: its own variance is 0, and every row is that of x or of -x."""
    x, _, grad_output = problem()
    assert get_sketch("count_sketch").variance(x, grad_output, NUM_ROWS) == 0
    per_entry = (get_codec(codec).variance(x) + get_codec(codec).variance(-x)) / 2
    closed = (grad_output.square().sum(1) * per_entry.sum(1)).sum()
    errors = (gradients(codec, rate=1.0, center=False) - grad_output.T @ x).square().sum((1, 2))
    assert z_score(errors, closed) < 5
    assert z_score(errors, 1.25 * closed) > 5


@pytest.mark.parametrize(
    ("codec", "sketch"), [(codec, "count_sketch") for codec in ("int4", "int2", "int1")] + [("int1", "row_sampling")]
)
def test_variance_is_that_of_the_sketch_and_that_of_the_rounding(codec, sketch):
    """Rounding and S are independent: Var = Var[Y^T S S^T X] + E_S sum_p |(S^T Y)_p|^2 sum_j Var[(S^T X)_pj]."""
    x, _, grad_output = problem()
    family, size, added = get_sketch(sketch), NUM_ROWS - 4, []
    for number in range(NUM_SEEDS):
        seed = torch.tensor(1_000_003 * number + 17)
        per_entry = get_codec(codec).variance(family.apply(x, seed, size))
        added.append((family.apply(grad_output, seed, size).square().sum(1) * per_entry.sum(1)).sum())
    own, added = family.variance(x, grad_output, size), torch.stack(added)
    estimates = gradients(codec, size=size, center=False, sketch=sketch)
    errors = (estimates - grad_output.T @ x).square().sum((1, 2))
    assert z_score(errors - added, own) < 5
    assert z_score(errors - 1.3 * added, 1.3 * own) > 5
    if codec == "int1":  # where rounding is a large part of it, leaving it out shows
        assert z_score(errors, own) > 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_gradients_are_right_on_average(dtype):
    x, weight, grad_output = problem(dtype)
    exact = grad_output.double().T @ x.double()
    config = RMMConfig(rate=1.0, center=False, codec="int2")
    estimates = torch.stack([gradient(x, weight, grad_output, config, n) for n in range(300)]).double()
    along = (estimates * exact).sum((1, 2)) / exact.square().sum()
    # The gradient itself is rounded to nearest ``dtype``: by 2^-12 at most, on average over its 18 entries.
    assert abs(along.mean() - 1) < 5 * along.std() / len(along) ** 0.5 + 2.0**-12
    assert abs(1.05 * along.mean() - 1) > 5 * along.std() / len(along) ** 0.5 + 2.0**-12


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (33, 3), (7, 129)])
@CODEC
def test_gradient_is_that_of_the_decoded_sketch(codec, shape):
    """Exactly: (S^T Y)^T decode(encode(S^T X))."""
    x, weight, grad_output = torch.randn(shape).double(), torch.randn(2, shape[1]).double(), torch.randn(shape[0], 2)
    grad_output, seed = grad_output.double(), torch.tensor(5)
    config = RMMConfig(rate=0.6, center=False, codec=codec)
    size, family = config.sketch_size(shape[0]), config.family
    x_sketch = family.apply(x, seed, size)
    decoded = codec.decode(codec.encode_matrix(x_sketch, seed), 0, size, shape[1], torch.float64)
    expected = family.apply(grad_output, seed, size).T @ decoded
    torch.testing.assert_close(gradient(x, weight, grad_output, config), expected)


@CODEC
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(40, 9), (63, 1), (7, 129), (1, 64)])
def test_saved_bytes_equal_the_formula(codec, center, shape):
    for dtype in DTYPES:
        x, weight = torch.randn(shape).to(dtype), torch.randn(2, shape[1]).to(dtype).requires_grad_()
        for sketch in ("count_sketch", "norm_sampling"):
            config = RMMConfig(rate=0.3, sketch=sketch, center=center, codec=codec)
            storages = {}

            def pack(tensor, storages=storages):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with saved_tensors_hooks(pack, lambda tensor: tensor):
                rmm_linear(x, weight, config=config)
            size = config.sketch_size(shape[0])
            expected = codec.num_bytes(size, shape[1], dtype) + 8
            expected += shape[1] * (8 if dtype == torch.float64 else 4) if center else 0
            state = config.family.empty_state(shape[0], size, dtype, torch.device("meta"))
            expected += sum(tensor.nbytes for tensor in state)
            assert sum(storages.values()) == config.saved_bytes(*shape, dtype) == expected


@CODEC
def test_traced_shapes_are_the_real_ones_and_come_apart_again(codec):
    x = torch.randn(37, 5)
    for center in (True, False):
        for sketch in ("count_sketch", "norm_sampling"):
            config = RMMConfig(rate=0.3, sketch=sketch, center=center, codec=codec)
            real = compress(x, config, torch.tensor(1))
            traced = compress_like(x.to("meta"), config)
            for part in (real, traced):
                again = CompressedActivation.from_list(part.to_list(), config)
                assert [t.shape for t in again.to_list()] == [t.shape for t in part.to_list()]
                assert len(again.payload) == codec.num_tensors and (again.mean is None) == (not center)
                assert len(again.state) == len(part.state)
            assert [(t.shape, t.dtype) for t in real.to_list()] == [(t.shape, t.dtype) for t in traced.to_list()]


@ROUNDED_AT_RANDOM
@pytest.mark.parametrize("sketch", ["count_sketch", "row_sampling"])
def test_blocks_of_any_size_give_the_same_storage_and_gradient(codec, sketch, monkeypatch):
    """A sketch coded whole, in blocks of its rows (a small workspace), and in small tiles of either."""
    x, _, grad_output = problem(torch.float64)
    seed, results = torch.tensor(3), []
    for workspace_bytes, tile in ((2**26, 1 << 17), (2**26, 1), (2**26, 25), (2**8, 1 << 17), (2**8, 20)):
        monkeypatch.setattr(stochastic, "_TILE", tile)
        config = RMMConfig(rate=0.8, sketch=sketch, center=False, codec=codec, workspace_bytes=workspace_bytes)
        kept = compress(x, config, seed)
        results.append((*kept.payload, weight_grad(grad_output, kept, config, seed, num_columns=9, dtype=x.dtype)[0]))
    for codes, scales, total in results:
        assert torch.equal(codes, results[0][0]) and torch.equal(scales, results[0][1])
        torch.testing.assert_close(total, results[0][2])


@CODEC
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("sketch", ["count_sketch", "gaussian", "sors", "row_sampling", "norm_sampling"])
def test_inf_and_nan_in_x_reach_the_gradient(codec, center, sketch):
    config = RMMConfig(rate=0.2, sketch=sketch, center=center, codec=codec)
    for dtype, value in ((torch.float32, float("inf")), (torch.bfloat16, -float("inf")), (torch.float64, float("nan"))):
        x, weight, grad_output = problem(dtype)
        x[13, 4] = value
        assert not gradient(x, weight, grad_output, config)[:, 4].isfinite().any()


@ROUNDED_AT_RANDOM
def test_inf_in_one_row_of_x_spoils_the_columns_of_its_group_and_no_other(codec):
    x, weight, grad_output = problem()
    x[13, 8] = float("inf")
    finite = gradient(x, weight, grad_output, RMMConfig(rate=0.5, center=False, codec=codec)).isfinite()
    size = codec.group_size or 9
    expected = torch.arange(9) // size != 8 // size
    assert torch.equal(finite, expected.expand(2, 9))


@CODEC
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("sketch", ["count_sketch", "gaussian", "row_sampling"])
def test_inf_and_nan_in_grad_output_reach_the_gradient(codec, center, sketch):
    config = RMMConfig(rate=0.2, sketch=sketch, center=center, codec=codec)
    for value in (float("inf"), float("nan")):
        x, weight, grad_output = problem()
        grad_output[13, 1] = value
        result = gradient(x, weight, grad_output, config)
        assert not result[1].isfinite().any() and result[0].isfinite().all()


@ROUNDED_AT_RANDOM
def test_same_seed_same_gradient_other_seed_another(codec):
    x, weight, grad_output = problem()
    config = RMMConfig(rate=1.0, center=False, codec=codec)
    assert torch.equal(gradient(x, weight, grad_output, config), gradient(x, weight, grad_output, config))
    assert not torch.equal(gradient(x, weight, grad_output, config), gradient(x, weight, grad_output, config, seed=6))


@CODEC
def test_x_may_change_after_the_call(codec):
    x, weight, grad_output = problem()
    config = RMMConfig(rate=1.0, codec=codec, center=False)
    expected = gradient(x, weight, grad_output, config)
    weight = weight.requires_grad_()
    out = rmm_linear(x, weight, config=config, seed=5)
    x.zero_()
    out.backward(grad_output)
    assert torch.equal(weight.grad, expected)


@CODEC
def test_gradients_of_x_and_bias_are_exact_whatever_is_kept(codec):
    x, weight, grad_output = problem()
    x.requires_grad_()
    weight.requires_grad_()
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    out = rmm_linear(x, weight, bias, config=RMMConfig(rate=0.1, codec=codec))
    out.backward(grad_output)
    assert torch.equal(out, torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(x.grad, grad_output @ weight)
    torch.testing.assert_close(bias.grad, grad_output.sum(0))


@CODEC
def test_retained_graph_gives_the_same_gradient_twice(codec):
    x, weight, grad_output = problem()
    weight.requires_grad_()
    out = rmm_linear(x, weight, config=RMMConfig(rate=0.4, codec=codec))
    first, second = (torch.autograd.grad(out, weight, grad_output, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
