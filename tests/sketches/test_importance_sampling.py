"""Importance sampling: unbiased whatever the norms are, as noisy as it says, and norm sampling where it has to be."""

import pytest
import torch

from rmm_gnn.sketches import ImportanceSamplingSketch, NormSamplingSketch
from tests.sketches.test_statistics import z_score

SPACE = 2**20


def heavy_tailed(num_rows=60):
    """X and Y of which few rows weigh much, and norms of Y as they were a little before."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num_rows, 3, generator=generator, dtype=torch.float64) + 1.0
    size = torch.randn(num_rows, 1, generator=generator, dtype=torch.float64).mul(1.5).exp()
    y = size * (1.0 + torch.randn(num_rows, 2, generator=generator, dtype=torch.float64))
    norms = y.norm(dim=1) * (0.5 + torch.rand(num_rows, generator=generator, dtype=torch.float64))
    return x, y, norms


def estimates_of(family, x, y, norms, sketch_size, num_seeds, mean=None):
    found = []
    centred = x if mean is None else x - mean
    for number in range(num_seeds):
        seed = torch.tensor(1_000_003 * number + 17)
        rows, factors = family.prepare(x, mean, seed, sketch_size, SPACE, norms)
        found.append((centred[rows] * factors.square().unsqueeze(1)).T @ y[rows])
    return torch.stack(found)


@pytest.mark.parametrize("top_share", [0.0, 0.3])
def test_a_gradient_that_lives_where_the_norms_were_zero_is_estimated_without_bias(top_share):
    """400 seeds, B = k = 2000: a tenth of the sketch is of the half of norm 0, where all of the gradient is now.

    Were a row of norm 0 never drawn, the mean of the estimates would be 0 in place of 1.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2000, 3, generator=generator, dtype=torch.float64) + 0.5
    y = torch.rand(2000, 2, generator=generator, dtype=torch.float64) + 0.5
    norms = y.norm(dim=1)
    norms[:1000], y[1000:] = 0.0, 0.0
    exact = x.T @ y
    family = ImportanceSamplingSketch(top_share=top_share)
    estimates = estimates_of(family, x, y, norms, 2000, 400)
    along = (estimates * exact).sum((1, 2)) / exact.square().sum()
    assert z_score(along, 1.0) < 5
    assert z_score(1.05 * along, 1.0) > 5
    assert z_score((estimates - exact).square().sum((1, 2)), family.variance(x, y, 2000, row_norms=norms)) < 5


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("top_share", "sketch_size"), [(0.0, 20), (0.3, 20), (0.9, 20), (0.9, 60)])
def test_the_variance_is_the_closed_form(top_share, sketch_size, centred):
    """1000 seeds; one for which no row is certain is rejected wherever some are."""
    x, y, norms = heavy_tailed()
    mean = x.mean(0) if centred else None
    family = ImportanceSamplingSketch(top_share=top_share)
    exact = (x if mean is None else x - mean).T @ y
    estimates = estimates_of(family, x, y, norms, sketch_size, 1000, mean)
    errors = (estimates - exact).square().sum((1, 2))
    closed = family.variance(x, y, sketch_size, mean=mean, row_norms=norms)
    assert z_score(errors, closed) < 5
    assert z_score(errors, 1.4 * closed) > 5
    along = (estimates * exact).sum((1, 2)) / exact.square().sum()
    assert z_score(along, 1.0) < 5
    num_certain = int(family.chances(x, mean, norms, sketch_size, SPACE).num_certain)
    assert (num_certain > 0) == (top_share > 0)
    if num_certain > 1:
        without = ImportanceSamplingSketch(top_share=0.0).variance(x, y, sketch_size, mean=mean, row_norms=norms)
        assert closed < without and z_score(errors, without) > 5


def test_every_probability_is_bounded_below():
    x, _, norms = heavy_tailed()
    norms[:30] = 0
    for top_share in (0.0, 0.5):
        family = ImportanceSamplingSketch(uniform_share=0.3, top_share=top_share)
        q, top, num_certain = family.chances(x, None, norms, 20, SPACE)
        certain = top[: int(num_certain)]
        drawn = torch.ones(60, dtype=torch.bool)
        drawn[certain] = False
        assert (q[certain] == 0).all() and (q[drawn] >= 0.3 / 60).all()
        torch.testing.assert_close(q.sum(), torch.ones((), dtype=torch.float64))


def test_certain_rows_are_the_heaviest_kept_once_as_they_are():
    x, _, norms = heavy_tailed()
    family = ImportanceSamplingSketch()
    _, top, num_certain = family.chances(x, None, norms, 20, SPACE)
    rows, factors = family.prepare(x, None, torch.tensor(5), 20, SPACE, norms)
    certain = rows[factors == 1.0]
    heaviest = (x.norm(dim=1) * norms).topk(int(num_certain)).indices
    assert 0 < int(num_certain) <= 10
    assert sorted(certain.tolist()) == sorted(top[: int(num_certain)].tolist()) == sorted(heaviest.tolist())
    assert not set(certain.tolist()) & set(rows[factors != 1.0].tolist())


@pytest.mark.parametrize("sketch_size", [2, 7, 20, 60])
def test_the_number_of_certain_rows_is_the_best_one(sketch_size):
    x, _, norms = heavy_tailed()
    weights = (x.norm(dim=1) * norms).sort(descending=True).values
    most = min(int(0.8 * sketch_size), sketch_size - 1)
    bounds = torch.stack([weights[c:].sum() ** 2 / (sketch_size - c) for c in range(most + 1)])
    found = ImportanceSamplingSketch(top_share=0.8).chances(x, None, norms, sketch_size, SPACE).num_certain
    assert int(found) == int(bounds.argmin())


def test_equal_weights_have_no_certain_rows_and_one_row_is_kept_as_it_is():
    family, ones = ImportanceSamplingSketch(), torch.ones(50)
    assert family.chances(torch.ones(50, 2), None, ones, 20, SPACE).num_certain == 0
    rows, factors = family.prepare(torch.ones(1, 2), None, torch.tensor(3), 1, SPACE, torch.ones(1))
    assert rows.tolist() == [0] and factors.tolist() == [1.0]


def test_few_rows_with_a_gradient_are_kept_exactly():
    """As in the last layer of a network whose loss reads the training nodes alone."""
    x, y, _ = heavy_tailed(200)
    y[20:] = 0
    for sketch_size in (41, 100):
        estimate = estimates_of(ImportanceSamplingSketch(), x, y, y.norm(dim=1), sketch_size, 1)[0]
        torch.testing.assert_close(estimate, x.T @ y)
        assert ImportanceSamplingSketch().variance(x, y, sketch_size, row_norms=y.norm(dim=1)) == 0


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1.0, 0.0])
def test_norms_that_do_not_serve_make_it_norm_sampling(value, center):
    x, y, norms = heavy_tailed()
    mean = x.mean(0) if center else None
    if value is None:
        norms = None
    elif value == 0.0:
        norms.zero_()
    else:
        norms[7] = value
    ours, plain = ImportanceSamplingSketch(), NormSamplingSketch(uniform_share=0.2)
    drawn = [family.prepare(x, mean, torch.tensor(9), 20, SPACE, norms) for family in (ours, plain)]
    (rows, factors), (plain_rows, plain_factors) = drawn
    order, plain_order = rows.argsort(stable=True), plain_rows.argsort(stable=True)
    assert torch.equal(rows[order], plain_rows[plain_order])
    torch.testing.assert_close(factors[order], plain_factors[plain_order])
    torch.testing.assert_close(ours.variance(x, y, 20, mean=mean, row_norms=norms), plain.variance(x, y, 20, mean=mean))


def test_last_steps_norms_beat_none_and_true_ones_beat_those():
    x, y, norms = heavy_tailed()
    noise = [ImportanceSamplingSketch().variance(x, y, 20, row_norms=given) for given in (y.norm(dim=1), norms, None)]
    assert noise[0] < noise[1] < noise[2] / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_norms_of_any_type_serve(dtype):
    x, y, norms = heavy_tailed()
    found = ImportanceSamplingSketch().variance(x, y, 20, row_norms=norms.to(dtype))
    expected = ImportanceSamplingSketch().variance(x, y, 20, row_norms=norms)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_the_scale_of_the_norms_does_not_matter(scale):
    x, _, norms = heavy_tailed()
    drawn = [ImportanceSamplingSketch().prepare(x, None, torch.tensor(1), 20, SPACE, s * norms) for s in (1.0, scale)]
    assert torch.equal(drawn[0][0], drawn[1][0])


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"uniform_share": 0.0}, ValueError, r"'uniform_share' must lie in \(0, 1\]"),
        ({"top_share": 1.0}, ValueError, r"'top_share' must lie in \[0, 1\) \(got 1.0\)"),
        ({"top_share": -0.1}, ValueError, r"'top_share' must lie in \[0, 1\)"),
        ({"top_share": "all"}, TypeError, r"'top_share' must be a number \(got str\)"),
    ],
)
def test_errors(settings, error, match):
    with pytest.raises(error, match=match):
        ImportanceSamplingSketch(**settings)
