"""Every law of a sketch, over every family."""

import pickle

import pytest
import torch

from rmm_gnn.sketches import FAMILIES, Draw, from_spec, get_sketch
from rmm_gnn.sketches.moments import Moments
from tests.sketches.cases import CASES, state_of

FAMILY = pytest.mark.parametrize("family", CASES.values(), ids=CASES.keys())
SIZES = pytest.mark.parametrize(
    ("num_rows", "sketch_size"),
    [(1, 1), (2, 1), (2, 2), (63, 7), (64, 16), (100, 1), (100, 33), (100, 100), (257, 200), (4097, 13)],
)


def sketch(family, matrix, sketch_size, seed=5, drawn_from=None, **options):
    """Apply a family, with the state it draws from ``drawn_from`` (default: the matrix itself)."""
    seed, sketch_size = torch.tensor(seed), family.admissible_size(matrix.shape[0], sketch_size)
    state = state_of(family, matrix if drawn_from is None else drawn_from, seed, sketch_size)
    return family.apply(matrix, seed, sketch_size, state=state, **options)


def dense(family, matrix, sketch_size, seed=5, dtype=torch.float64):
    seed, sketch_size = torch.tensor(seed), family.admissible_size(matrix.shape[0], sketch_size)
    state = state_of(family, matrix, seed, sketch_size)
    return family.to_dense(matrix.shape[0], sketch_size, seed, state=state, dtype=dtype)


def test_every_family_has_a_case():
    assert {family.name for family in CASES.values()} == set(FAMILIES)


@FAMILY
@SIZES
def test_apply_is_the_product_with_dense(family, num_rows, sketch_size):
    matrix = torch.randn(num_rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = dense(family, matrix, sketch_size).T @ matrix
    for workspace_bytes in (2**26, 2**12):
        found = sketch(family, matrix, sketch_size, workspace_bytes=workspace_bytes)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@FAMILY
def test_sketch_rows_are_rows_of_apply(family):
    matrix, seed, size = torch.randn(90, 4, dtype=torch.float64), torch.tensor(3), family.admissible_size(90, 40)
    state = state_of(family, matrix, seed, size)
    whole = family.apply(matrix, seed, size, state=state)
    for start, stop in ((0, 1), (7, 23), (size - 1, size)):
        part = family.sketch_rows(matrix, Draw(seed, size, state, workspace_bytes=2**11), start, stop)
        torch.testing.assert_close(part, whole[start:stop])


@pytest.mark.parametrize(("num_rows", "sketch_size"), [(1, 1), (63, 1), (100, 33), (100, 100), (2000, 700)])
@pytest.mark.parametrize("height", [1, 7, 5000])
def test_rows_of_a_count_sketch_are_those_of_dense(num_rows, sketch_size, height):
    """Also where the workspace holds fewer positions than there are."""
    seed, family = torch.tensor(3), CASES["count_sketch"]
    found = torch.zeros(num_rows, sketch_size)
    for tile in family.iter_rows(num_rows, Draw(seed, sketch_size, workspace_bytes=2**16), height, torch.float32):
        assert len(tile.rows) == len(tile.signs) == len(tile.buckets) <= height
        assert tile.buckets[0] == 0 and tile.first + tile.buckets[-1] + 1 == tile.last
        found[tile.rows.long(), tile.first + tile.buckets] += tile.signs
    assert torch.equal(found, family.to_dense(num_rows, sketch_size, seed))


@FAMILY
def test_apply_is_linear(family):
    first, second = torch.randn(2, 70, 6, dtype=torch.float64)
    combined = sketch(family, 2 * first - 3 * second, 20, drawn_from=first)
    parts = 2 * sketch(family, first, 20, drawn_from=first) - 3 * sketch(family, second, 20, drawn_from=first)
    torch.testing.assert_close(combined, parts)


@FAMILY
def test_same_seed_same_sketch_other_seed_another(family):
    matrix = torch.randn(70, 6)
    assert torch.equal(sketch(family, matrix, 20), sketch(family, matrix, 20))
    assert not torch.allclose(sketch(family, matrix, 20), sketch(family, matrix, 20, seed=6))


@FAMILY
@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**62 + 17, -(2**63)])
def test_any_64_bit_seed_serves(family, seed):
    matrix = torch.randn(50, 3)
    assert torch.isfinite(sketch(family, matrix, 10, seed=seed)).all()


@FAMILY
def test_strides_do_not_matter(family):
    base = torch.randn(6, 80)
    for matrix in (
        base.T,
        torch.randn(160, 12)[::2, ::2],
        torch.randn(6).expand(80, 6),
        torch.randn(80, 1).expand(80, 6),
    ):
        torch.testing.assert_close(sketch(family, matrix, 20), sketch(family, matrix.contiguous(), 20))


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(family, dtype):
    matrix = torch.randn(300, 6).to(dtype)
    result = sketch(family, matrix, 20)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, sketch(family, matrix.float(), 20, drawn_from=matrix.float()))


@FAMILY
def test_sketch_of_ones(family):
    seed, ones = torch.tensor(9), torch.ones(144, 1)
    x, size = torch.randn(144, 4), family.admissible_size(144, 31)
    state = state_of(family, x, seed, size)
    short = family.sketch_ones(144, Draw(seed, size, state, workspace_bytes=2**10), torch.float32)
    torch.testing.assert_close(short.unsqueeze(1), family.apply(ones, seed, size, state=state))


@FAMILY
def test_sizes_are_admissible_once_and_for_all(family):
    for num_rows, size in ((1, 1), (63, 7), (100, 1), (100, 100), (257, 200)):
        taken = family.admissible_size(num_rows, size)
        assert 1 <= taken <= size and family.admissible_size(num_rows, taken) == taken


@FAMILY
def test_state_is_of_the_announced_shapes(family):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(40, 3).to(dtype)
        state = state_of(family, x, torch.tensor(1), 7)
        announced = family.empty_state(40, 7, dtype, torch.device("cpu"))
        assert [(t.shape, t.dtype) for t in state] == [(t.shape, t.dtype) for t in announced]


@FAMILY
def test_what_a_family_says_of_itself(family):
    """That S depends on the data, by its state; that the variance follows from the moments, by its formula."""
    assert family.depends_on_data == bool(state_of(family, torch.randn(40, 3), torch.tensor(1), 7))
    one = torch.ones((), dtype=torch.float64)
    assert family.variance_follows_from_moments == (
        family.variance_of_moments(Moments(one, one, one), 40, 7) is not None
    )


@FAMILY
def test_blocks_and_their_workspace(family):
    matrix, size = torch.randn(500, 8), family.admissible_size(500, 100)
    seed = torch.tensor(2)
    state = state_of(family, matrix, seed, size)
    position = 0
    for start, stop, block in family.iter_blocks(matrix, Draw(seed, size, state, workspace_bytes=2**11)):
        assert start == position and block.shape == (stop - start, 8)
        assert family.name == "sors" or block.numel() * block.element_size() <= 2**10
        position = stop
    assert position == size


@FAMILY
def test_family_survives_spec_pickle_and_hash(family):
    assert from_spec(family.spec) == family
    assert pickle.loads(pickle.dumps(family)) == family
    assert hash(from_spec(family.spec)) == hash(family)


@pytest.mark.parametrize("name", ["count_sketch", "row_sampling"])
def test_keeping_all_rows_is_exact(name):
    s = dense(get_sketch(name), torch.randn(45, 2), 45)
    torch.testing.assert_close(s @ s.T, torch.eye(45, dtype=torch.float64))


@pytest.mark.parametrize("transform", ["hadamard", "dct", "dft"])
def test_whole_transform_is_orthonormal(transform):
    for num_rows in (32, 64, 128) if transform == "hadamard" else (32, 45, 101):
        s = dense(CASES[f"sors-{transform}"], torch.randn(num_rows, 2), num_rows)
        torch.testing.assert_close(s.T @ s, torch.eye(num_rows, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_count_sketch_buckets_are_balanced():
    for num_rows, sketch_size in ((100, 7), (64, 16), (101, 100)):
        s = dense(get_sketch("count_sketch"), torch.randn(num_rows, 1), sketch_size)
        assert (s.abs().sum(1) == 1).all()
        sizes = s.abs().sum(0)
        assert sizes.max() - sizes.min() <= 1
