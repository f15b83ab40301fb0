"""The comparison of sparse products runs, and every product it times is right and keeps what it claims."""

from __future__ import annotations

import pytest
import torch

from benchmarks.micro.spmm import OURS, main, products, saved_bytes


def test_products_agree(tiny):
    x = torch.randn(tiny.num_nodes, 6, requires_grad=True)
    grad = torch.randn(tiny.num_nodes, 6)
    expected = tiny.adjacency.to_dense() @ x
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    for name, product in products(tiny.adjacency).items():
        out = product(x)
        torch.testing.assert_close(out, expected, msg=name)
        torch.testing.assert_close(torch.autograd.grad(out, x, grad)[0], expected_grad, msg=name)


def test_ours_keeps_nothing_more(tiny):
    x = torch.randn(tiny.num_nodes, 6, requires_grad=True)
    assert saved_bytes(products(tiny.adjacency)[OURS], x, tiny.adjacency) == 0


@pytest.mark.filterwarnings("ignore:Sparse")
def test_the_table(capsys):
    assert main(["--dataset", "digits", "--width", "4", "--repetitions", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert OURS in out and "EdgeIndex" in out and "time / ours" in out
    assert main(["--root", "absent"]) == 2
