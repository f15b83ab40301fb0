"""Our variance agrees with Monte Carlo over the real weight gradient; the paper's does not, by many sigma."""

from functools import cache

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn.anchor import fit_anchor, residual
from rmm_gnn.codecs import get_codec
from rmm_gnn.compression import compress, weight_grad
from rmm_gnn.diagnostics import (
    alignment,
    noise_parts,
    paper_ratio_bound,
    paper_rmm_variance,
    rmm_variance,
    sgd_variance,
    variance_ratio,
)
from rmm_gnn.diagnostics.variance import rounding_variance
from rmm_gnn.functional import anchored_linear
from rmm_gnn.sketches import CountSketch
from tests.sketches.cases import CASES

# The squared error of one draw spreads by 0.8 to 1.9 of its mean, so the mean of 600 is known to 3 to 8 %, and at 5
# sigma a formula shows that is wrong by a half.  A twentieth would take fifty thousand draws, a minute a family.
NUM_SEEDS = 600
WRONG = 1.5
NUM_ROWS, SIZE = 32, 8


def correlated(num_rows=NUM_ROWS, columns=(5, 4)):
    """X and Y that share a direction row by row, with a mean of X far from zero."""
    generator = torch.Generator().manual_seed(3)
    common = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.5
    x, y = (torch.randn(num_rows, n, generator=generator, dtype=torch.float64) for n in columns)
    return common + 0.3 * x + 0.5, common * torch.linspace(-1.0, 2.0, columns[1], dtype=torch.float64) + 0.3 * y


@cache
def errors_of(config, num_seeds=NUM_SEEDS):
    """|G - Y^T X|^2 of the layer's own estimate of the gradient, for every seed."""
    x, y = correlated()
    found = []
    for number in range(num_seeds):
        seed = torch.tensor(1_000_003 * number + 17)
        kept = compress(x, config, seed)
        estimate, _ = weight_grad(y, kept, config, seed, num_columns=x.shape[1], dtype=x.dtype)
        found.append((estimate - y.T @ x).square().sum())
    return torch.stack(found)


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", ["count_sketch", "gaussian", "row_sampling", "norm_sampling"])
def test_closed_form_is_what_the_layer_does_and_a_wrong_one_would_show(name, center):
    x, y = correlated()
    config = RMMConfig(size=SIZE, sketch=CASES[name], center=center)
    closed = rmm_variance(x, y, config)
    assert closed.dim() == 0 and closed.dtype == torch.float64
    assert z_score(errors_of(config), closed) < 5
    assert z_score(errors_of(config), WRONG * closed) > 5


@pytest.mark.parametrize(
    ("name", "codec"),
    [("count_sketch", "int1"), ("count_sketch", "int4:group_size=2"), ("gaussian", "int2"), ("norm_sampling", "int1")],
)
def test_rounding_adds_what_is_said(name, codec):
    x, y = correlated()
    config = RMMConfig(size=24, sketch=CASES[name], codec=codec)
    parts = noise_parts(x, y, config, num_draws=200)
    assert z_score(errors_of(config), parts.sketch + parts.rounding) < 5
    if codec == "int1" and name == "count_sketch":  # where rounding is most of it, another share of it shows
        assert z_score(errors_of(config), parts.sketch + 0.4 * parts.rounding) > 5
        assert z_score(errors_of(config), parts.sketch) > 9


def test_rounding_of_a_signed_permutation_has_a_closed_form():
    """At full rate a count sketch only permutes rows and flips them."""
    x, y = correlated()
    config = RMMConfig(rate=1.0, center=False, codec="int2")
    codec = get_codec(config.codec)
    parts = noise_parts(x, y, config, num_draws=200)
    both = (codec.variance(x) + codec.variance(-x)) / 2
    torch.testing.assert_close(parts.rounding, (y.square().sum(1) * both.sum(1)).sum(), rtol=0.02, atol=0)
    assert parts.sketch == 0


def test_a_sample_of_the_sketch_rows_is_right_on_average():
    x, y = correlated(4000)
    config = RMMConfig(rate=0.5, codec="int2")
    seed, mean = torch.tensor(5), x.mean(0)
    whole = rounding_variance(x, y, config, seed, mean)
    some = rounding_variance(x, y, config, seed, mean, max_rows=500)
    torch.testing.assert_close(some, whole, rtol=0.1, atol=0)
    assert some != whole


@pytest.mark.parametrize("codec", ["fp32", "int1"])
def test_norms_of_the_step_before_are_accounted_for(codec):
    x, y = correlated()
    norms = y.norm(dim=1) * torch.linspace(0.2, 2.0, NUM_ROWS, dtype=torch.float64)
    config = RMMConfig(size=24, sketch="importance_sampling", codec=codec)
    errors = []
    for number in range(600):
        seed = torch.tensor(1_000_003 * number + 17)
        kept = compress(x, config, seed, norms)
        estimate, _ = weight_grad(y, kept, config, seed, num_columns=x.shape[1], dtype=x.dtype)
        errors.append((estimate - y.T @ x).square().sum())
    closed = rmm_variance(x, y, config, num_draws=200, row_norms=norms)
    assert z_score(torch.stack(errors), closed) < 5
    assert z_score(torch.stack(errors), rmm_variance(x, y, config, num_draws=200)) > 5
    assert z_score(torch.stack(errors), WRONG * closed) > 5


def test_norms_are_refused_where_they_mean_nothing():
    x, y = correlated()
    with pytest.raises(ValueError, match="'row_norms' must come with a family that reads them"):
        rmm_variance(x, y, RMMConfig(), row_norms=y.norm(dim=1))
    with pytest.raises(ValueError, match="'row_norms' must have one number for each of the 32 rows"):
        noise_parts(x, y, RMMConfig(sketch="importance_sampling"), row_norms=torch.ones(3))


def test_tiles_change_nothing():
    x, y = correlated(300)
    for sketch in ("count_sketch", "norm_sampling", "sors"):
        whole = rmm_variance(x, y, RMMConfig(rate=0.5, codec="int4", sketch=sketch))
        tiled = rmm_variance(x, y, RMMConfig(rate=0.5, codec="int4", sketch=sketch, workspace_bytes=2048))
        torch.testing.assert_close(tiled, whole)


def test_sgd_variance_is_that_of_drawing_the_samples():
    """(9) is B^2 times the unbiased variance of a mean of B gradients of samples, trace of the covariance."""
    x, y = correlated()
    each = torch.einsum("bm,bn->bmn", y, x)
    covariance_trace = (each - each.mean(0)).square().sum() / (NUM_ROWS - 1)
    torch.testing.assert_close(sgd_variance(x, y), NUM_ROWS * covariance_trace)


def test_alignment_and_ratio():
    x, y = correlated()
    expected = (x.T @ y).square().sum() / (x.square().sum() * y.square().sum())
    torch.testing.assert_close(alignment(x, y), expected)
    config = RMMConfig(size=SIZE, codec="int4")
    torch.testing.assert_close(variance_ratio(x, y, config), rmm_variance(x, y, config) / sgd_variance(x, y))


def test_the_ratio_takes_what_the_variance_takes():
    x, y = correlated()
    norms = y.norm(dim=1) * torch.linspace(0.2, 2.0, NUM_ROWS, dtype=torch.float64)
    config = RMMConfig(size=SIZE, sketch="importance_sampling", codec="int1")
    given = {"row_norms": norms, "num_draws": 3, "seed": 5}
    found = variance_ratio(x, y, config, **given)
    torch.testing.assert_close(found, rmm_variance(x, y, config, **given) / sgd_variance(x, y))
    for name in given:
        assert found != variance_ratio(x, y, config, **{key: value for key, value in given.items() if key != name})


# Anchored layers.


def anchored():
    """The pair above, with an x_0 that explains most of X."""
    x, y = correlated()
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return x, y, (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).double()) @ mixing


@cache
def anchored_errors(config, num_seeds=NUM_SEEDS):
    """|G - Y^T X|^2 of the anchored layer's own estimate, for every seed of sketch and of rounding."""
    x, y, x_0 = anchored()
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype, requires_grad=True)
    found = []
    torch.manual_seed(11)
    for number in range(num_seeds):
        x_0 = x_0.clone()  # whose code is not shared with that of the draw before
        out = anchored_linear(x, weight, x_0, config=config, seed=1_000_003 * number + 17)
        found.append((torch.autograd.grad(out, weight, y)[0] - y.T @ x).square().sum())
    return torch.stack(found)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", ["count_sketch", "gaussian", "row_sampling", "block_rademacher"])
def test_closed_form_of_an_anchored_layer_is_what_it_does_and_a_wrong_one_would_show(name, center):
    x, y, x_0 = anchored()
    config = RMMConfig(size=SIZE, sketch=CASES[name], center=center)
    closed = rmm_variance(x, y, config, anchor=x_0)
    assert z_score(anchored_errors(config), closed) < 5
    assert z_score(anchored_errors(config), WRONG * closed) > 5
    assert z_score(anchored_errors(config), rmm_variance(x, y, config)) > 5
    assert closed < 0.5 * rmm_variance(x, y, config)


@pytest.mark.parametrize(
    ("codec", "x0_codec"), [("fp32", "int1"), ("fp32", "int2"), ("int1", "int1"), ("int1", "fp32")]
)
def test_rounding_of_sketch_and_anchor_add_what_is_said(codec, x0_codec):
    x, y, x_0 = anchored()
    config = RMMConfig(size=24, codec=codec, x0_codec=x0_codec)
    parts = noise_parts(x, y, config, num_draws=200, anchor=x_0)
    errors = anchored_errors(config)
    assert z_score(errors, parts.sketch + parts.rounding) < 5
    if "int1" in (codec, x0_codec):  # where rounding is most of it, another share of it shows
        assert z_score(errors, parts.sketch + 0.5 * parts.rounding) > 5


def test_an_anchors_closed_form_is_the_familys_of_the_residual():
    x, y, x_0 = anchored()
    config = RMMConfig(size=SIZE, x0_codec="bf16")
    rest = residual(x, fit_anchor(x, x_0.bfloat16(), center=True, workspace_bytes=2**20))
    expected = config.family.variance(rest, y, SIZE)
    torch.testing.assert_close(rmm_variance(x, y, config, anchor=x_0), expected)
    torch.testing.assert_close(variance_ratio(x, y, config, anchor=x_0), expected / sgd_variance(x, y))


# What the paper has wrong.


def test_the_papers_variance_is_rejected_where_x_and_y_are_correlated():
    """(11) has the wrong sign: (a - c)/k for (a + c)/k."""
    x, y = correlated()
    errors = errors_of(RMMConfig(size=SIZE, sketch="gaussian", center=False))
    assert z_score(errors, paper_rmm_variance(x, y, SIZE)) > 8
    assert z_score(errors, rmm_variance(x, y, RMMConfig(size=SIZE, sketch="gaussian", center=False))) < 5


def test_one_gaussian_number_squared():
    """x = y = 1, k = 1: the estimate is g^2, whose variance is 2; the paper's formula says 0."""
    x = y = torch.ones(1, 1)
    assert rmm_variance(x, y, RMMConfig(size=1, sketch="gaussian", center=False)) == 2
    assert paper_rmm_variance(x, y, 1) == 0


def test_the_papers_bound_breaks():
    """x_i = t_i u, y_i = v / t_i: the data bring no noise, the sketch does, and (12) is finite."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(32, 1, generator=generator, dtype=torch.float64) + 0.5
    x, y = t * torch.randn(1, 4, generator=generator).double(), torch.randn(1, 3, generator=generator).double() / t
    assert sgd_variance(x, y).abs() < 1e-12 * rmm_variance(x, y, RMMConfig(size=8, center=False))
    for config in (RMMConfig(size=8, sketch="gaussian", center=False), RMMConfig(size=8, center=False)):
        assert variance_ratio(x, y, config).abs() > 1e6 * paper_ratio_bound(x, y, 8)
    assert paper_ratio_bound(x, y, 8).isfinite()


def test_the_bound_is_the_papers_formula():
    x, y = correlated()
    alpha = alignment(x, y)
    torch.testing.assert_close(paper_ratio_bound(x, y, SIZE), (NUM_ROWS - 1) / SIZE * (alpha + 1) / alpha)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 1e-3])
def test_the_papers_example_of_an_unbounded_ratio(epsilon):
    """(14)-(16): X^T Y = 0, the data's variance stays 4, the sketch's grows as epsilon^-2."""
    x = torch.tensor([[1.0, 0.0], [-epsilon, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [1 / epsilon, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(sgd_variance(x, y), torch.tensor(4.0, dtype=torch.float64))
    growing = torch.tensor(2 + epsilon**2 + epsilon**-2, dtype=torch.float64)
    torch.testing.assert_close(paper_rmm_variance(x, y, 1), growing)  # where c = 0 both formulas agree
    torch.testing.assert_close(rmm_variance(x, y, RMMConfig(size=1, sketch="gaussian", center=False)), growing)
    assert alignment(x, y) == 0 and paper_ratio_bound(x, y, 1).isinf()


# Types and errors.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_measured_in_higher_precision(dtype):
    x, y = (tensor.to(dtype) for tensor in correlated())
    for measure in (
        sgd_variance,
        lambda x, y: rmm_variance(x, y, RMMConfig(size=SIZE)),
        lambda x, y: paper_rmm_variance(x, y, SIZE),
    ):
        found = measure(x, y)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, measure(x.double(), y.double()), rtol=1e-4, atol=0)


def test_a_family_without_closed_form_is_refused(monkeypatch):
    monkeypatch.setattr(CountSketch, "variance", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=r"'config' must have a sketch whose variance is known .*count_sketch"):
        rmm_variance(*correlated(), RMMConfig())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x, y: sgd_variance(x[:1], y[:1]), ValueError, r"'x' must have at least 2 rows \(got 1\)"),
        (lambda x, y: rmm_variance(x[:0], y[:0], RMMConfig()), ValueError, "'x' must have at least 1 rows"),
        (lambda x, y: alignment(x, y[1:]), ValueError, r"'grad_output' must have the rows of 'x', 32 \(got 31\)"),
        (lambda x, y: alignment(x[0], y), ValueError, "'x' must have two dimensions"),
        (lambda x, y: alignment(x, y.long()), TypeError, "'grad_output' must be of type float32"),
        (lambda x, y: paper_rmm_variance(x, y, 0), ValueError, "'sketch_size' must be at least 1"),
        (lambda x, y: paper_ratio_bound(x, y, 0.5), TypeError, "'sketch_size' must be a whole number"),
        (lambda x, y: rmm_variance(x, y, RMMConfig(), num_draws=0), ValueError, "'num_draws' must be at least 1"),
        (
            lambda x, y: rmm_variance(x, y, RMMConfig(), anchor=x[1:]),
            ValueError,
            r"'anchor' must have the shape and precision of 'x' \(got \(31, 5\) of torch.float64\)",
        ),
        (lambda x, y: rmm_variance(x, y, RMMConfig(), anchor=x[0]), ValueError, "'anchor' must have two dimensions"),
        (
            lambda x, y: rmm_variance(x, y, RMMConfig(sketch="norm_sampling"), anchor=x),
            ValueError,
            "'sketch' must be a family that does not depend on the data",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(*correlated())
