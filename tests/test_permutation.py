"""The permutation that nobody stores."""

import pytest
import torch

from rmm_gnn.permutation import permutation


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 16, 63, 100, 255, 256, 257, 1000, 4097, 169343])
def test_every_row_occurs_once(num_rows):
    for seed in (0, 1, 2**40 + 3):
        rows = permutation(torch.tensor(seed), num_rows)
        assert torch.equal(rows.sort().values, torch.arange(num_rows, dtype=rows.dtype))


@pytest.mark.parametrize("num_rows", [7, 100, 4097])
def test_a_part_is_a_part_of_the_whole(num_rows):
    seed = torch.tensor(9)
    whole = permutation(seed, num_rows)
    assert torch.equal(permutation(seed, num_rows, num_rows // 3, num_rows // 2), whole[num_rows // 3 : num_rows // 2])


@pytest.mark.parametrize("num_rows", [4, 10, 30])
def test_pairs_are_uniform(num_rows):
    """Chi-square of (image of 0, image of 1) over all ordered pairs, and of two places far apart."""
    count = 4_000
    images = torch.stack([permutation(torch.tensor(n), num_rows) for n in range(count)]).long()
    for first, second in ((0, 1), (0, num_rows - 1), (1, num_rows // 2)):
        table = torch.bincount(images[:, first] * num_rows + images[:, second], minlength=num_rows**2)
        off_diagonal = table.view(num_rows, num_rows)[~torch.eye(num_rows, dtype=torch.bool)].double()
        expected = count / off_diagonal.numel()
        freedom = off_diagonal.numel() - 1
        chi_square = ((off_diagonal - expected) ** 2 / expected).sum()
        assert (chi_square - freedom) / (2 * freedom) ** 0.5 < 5


def test_large_row_counts_use_wide_integers():
    rows = permutation(torch.tensor(1), 2**31 + 5, 2**31, 2**31 + 5)
    assert rows.dtype == torch.int64
    assert rows.unique().numel() == 5 and (rows >= 0).all() and (rows < 2**31 + 5).all()
