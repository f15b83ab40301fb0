"""The kernel of the dense families against S made in plain torch."""

import pytest
import torch

from rmm_gnn.kernels.dense_triton import sketch
from rmm_gnn.sketches import BlockRademacherSketch, GaussianSketch, RademacherSketch, Sketch
from tests.kernels.device import DEVICE, far_apart

SEED = torch.tensor(2**40 + 11, device=DEVICE)
FAMILIES = [GaussianSketch(), RademacherSketch(), BlockRademacherSketch(block_rows=50)]
FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def by_kernel(family: Sketch, matrix, size, start, stop, rows=None):
    num_rows = matrix.shape[0] if rows is None else rows.shape[0]
    blocks = family.num_blocks(num_rows, size) if isinstance(family, BlockRademacherSketch) else None
    entries = "gaussian" if isinstance(family, GaussianSketch) else "rademacher"
    return sketch(matrix, SEED, size, start, stop, entries=entries, num_blocks=blocks, rows=rows)


def assert_is_sketch(family, matrix, size, start, stop, rows=None):
    selected = matrix if rows is None else matrix[rows.long()]
    expected = family.apply(selected.double(), SEED, size)[start:stop]
    out = by_kernel(family, matrix, size, start, stop, rows)
    assert out.dtype == (torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    # Entries of a Gaussian are float32 numbers of another library's log and cos.
    scale = 1e-5 * (selected.double().square().sum(0).amax().item() / size) ** 0.5
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=10 * scale)


@FAMILY
@pytest.mark.parametrize(
    ("num_rows", "columns"), [(1, 1), (63, 40), (100, 100), (4097, 40), (63, 256), (100, 768)], ids=str
)
def test_equals_plain_torch(family, num_rows, columns):
    size = max(1, num_rows // 10)
    assert_is_sketch(family, torch.randn(num_rows, columns, device=DEVICE), size, 0, size)


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_and_sizes(family, dtype):
    matrix = torch.randn(100, 40, device=DEVICE).to(dtype)
    for size in (1, 37, 100):
        assert_is_sketch(family, matrix, size, 0, size)


@FAMILY
def test_part_of_the_rows_of_the_sketch(family):
    matrix = torch.randn(200, 24, device=DEVICE)
    for start, stop in [(0, 1), (3, 40), (33, 70), (99, 100)]:
        assert_is_sketch(family, matrix, 100, start, stop)


@FAMILY
def test_selected_rows_and_strides(family):
    matrix = torch.randn(24, 300, device=DEVICE).t()
    rows = torch.randperm(300, device=DEVICE)[:111]
    assert_is_sketch(family, matrix, 20, 0, 20, rows)
    assert_is_sketch(family, matrix[::3, ::2], 20, 0, 20)


@FAMILY
def test_more_than_2_to_the_31_elements(family):
    assert_is_sketch(family, far_apart(5, 40, torch.float16), 2, 0, 2)
