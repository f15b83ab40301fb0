"""Matrices of sampled edges: products, gradients, rows by hop, and weights that make up for what is dropped."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.subgraphs import (
    induced,
    layered,
    moved,
    product,
    scaled_for_sample,
    transpose_of,
    with_transpose,
)

# A path 0 - 1 - 2 - 3 - 4 - 5, explored from node 0, and the edges met on the way.
ROW = torch.tensor([0, 1, 1, 2, 2])
COL = torch.tensor([1, 0, 2, 1, 3])
WEIGHT = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
LOOPS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def dense(rows: int, columns: int) -> torch.Tensor:
    matrix = torch.diag(LOOPS)
    matrix[ROW, COL] = WEIGHT
    return matrix[:rows, :columns]


@pytest.mark.parametrize(
    ("num_layers", "shapes"),
    [(1, [(1, 2)]), (3, [(3, 4), (2, 3), (1, 2)]), (5, [(4, 4), (4, 4), (3, 4), (2, 3), (1, 2)])],
)
def test_a_layer_has_the_rows_that_the_next_one_reads(num_layers: int, shapes: list[tuple[int, int]]):
    matrices = layered(ROW, COL, WEIGHT, LOOPS, [1, 2, 3, 4], num_layers)
    assert [tuple(matrix.shape) for matrix in matrices] == shapes
    for matrix in matrices:
        expected = dense(*matrix.shape)
        assert torch.equal(matrix.to_dense(), expected)
        assert torch.equal(transpose_of(matrix).to_dense(), expected.t())


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_the_product(symmetric: bool):
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64) * (torch.rand(6, 6) < 0.5)
    matrix = matrix + matrix.t() if symmetric else matrix
    row, col = (matrix - torch.diag(matrix.diag())).nonzero().t()
    adjacency = induced(row, col, matrix[row, col], matrix.diag(), symmetric)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(product(adjacency, x), matrix @ x)
    assert torch.autograd.gradcheck(lambda x: product(adjacency, x), (x,))


def test_a_matrix_without_its_transpose_has_no_gradient():
    adjacency = layered(ROW, COL, WEIGHT, LOOPS, [1, 2, 3, 4], 1)[0].detach()  # another object, which carries nothing
    x = torch.ones(2, 1)
    torch.testing.assert_close(product(adjacency, x), torch.tensor([[1.1]]))
    with pytest.raises(ValueError, match=r"'adjacency' must carry its transpose.*Use with_transpose"):
        product(adjacency, x.requires_grad_())


def test_a_moved_matrix_carries_its_transpose():
    device = torch.device("cpu")
    unsymmetric = layered(ROW, COL, WEIGHT, LOOPS, [1, 2, 3, 4], 1)[0]
    assert torch.equal(transpose_of(moved(unsymmetric, device)).to_dense(), unsymmetric.to_dense().t())
    assert transpose_of(moved(unsymmetric.detach(), device)) is None
    alone = induced(ROW[:2], COL[:2], torch.ones(2), LOOPS)
    there = moved(with_transpose(alone, transpose_of(alone)), device)
    assert transpose_of(there).values().data_ptr() == there.values().data_ptr()


def test_a_batch_is_freed_when_nobody_holds_it():
    import gc
    import weakref

    gc.disable()
    try:
        matrix = induced(ROW, COL, WEIGHT, LOOPS)
        reference = weakref.ref(matrix)
        del matrix
        assert reference() is None
    finally:
        gc.enable()


def test_weights_make_up_for_neighbours_that_were_not_sampled():
    degree = torch.tensor([4, 2, 6, 9])  # in the full graph; sampled were 1, 2, 2 and 0
    scaled = scaled_for_sample(WEIGHT, ROW, degree)
    torch.testing.assert_close(scaled, WEIGHT * torch.tensor([4.0, 1.0, 1.0, 3.0, 3.0]))
