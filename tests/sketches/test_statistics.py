"""Unbiasedness and variance of every family, by z-score at 5 sigma, each with a check that the test has power.

The samples are the same for all tests of a family: NUM_SEEDS seeds, B = 60 rows, k = 30, correlated X and Y so that
|X^T Y| is large against the noise and a wrong scale shows; for the noisier tensor products twice as many seeds, k = 48.
"""

from functools import cache

import pytest
import torch

from rmm_gnn.sketches import CountSketch, GaussianSketch, RademacherSketch
from rmm_gnn.sketches.moments import moments
from rmm_gnn.sketches.transforms import TRANSFORMS
from tests.sketches.cases import CASES, norms_for, state_of

NUM_SEEDS = 2000
NUM_ROWS, SKETCH_SIZE = 60, 30
FAMILY = pytest.mark.parametrize("name", CASES)


def correlated_data(num_rows=NUM_ROWS):
    generator = torch.Generator().manual_seed(1)
    common = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.5
    x = common * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = common * torch.tensor([1.5, 1.0], dtype=torch.float64)
    noise = torch.randn(num_rows, 5, generator=generator, dtype=torch.float64)
    return x + 0.3 * noise[:, :3], y + 0.3 * noise[:, 3:]


def estimates_of(family, x, y, sketch_size, num_seeds):
    """X^T S S^T Y for each of ``num_seeds`` seeds: [num_seeds, N, M]."""
    estimates, sketch_size = [], family.admissible_size(x.shape[0], sketch_size)
    for number in range(num_seeds):
        seed = torch.tensor(1_000_003 * number + 17)
        state = state_of(family, x, seed, sketch_size)
        s = family.to_dense(x.shape[0], sketch_size, seed, state=state, dtype=torch.float64)
        estimates.append((x.T @ s) @ (s.T @ y))
    return torch.stack(estimates)


def variance_of(family, x, y, sketch_size, mean=None):
    size = family.admissible_size(x.shape[0], sketch_size)
    return family.variance(x, y, size, mean=mean, row_norms=norms_for(family, x.shape[0]))


@cache
def samples(name):
    x, y = correlated_data()
    return x, y, estimates_of(CASES[name], x, y, size_for(name), 2 * NUM_SEEDS if on_a_grid(name) else NUM_SEEDS)


def on_a_grid(name):
    return (CASES[name].inner_rows or 1) > 1 if CASES[name].reads_shape else False


def size_for(name):
    return 48 if on_a_grid(name) else SKETCH_SIZE


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)


@FAMILY
def test_estimate_is_unbiased_and_a_wrong_scale_would_show(name):
    x, y, estimates = samples(name)
    exact = x.T @ y
    along = (estimates * exact).sum((1, 2)) / exact.square().sum()
    assert z_score(along, 1.0) < 5
    assert z_score(1.05 * along, 1.0) > 5
    # Every entry, not only the sum along the exact product.
    deviation = (estimates.mean(0) - exact).abs() / (estimates.std(0) / len(estimates) ** 0.5)
    assert deviation.max() < 5


@FAMILY
def test_variance_is_the_closed_form_and_a_wrong_one_would_show(name):
    x, y, estimates = samples(name)
    errors = (estimates - x.T @ y).square().sum((1, 2))
    closed = variance_of(CASES[name], x, y, size_for(name))
    assert closed is not None
    assert z_score(errors, closed) < 5
    assert z_score(errors, 1.25 * closed) > 5


@pytest.mark.parametrize(
    ("name", "num_rows", "sketch_size"),
    [("gaussian", 17, 5), ("rademacher", 17, 5), ("block_rademacher-7", 33, 11), ("row_sampling", 17, 5)]
    + [("row_sampling-replacement", 17, 5), ("norm_sampling", 17, 5), ("sors-dct", 5, 2), ("sors-dft", 16, 5)]
    + [("importance_sampling", 17, 5), ("importance_sampling", 17, 16), ("importance_sampling-no_top", 17, 5)],
)
def test_variance_at_awkward_sizes(name, num_rows, sketch_size):
    x, y = correlated_data(num_rows)
    errors = (estimates_of(CASES[name], x, y, sketch_size, 500) - x.T @ y).square().sum((1, 2))
    assert z_score(errors, variance_of(CASES[name], x, y, sketch_size)) < 5


@pytest.mark.parametrize(
    ("name", "num_rows", "sketch_size"),
    [("count_sketch", 5, 4), ("count_sketch", 7, 5), ("count_sketch", 33, 30), ("sors-hadamard", 17, 15)]
    + [("sors-hadamard", 17, 17)],
)
def test_unequal_buckets_and_padding_are_in_the_closed_form(name, num_rows, sketch_size):
    """The formula for equal buckets, (B - k)/((B - 1) k), is rejected where B is no multiple of k or is padded."""
    x, y = correlated_data(num_rows)
    errors = (estimates_of(CASES[name], x, y, sketch_size, 500) - x.T @ y).square().sum((1, 2))
    m = moments(x, y)
    equal_buckets = (m.a + m.c - 2 * m.d) * (num_rows - sketch_size) / ((num_rows - 1) * sketch_size)
    assert z_score(errors, variance_of(CASES[name], x, y, sketch_size)) < 5
    assert z_score(errors, equal_buckets) > 5


@pytest.mark.parametrize("transform", ["hadamard", "dct", "dft"])
def test_weights_of_the_transforms_are_exact(transform):
    """w_ij = P sum_p H_pi^2 H_pj^2, which the variance rests on, against the transform's own matrix."""
    for num_rows in (1, 2, 3, 4, 5, 8, 9, 16, 30, 45):
        transformed = TRANSFORMS[transform]
        length = transformed.length(num_rows)
        identity = torch.eye(length, dtype=torch.float64)
        squares = transformed.select(identity, torch.arange(length)).T.square()  # [p, i]
        pattern = transformed.pattern(length, identity.device)
        expected = torch.full((length, length), pattern.base, dtype=torch.float64)
        for sign, maps in ((0.5, pattern.plus), (-0.5, pattern.minus)):
            for target in maps:
                expected[torch.arange(length), target] += sign
        torch.testing.assert_close(length * squares.T @ squares, expected)


def test_the_papers_gaussian_variance_is_rejected():
    """Eq. (11) has (a - c)/k where (a + c)/k is right."""
    x, y, estimates = samples("gaussian")
    errors = (estimates - x.T @ y).square().sum((1, 2))
    m = moments(x, y)
    assert z_score(errors, (m.a - m.c) / SKETCH_SIZE) > 20
    assert z_score(errors, (m.a + m.c) / SKETCH_SIZE) < 5


def test_count_sketch_beats_dense_sketches_and_vanishes_at_full_size():
    x, y = correlated_data()
    for sketch_size in (1, 7, 25, 49):
        ours = CountSketch().variance(x, y, sketch_size)
        assert ours <= RademacherSketch().variance(x, y, sketch_size) <= GaussianSketch().variance(x, y, sketch_size)
    assert CountSketch().variance(x, y, NUM_ROWS) == 0


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("tile_bytes", [1, 2**12, 2**24])
def test_moments_agree_with_their_definition(centred, tile_bytes, monkeypatch):
    monkeypatch.setattr("rmm_gnn.sketches.moments._TILE_BYTES", tile_bytes)
    x, y = torch.randn(2000, 3) + 5, torch.randn(2000, 2)
    mean = x.mean(0) if centred else None
    m = moments(x, y, mean)
    x, y = x.double() - (0 if mean is None else mean.double()), y.double()
    torch.testing.assert_close(m.a, x.square().sum() * y.square().sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(m.c, (x.T @ y).square().sum(), rtol=1e-4, atol=0)  # products of float32 numbers
    torch.testing.assert_close(m.d, (x.square().sum(1) * y.square().sum(1)).sum(), rtol=1e-6, atol=0)


@FAMILY
def test_variance_of_what_is_centred_needs_no_centred_copy(name):
    x, y = correlated_data()
    x = x + 3
    mean = x.mean(0)
    expected = variance_of(CASES[name], x - mean, y, SKETCH_SIZE)
    torch.testing.assert_close(variance_of(CASES[name], x, y, SKETCH_SIZE, mean=mean), expected)


def test_norm_sampling_keeps_rows_of_norm_zero_possible():
    """Half of the rows have norm 0 when sampled; probabilities stay above uniform_share / B."""
    x = torch.randn(40, 3, dtype=torch.float64)
    x[:20] = 0
    q = CASES["norm_sampling"].probabilities(x, None, 2**20)
    assert q.min() >= 0.1 / 40 * (1 - 1e-12)
    torch.testing.assert_close(q.sum(), torch.ones((), dtype=torch.float64))
    all_zero = CASES["norm_sampling"].probabilities(torch.zeros(5, 3), None, 2**20)
    torch.testing.assert_close(all_zero, torch.full((5,), 0.2, dtype=torch.float64))
