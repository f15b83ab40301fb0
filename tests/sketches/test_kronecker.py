"""The tensor-product sketch: its factors, its sizes, its variance term by term, and where the grid comes from."""

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import GradientProbe, RMMConfig, compress_activations, rmm_linear
from rmm_gnn.diagnostics import rmm_variance
from rmm_gnn.seeding import derived_seed
from rmm_gnn.sketches import CountSketch, KroneckerSketch
from rmm_gnn.sketches.blocks import pair_share
from rmm_gnn.sketches.grid import Grid, factor_sizes
from rmm_gnn.sketches.moments import moments
from tests.nn.recording import saved_tensors, storages
from tests.sketches.test_statistics import estimates_of, z_score

SEED = torch.tensor(11)
REDUCE = pytest.mark.parametrize("reduce", ["both", "outer", "inner"])


def sequences(outer, inner, num_rows=None):
    """X and Y whose rows are alike within a sequence, and alike at one place of all sequences."""
    generator = torch.Generator().manual_seed(outer)

    def features(columns):
        shapes = ((outer, inner, columns), (outer, 1, columns), (1, inner, columns), (1, 1, columns))
        parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return (parts[0] + parts[1] + 0.7 * parts[2] + 0.5 * parts[3]).flatten(0, 1)[:num_rows]

    return features(3), features(2)


@REDUCE
def test_it_is_the_product_of_two_count_sketches_with_seeds_of_their_own(reduce):
    family = KroneckerSketch(inner_rows=6, reduce=reduce)
    size = family.admissible_size(48, 12)
    grid = family.grid(48, size)
    seeds = [derived_seed(SEED, number) for number in (0, 1)]
    assert len({int(SEED), *map(int, seeds)}) == 3
    first = CountSketch().to_dense(8, grid.outer_size, seeds[0])
    second = CountSketch().to_dense(6, grid.inner_size, seeds[1])
    assert torch.equal(family.to_dense(48, size, SEED), torch.kron(first, second))
    # Summed over one side, then over the other.
    x = torch.randn(48, 5)
    by_hand = torch.einsum("bi,lj,bln->ijn", first, second, x.view(8, 6, 5)).flatten(0, 1)
    torch.testing.assert_close(family.apply(x, SEED, size), by_hand)


def test_the_factors_of_square_grids_are_unrelated():
    family = KroneckerSketch(inner_rows=32)
    same = [
        torch.equal(*(CountSketch().to_dense(32, 8, derived_seed(torch.tensor(seed), number)) for number in (0, 1)))
        for seed in range(50)
    ]
    assert not any(same) and family.grid(32 * 32, 64).outer_size == family.grid(32 * 32, 64).inner_size == 8


def test_one_inner_row_is_a_count_sketch_with_another_seed():
    for family in (KroneckerSketch(), KroneckerSketch(inner_rows=1)):
        s = family.to_dense(40, 7, SEED)
        expected = CountSketch().to_dense(40, 7, derived_seed(SEED, 0))
        assert torch.equal(s.abs(), expected.abs()) and (s == expected).all() | (s == -expected).all()


@pytest.mark.parametrize(("outer", "inner"), [(8, 16), (16, 8), (5, 7), (32, 128), (1, 9), (9, 1), (128, 3)])
@REDUCE
def test_sizes_fill_what_is_asked_for_and_stay_themselves(outer, inner, reduce):
    for size in range(1, outer * inner + 1, max(1, outer * inner // 60)):
        first, second = factor_sizes(outer, inner, size, reduce)
        assert 1 <= first <= outer and 1 <= second <= inner and first * second <= size
        again = factor_sizes(outer, inner, first * second, reduce)
        assert again[0] * again[1] == first * second
        if reduce == "both" and size >= 16 and min(outer, inner) > 4:
            assert first * second > 0.85 * size and 0.5 <= (first / outer) / (second / inner) <= 2
    assert factor_sizes(outer, inner, outer * inner, reduce) == (outer, inner)


@REDUCE
def test_one_side_alone_is_reduced_as_far_as_it_goes(reduce):
    grid = KroneckerSketch(inner_rows=8, reduce=reduce).grid(80, 40 if reduce != "both" else 35)
    assert (grid.outer_size, grid.inner_size) == {"outer": (5, 8), "inner": (10, 4), "both": (7, 5)}[reduce]


def test_positions_of_a_grid_are_its_rows_bucket_by_bucket():
    grid = Grid(outer=7, inner=5, outer_size=3, inner_size=2)
    outer, inner = grid.places(0, 35, SEED.device)
    assert len(set(zip(outer.tolist(), inner.tolist(), strict=True))) == 35
    sides = [((place + 1) * size - 1) // count for place, size, count in ((outer, 3, 7), (inner, 2, 5))]
    bucket = sides[0] * 2 + sides[1]
    assert bucket.tolist() == sorted(bucket.tolist()) == [grid.bucket_of(position) for position in range(35)]
    starts = [bucket.tolist().index(number) for number in range(6)]
    assert starts == [grid.start_of(number) for number in range(6)] == grid.starts(0, 6, SEED.device).tolist()
    assert grid.start_of(6) == 35
    for part, whole in zip(grid.places(9, 23, SEED.device), (outer, inner), strict=True):
        assert torch.equal(part, whole[9:23])


@REDUCE
def test_keeping_all_rows_is_exact(reduce):
    family = KroneckerSketch(inner_rows=6, reduce=reduce)
    s = family.to_dense(42, family.admissible_size(42, 42), SEED)
    torch.testing.assert_close(s @ s.T, torch.eye(42))
    assert family.variance(*sequences(7, 6), 42) == 0


@pytest.mark.parametrize(
    ("outer", "inner", "num_rows", "size", "reduce"),
    [
        (5, 4, 20, 6, "both"),
        (3, 7, 21, 6, "both"),
        (6, 6, 33, 12, "both"),  # the last sequence is incomplete
        (4, 6, 20, 12, "outer"),
        (6, 4, 24, 12, "inner"),
    ],
)
def test_the_variance_is_the_closed_form_with_every_term(outer, inner, num_rows, size, reduce):
    """1200 seeds; without the cross terms, or as a count sketch's of the same k, it is rejected."""
    x, y = sequences(outer, inner, num_rows)
    family = KroneckerSketch(inner_rows=inner, reduce=reduce)
    size = family.admissible_size(num_rows, size)
    errors = (estimates_of(family, x, y, size, 1200) - x.T @ y).square().sum((1, 2))
    closed = family.variance(x, y, size)
    assert z_score(errors, closed) < 5
    assert z_score(errors, 1.25 * closed) > 5
    assert z_score(errors, CountSketch().variance(x, y, size)) > 5
    grid, m = family.grid(num_rows, size), moments(x, y)
    shares = pair_share(grid.outer, grid.outer_size), pair_share(grid.inner, grid.inner_size)
    assert z_score(errors, shares[0] * shares[1] * (m.a + m.c - 2 * m.d)) > 5


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (6, 3)])
def test_each_term_is_what_its_sum_says(shape):
    """Against the moments of the two factors, written out with every index."""
    (outer, inner), size = shape, 6
    x, y = sequences(outer, inner)
    family = KroneckerSketch(inner_rows=inner)
    size = family.admissible_size(outer * inner, size)
    grid = family.grid(outer * inner, size)

    def moment(count, share):
        one = torch.eye(count, dtype=torch.float64)
        pairings = ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl")
        first, second, third = (torch.einsum(pairing, one, one) for pairing in pairings)
        same = torch.einsum("ij,jk,kl->ijkl", one, one, one)
        return first + share * (second + third - 2 * same)

    factors = (
        moment(outer, pair_share(outer, grid.outer_size)),
        moment(inner, pair_share(inner, grid.inner_size)),
    )
    x_gram = (x @ x.T).view(outer, inner, outer, inner)
    y_gram = (y @ y.T).view(outer, inner, outer, inner)
    # rows of X: (a, p) and (c, r); rows of Y: (b, q) and (d, s)
    second_moment = torch.einsum("apcr,bqds,abcd,pqrs->", x_gram, y_gram, *factors)
    torch.testing.assert_close(family.variance(x, y, size), second_moment - (x.T @ y).square().sum())


def test_the_variance_of_one_inner_row_is_the_count_sketches():
    x, y = sequences(40, 1)
    for family, size in ((KroneckerSketch(), 9), (KroneckerSketch(inner_rows=40), 9)):
        torch.testing.assert_close(family.variance(x, y, size), CountSketch().variance(x, y, size))


def test_alike_tokens_make_it_noisier_than_a_count_sketch():
    """Rows that repeat within a sequence share a sign there: about k_2 times the noise of as many buckets at random."""
    x, y = (torch.randn(64, 1, 8, dtype=torch.float64).expand(64, 16, 8).reshape(1024, 8) for _ in range(2))
    family = KroneckerSketch(inner_rows=16)
    size = family.admissible_size(1024, 100)
    ratio = family.variance(x, y, size) / CountSketch().variance(x, y, size)
    assert 0.7 * family.grid(1024, size).inner_size < ratio < 2 * family.grid(1024, size).inner_size


# --- where the grid comes from


def test_rmm_linear_takes_the_grid_from_the_shape_of_x():
    x, weight = torch.randn(2, 4, 6, 3), torch.randn(5, 3, requires_grad=True)
    grad = torch.randn(2, 4, 6, 5)

    def weight_grad(x, grad, sketch):
        config = RMMConfig(rate=0.3, sketch=sketch)
        return torch.autograd.grad(rmm_linear(x, weight, config=config, seed=5), weight, grad)[0]

    found = weight_grad(x, grad, "kronecker")
    assert torch.equal(found, weight_grad(x.flatten(0, 2), grad.flatten(0, 2), KroneckerSketch(inner_rows=6)))
    assert torch.equal(found, weight_grad(x.flatten(0, 1), grad.flatten(0, 1), "kronecker"))
    # What is given goes before; an x [B, N] has one inner row.
    explicit = weight_grad(x, grad, KroneckerSketch(inner_rows=4))
    assert torch.equal(explicit, weight_grad(x.flatten(0, 2), grad.flatten(0, 2), KroneckerSketch(inner_rows=4)))
    flat = weight_grad(x.flatten(0, 2), grad.flatten(0, 2), "kronecker")
    assert torch.equal(flat, weight_grad(x.flatten(0, 2), grad.flatten(0, 2), KroneckerSketch(inner_rows=1)))
    assert not torch.allclose(found, explicit) and not torch.allclose(found, flat)


@REDUCE
def test_kept_bytes_are_those_of_the_config_for_the_shape(reduce):
    x, weight = torch.randn(8, 12, 5), torch.randn(4, 5, requires_grad=True)
    config = RMMConfig(rate=0.2, sketch=KroneckerSketch(reduce=reduce))
    with saved_tensors() as saved:
        rmm_linear(x, weight, config=config)
    resolved = config.for_shape(x.shape[:-1])
    assert resolved.family == KroneckerSketch(inner_rows=12, reduce=reduce)
    assert sum(storages(saved).values()) == resolved.saved_bytes(96, 5)
    assert RMMConfig(rate=0.2).for_shape(x.shape[:-1]) == RMMConfig(rate=0.2)


def test_min_and_max_size_bound_the_product():
    config = RMMConfig(rate=0.5, max_size=30, sketch=KroneckerSketch(inner_rows=8))
    assert config.sketch_size(80) == 30 and config.sketch_size(3) == 2
    assert RMMConfig(size=31, sketch=KroneckerSketch(inner_rows=8)).sketch_size(80) == 30


def test_a_probe_judges_by_the_grid_of_x():
    layer, x = torch.nn.Linear(6, 4), torch.randn(5, 8, 6)
    config = RMMConfig(rate=0.3, sketch="kronecker")
    gradients = []
    with GradientProbe(layer, every=1) as probe, compress_activations(config):
        out = layer(x)
        out.register_hook(gradients.append)
        F.cross_entropy(out.flatten(0, 1), torch.arange(40) % 4).backward()
    expected = rmm_variance(x.flatten(0, 1), gradients[0].flatten(0, 1), config.for_shape((5, 8)))
    assert probe.records[0].sketch_variance == pytest.approx(float(expected))
    assert probe.records[0].sketch_size == config.for_shape((5, 8)).sketch_size(40)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_takes_the_grid_from_the_shape_too(dynamic):
    torch._dynamo.reset()
    weight, config = torch.randn(5, 3, requires_grad=True), RMMConfig(rate=0.3, sketch="kronecker")

    def run(x):
        return rmm_linear(x, weight, config=config, seed=torch.tensor(5))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in ((4, 6, 3), (2, 8, 3), (24, 3)):
        x = torch.randn(shape)
        grads = [torch.autograd.grad(call(x).square().sum(), weight)[0] for call in (run, compiled)]
        torch.testing.assert_close(*grads)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: KroneckerSketch(inner_rows=0), ValueError, "'inner_rows' must be at least 1"),
        (lambda: KroneckerSketch(inner_rows=1.5), TypeError, "'inner_rows' must be a whole number"),
        (lambda: KroneckerSketch(reduce="all"), ValueError, "'reduce' must be a known name"),
        (
            lambda: KroneckerSketch(inner_rows=8).apply(torch.ones(80, 2), SEED, 31),
            ValueError,
            r"'sketch_size' must be a product of two sizes \(got 31 for 10 x 8 rows\). Take .*\(80, 31\), 30",
        ),
        (
            lambda: rmm_linear(
                torch.ones(2, 3, 4),
                torch.ones(5, 4, requires_grad=True),
                config=RMMConfig(sketch="kronecker"),
                row_mask=torch.ones(2, 3, dtype=torch.bool),
            ),
            ValueError,
            "'row_mask' must come with a family that needs no grid of rows .got 'kronecker'.",
        ),
        (
            lambda: compress_activations(RMMConfig(sketch="kronecker"), row_mask=torch.ones(2, 3, dtype=torch.bool)),
            ValueError,
            "'row_mask' must come with a family that needs no grid of rows",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
