"""The kernel of count_sketch against the bucket sums in plain torch."""

import pytest
import torch

from rmm_gnn.kernels.count_sketch_triton import sketch
from rmm_gnn.sketches import CountSketch
from tests.kernels.device import DEVICE, far_apart

FAMILY = CountSketch()
SEED = torch.tensor(2**40 + 11, device=DEVICE)


def assert_is_sketch(matrix, size, start, stop, **given):
    """Sums of a bucket are formed in another order than plain torch's: the error is that of so many roundings."""
    out, sums = sketch(matrix, SEED, size, start, stop, with_sums=True, **given)
    rows = matrix if given.get("rows") is None else matrix[given["rows"].long()]
    expected = FAMILY.apply(rows.to(torch.float64), SEED, size)[start:stop]
    largest = rows.abs().amax().item() * -(-rows.shape[0] // size)
    assert out.dtype == (torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6 * largest)
    if (start, stop) == (0, size):
        total = rows.double().abs().sum(0).amax().item()
        torch.testing.assert_close(sums.double(), rows.double().sum(0), rtol=1e-6, atol=1e-6 * total)


@pytest.mark.parametrize("columns", [40, 100, 256, 768])
@pytest.mark.parametrize("num_rows", [63, 100, 4097])
def test_equals_plain_torch(num_rows, columns):
    size = max(1, num_rows // 10)
    assert_is_sketch(torch.randn(num_rows, columns, device=DEVICE), size, 0, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("num_rows", "columns"), [(1, 40), (100, 256), (4097, 1)], ids=str)
def test_other_types(num_rows, columns, dtype):
    size = max(1, num_rows // 10)
    assert_is_sketch(torch.randn(num_rows, columns, device=DEVICE).to(dtype), size, 0, size)


@pytest.mark.parametrize("size", [1, 2, 30, 97, 100])
def test_any_size(size):
    assert_is_sketch(torch.randn(100, 24, device=DEVICE), size, 0, size)


@pytest.mark.parametrize(
    "view",
    [lambda m: m.t(), lambda m: m[:, ::2], lambda m: m[::3], lambda m: m[:1].expand(50, -1), lambda m: m[:, :1]],
    ids=["transposed", "every other column", "every third row", "stride 0", "one column"],
)
def test_any_strides(view):
    matrix = view(torch.randn(100, 64, device=DEVICE))
    assert_is_sketch(matrix, 7, 0, 7)


def test_part_of_the_buckets():
    matrix = torch.randn(500, 24, device=DEVICE)
    for start, stop in [(0, 1), (3, 40), (49, 50)]:
        assert_is_sketch(matrix, 50, start, stop)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_selected_rows(dtype):
    matrix = torch.randn(300, 24, device=DEVICE)
    rows = torch.randperm(300, device=DEVICE)[:111].to(dtype)
    assert_is_sketch(matrix, 20, 0, 20, rows=rows)


def test_more_than_2_to_the_31_elements():
    assert_is_sketch(far_apart(5, 40, torch.float16), 2, 0, 2)


def test_inf_and_nan_stay_in_their_bucket():
    matrix = torch.zeros(100, 3, device=DEVICE)
    matrix[4, 0], matrix[50, 1] = torch.inf, torch.nan
    out, _ = sketch(matrix, SEED, 10, 0, 10)
    expected = FAMILY.apply(matrix, SEED, 10)
    torch.testing.assert_close(out, expected, equal_nan=True)


def test_nothing_to_sum():
    out, sums = sketch(torch.ones(10, 0, device=DEVICE), SEED, 2, 0, 2, with_sums=True)
    assert out.shape == (2, 0) and sums.shape == (0,)
