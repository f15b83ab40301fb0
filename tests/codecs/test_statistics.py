"""Unbiasedness, variance and independence of random rounding at 5 sigma, each with a check that the test has power.

Moments of single entries come from NUM_SEEDS seeds x COPIES copies of every row: two copies of a row share no rounding
of their own, so their errors are uncorrelated and n = NUM_SEEDS COPIES = 10 000.  Sums over a whole matrix, where
every covariance counts, come from MATRIX_SEEDS seeds.  All seeds are fixed.
"""

from functools import cache

import pytest
import torch

from rmm_gnn.codecs import StochasticCodec, stochastic
from rmm_gnn.kernels import native
from tests.codecs.cases import STOCHASTIC

NUM_SEEDS, COPIES = 200, 50
NUM_SAMPLES = NUM_SEEDS * COPIES
MATRIX_SEEDS = 1000
COLUMNS = 13
CODEC = pytest.mark.parametrize("name", STOCHASTIC)


@pytest.fixture
def faulty(monkeypatch):
    """Plain torch does the coding, whose parts can be replaced by wrong ones."""
    monkeypatch.setattr(native, "is_built", lambda: False)
    return monkeypatch


def rows_by_kind():
    """Rows [kinds, COLUMNS] that a codec may find hard, float32."""
    generator = torch.Generator().manual_seed(2)
    plain = torch.randn(COLUMNS, generator=generator)
    within = 2 * torch.rand(COLUMNS, generator=generator) - 1
    outlier = plain.clone()
    outlier[4] = 500.0
    return {
        "plain": plain,
        "positive": plain.abs() + 0.01,
        "negative": -plain.abs() - 0.01,
        "large, small range": 1000 + 0.1 * within,
        "large, small range, negative": -1000 + 0.1 * within,
        "one outlier": outlier,
        "two values": (plain > 0).float(),
        "constant, a bfloat16": torch.full((COLUMNS,), 2.5),
        "constant, no bfloat16": torch.full((COLUMNS,), 0.1),
        "constant, negative": torch.full((COLUMNS,), -0.3),
        "near zero": 1e-30 * plain,
        "smallest normal": 2.0**-126 * (1 + plain.abs()),
        "denormal": 1e-39 * within,
        "huge": 1e38 * within,
        "zero": torch.zeros(COLUMNS),
    }


def errors_of(codec, matrix, num_seeds):
    """Read back less the value, for each of ``num_seeds`` seeds: [num_seeds, B, N], float64."""
    errors = []
    for number in range(num_seeds):
        payload = codec.encode_matrix(matrix, torch.tensor(1_000_003 * number + 17))
        errors.append(codec.decode(payload, 0, *matrix.shape, torch.float64) - matrix.double())
    return torch.stack(errors)


def grid_of(codec, matrix):
    """Step [B, N] of every entry as stored, and the share f [B, N] of it by which the value lies above the grid."""
    scales = codec.encode_matrix(matrix, torch.tensor(0))[1].double()
    size = codec.group_size or matrix.shape[1]
    halves = scales.split(scales.shape[1] // 2, dim=1)
    offset, step = (half.repeat_interleave(size, 1)[:, : matrix.shape[1]] for half in halves)
    # A step of 0 has one grid point; 1 stands for it, so that f = 0 there.
    return step, ((matrix.double() - offset) / torch.where(step > 0, step, 1.0)).frac()


@cache
def samples(name):
    """Errors in steps [NUM_SAMPLES, kinds, COLUMNS], f and step of the rows of ``rows_by_kind``."""
    matrix = torch.stack(list(rows_by_kind().values()))
    copies = matrix.repeat_interleave(COPIES, 0)
    errors = errors_of(STOCHASTIC[name], copies, NUM_SEEDS)
    errors = errors.view(NUM_SEEDS, len(matrix), COPIES, COLUMNS).transpose(1, 2).flatten(0, 1)
    step, share = grid_of(STOCHASTIC[name], matrix)
    return errors / torch.where(step > 0, step, 1.0), share, step


def z_scores(errors, share, direction=None):
    """|mean error| of every entry, or of every row along a direction, in units of the closed-form standard error.

    1/n beside f (1 - f): an entry that leaves its grid point once in n samples is Poisson, not normal.
    """
    variance = (share * (1 - share) + 1 / len(errors)) / len(errors)
    if direction is None:
        return errors.mean(0).abs() / variance.sqrt()
    return (errors.mean(0) @ direction).abs() / (variance @ direction.square()).sqrt()


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)


@CODEC
def test_every_entry_of_every_kind_of_row_is_unbiased_and_5_percent_of_a_step_would_show(name):
    errors, share, step = samples(name)
    for kind, scores in zip(rows_by_kind(), z_scores(errors, share), strict=True):
        assert scores.max() < 5, kind
    rounded = step > 0
    assert rounded.any()
    for shift in (0.05, -0.05):
        assert z_scores(errors + shift, share)[rounded].min() > 5


@CODEC
def test_rows_are_unbiased_along_a_direction_and_5_percent_of_a_step_would_show(name):
    errors, share, step = samples(name)
    rounded = (step > 0).all(1)
    directions = torch.randn(6, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for direction in (torch.ones(COLUMNS, dtype=torch.float64), *directions):
        for kind, score in zip(rows_by_kind(), z_scores(errors, share, direction), strict=True):
            assert score < 5, kind
        assert z_scores(errors + 0.05 * direction.sign(), share, direction)[rounded].min() > 5


@CODEC
def test_variance_of_every_entry_is_the_closed_form_and_a_wrong_one_would_show(name):
    errors, share, _ = samples(name)
    closed = share * (1 - share)
    # The variance of a squared error is f (1 - f) (1 - 2 f)^2; 1/n for entries that hardly ever move, as above.
    spread = ((closed * (1 - 2 * share).square() + 1 / NUM_SAMPLES) / NUM_SAMPLES).sqrt()
    measured = errors.square().mean(0)
    assert ((measured - closed).abs() / spread).max() < 5
    assert ((measured - 1.1 * closed).abs() / spread)[closed > 0.2].min() > 5
    # Whole rows: entries are independent in pairs, so their squared errors are as well.
    total, total_spread = closed.sum(1), spread.square().sum(1).sqrt()
    assert ((measured.sum(1) - total).abs() / total_spread).max() < 5
    moving = total > 0.2
    assert moving.sum() >= 5
    assert ((measured.sum(1) - 1.25 * total).abs() / total_spread)[moving].min() > 5


@CODEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_method_is_the_closed_form(name, dtype):
    """s^2 f (1 - f) with the step as stored; in float32, f is known to a share 2^-23 of its number of steps."""
    codec = STOCHASTIC[name]
    rows = rows_by_kind()
    for kind in ("huge", "denormal", "near zero", "smallest normal"):  # s^2 leaves the range of float32
        del rows[kind]
    matrix = torch.stack(list(rows.values())).to(dtype)
    step, share = grid_of(codec, matrix)
    variance = codec.variance(matrix)
    assert variance.dtype == dtype and variance.shape == matrix.shape
    expected = step.square() * share * (1 - share)
    error = (variance.double() - expected).abs()
    assert (error <= step.square() * (codec.levels + 1) * torch.finfo(dtype).eps + 1e-6 * expected).all()
    # Low-precision inputs are values like any other, and the variance of those is known in float32.
    half = codec.variance(matrix.to(torch.bfloat16))
    assert half.dtype == torch.float32 and torch.equal(half, codec.variance(matrix.to(torch.bfloat16).float()))


@CODEC
def test_constant_rows_are_exact_or_on_average_right(name):
    """2.5 is a bfloat16; 0.1 and -0.3 are not, and cost a variance unless the scales are float32."""
    errors, _, step = samples(name)
    kinds = list(rows_by_kind())
    assert not errors[:, kinds.index("constant, a bfloat16")].any() and not errors[:, kinds.index("zero")].any()
    for kind in ("constant, no bfloat16", "constant, negative"):
        row = kinds.index(kind)
        assert (step[row] > 0).all() == (STOCHASTIC[name].scale == "bf16")
        largest = step[row] * errors[:, row].abs().amax(0)
        assert (largest <= 0.3 * 2**-7).all()


@pytest.mark.parametrize(
    ("name", "direction", "kinds"),
    [
        ("int8", -torch.inf, ["large, small range", "large, small range, negative"]),
        ("int4-group7", -torch.inf, ["large, small range", "large, small range, negative"]),
        ("int2", -torch.inf, ["large, small range", "large, small range, negative"]),
        ("int1", -torch.inf, ["large, small range", "large, small range, negative"]),
        ("int8", torch.inf, ["plain", "positive", "negative", "one outlier"]),
    ],
)
def test_rounding_offset_or_step_to_nearest_would_show(name, direction, kinds, faulty):
    """Values then leave the range of the codes and are clamped, which is a bias."""
    directed = stochastic._round_directed

    def nearest(values, dtype, towards):
        return values.to(dtype) if towards == direction else directed(values, dtype, towards)

    faulty.setattr(stochastic, "_round_directed", nearest)
    matrix = torch.stack([rows_by_kind()[kind] for kind in kinds])
    errors = errors_of(STOCHASTIC[name], matrix.repeat_interleave(COPIES, 0), NUM_SEEDS)
    errors = errors.view(NUM_SEEDS, len(kinds), COPIES, COLUMNS).transpose(1, 2).flatten(0, 1)
    step, share = grid_of(STOCHASTIC[name], matrix)
    scores = z_scores(errors / torch.where(step > 0, step, 1.0), share.abs()).amax(1)
    # About half of the roundings go the harmless way.
    assert scores.max() > 20


def test_rounding_to_the_nearest_code_would_show(faulty):
    faulty.setattr(stochastic, "_uniforms", lambda seed, stream, start, stop: torch.full((stop - start,), 0.25))
    matrix = rows_by_kind()["plain"].expand(COPIES, COLUMNS)
    errors = errors_of(STOCHASTIC["int4"], matrix, 10)
    step, share = grid_of(STOCHASTIC["int4"], matrix)
    assert z_scores((errors / step).flatten(0, 1), share[0]).max() > 5


# ------ pairs of entries, and what is linear in the matrix


def matrix_and_gradient():
    """X [12, 10] whose entries move often enough to show a covariance, and Y [12, 3] with rows of unequal size."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(12, 10, generator=generator, dtype=torch.float64) + 0.5
    gradient = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    return matrix, gradient * torch.linspace(0.2, 2, 12, dtype=torch.float64).unsqueeze(1)


@cache
def matrix_errors(name):
    matrix, _ = matrix_and_gradient()
    return errors_of(STOCHASTIC[name], matrix, MATRIX_SEEDS)


def covariance_scores(errors, variance, step):
    """Scores sqrt(n) |correlation| of all pairs of entries [n, B, N] that move at all often, and pairs' places."""
    often = (variance > 0.04 * step.square()).flatten()
    places = torch.nonzero(often).flatten()
    scaled = (errors / variance.sqrt().clamp(min=1e-300)).flatten(1)[:, often]
    products = scaled.T @ scaled / len(errors)
    scores = products.fill_diagonal_(0).abs() * len(errors) ** 0.5
    rows, columns = places // errors.shape[2], places % errors.shape[2]
    return scores, rows.unsqueeze(1) == rows, columns.unsqueeze(1) == columns


@CODEC
def test_any_two_entries_are_uncorrelated(name):
    matrix, _ = matrix_and_gradient()
    variance, (step, _) = STOCHASTIC[name].variance(matrix), grid_of(STOCHASTIC[name], matrix)
    scores, same_row, same_column = covariance_scores(matrix_errors(name), variance, step)
    assert same_row.fill_diagonal_(False).sum() > 20 and same_column.fill_diagonal_(False).sum() > 20
    assert scores[same_row].max() < 5
    assert scores[same_column].max() < 5
    assert scores.max() < 5


@pytest.mark.parametrize("shared", [stochastic.Stream.ROUNDING, stochastic.Stream.ROUNDING_COLUMNS])
def test_randomness_shared_by_a_row_or_a_column_would_show(shared, faulty):
    """Each entry alone stays unbiased when one of the two hashes is left out; pairs in a line do not stay apart."""
    uniforms = stochastic._uniforms

    def one_stream(seed, stream, start, stop):
        return torch.zeros(stop - start) if stream == shared else uniforms(seed, stream, start, stop)

    faulty.setattr(stochastic, "_uniforms", one_stream)
    matrix, _ = matrix_and_gradient()
    codec = StochasticCodec(4)
    errors, variance, (step, share) = errors_of(codec, matrix, 500), codec.variance(matrix), grid_of(codec, matrix)
    assert z_scores(errors / step, share).max() < 5
    scores, same_row, same_column = covariance_scores(errors, variance, step)
    line = same_column if shared == stochastic.Stream.ROUNDING else same_row
    assert scores[line].max() > 10


def test_entries_of_two_blocks_of_rows_are_uncorrelated():
    """Blocks coded one after the other, as a sketch is, go on in the stream: the same block twice has other errors."""
    matrix, _ = matrix_and_gradient()
    codec, errors = StochasticCodec(4), []
    for number in range(500):
        payload = codec.empty(24, 10, matrix.dtype, matrix.device)
        for start in (0, 12):
            codec.encode(matrix, payload, start, torch.tensor(number))
        errors.append(codec.decode(payload, 0, 24, 10, torch.float64) - matrix.repeat(2, 1))
    variance, step = codec.variance(matrix).repeat(2, 1), grid_of(codec, matrix)[0].repeat(2, 1)
    assert covariance_scores(torch.stack(errors), variance, step)[0].max() < 5


@CODEC
def test_variance_of_a_weight_gradient_is_the_closed_form_and_a_wrong_one_would_show(name):
    r"""E |Y^T X^ - Y^T X|^2 = sum_i |y_i|^2 sum_j Var[x^_ij]: what pairwise independence gives."""
    matrix, gradient = matrix_and_gradient()
    products = gradient.T @ matrix_errors(name)
    closed = (gradient.square().sum(1) * STOCHASTIC[name].variance(matrix).sum(1)).sum()
    squares = products.square().sum((1, 2))
    assert z_score(squares, closed) < 5
    assert z_score(squares, 1.25 * closed) > 5
    # Unbiased as a whole, and in every entry.
    assert (products.mean(0).abs() / (products.std(0) / MATRIX_SEEDS**0.5)).max() < 5


@CODEC
def test_variance_of_any_linear_functional_is_the_closed_form(name):
    """Of one number sum_ij a_ij x^_ij: along a row, along a column, and over all entries."""
    matrix, _ = matrix_and_gradient()
    errors, variance = matrix_errors(name), STOCHASTIC[name].variance(matrix)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.zeros_like(matrix) for _ in range(4)]
    weights[0][3], weights[1][:, 4], weights[2][:] = 1.0, 1.0, 1.0
    weights[3].normal_(generator=generator)
    for weight in weights:
        values = (errors * weight).sum((1, 2))
        assert z_score(values, 0.0) < 5
        closed = (weight.square() * variance).sum()
        assert z_score(values.square(), closed) < 5
        assert z_score(values.square(), 1.5 * closed) > 5


@CODEC
def test_finer_settings_have_less_variance(name):
    codec = STOCHASTIC[name]
    matrix = torch.randn(200, 130, generator=torch.Generator().manual_seed(6))
    total = codec.variance(matrix).sum()
    if codec.bits < 8:
        assert StochasticCodec(2 * codec.bits, codec.group_size, codec.scale).variance(matrix).sum() < total / 4
    if codec.group_size in (7, 64):
        assert total < StochasticCodec(codec.bits, None, codec.scale).variance(matrix).sum()
