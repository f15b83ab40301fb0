#!/usr/bin/env python3
"""Time of one graph propagation, forward and backward, by every product at hand, and the bytes each keeps.

    python benchmarks/micro/spmm.py --root DIR                      # the ogbn-arxiv graph
    python benchmarks/micro/spmm.py --dataset digits                # embedded data

All run in one process, interleaved; the table shows first the ratio to the product the harness uses, then
medians and the spread (10th to 90th percentile).  torch_sparse's SparseTensor joins where that package is
installed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

from benchmarks.harness import environment
from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import measure_saved_bytes, stopwatch
from benchmarks.harness.propagation import symmetric_spmm
from benchmarks.harness.script import parser_of

OURS = "symmetric_spmm"
Product = Callable[[Tensor], Tensor]


class _Scatter(MessagePassing):
    """What PyG does with a plain edge_index: one message per edge, then a sum."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        # propagate_type: (x: Tensor, edge_weight: Tensor)
        return self.propagate(edge_index, x=x, edge_weight=edge_weight)

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return edge_weight.view(-1, 1) * x_j


def products(adjacency: Tensor) -> dict[str, Product]:
    """Every way to multiply by the matrix, by name.

    Args:
        adjacency: Symmetric torch.sparse_csr matrix.

    Returns:
        Functions of the features; indices are sorted and caches filled beforehand, as in a long training.
    """
    coo = adjacency.to_sparse_coo().coalesce()
    edge_index, weight = coo.indices().flip(0), coo.values()  # row i of the matrix gathers from its columns
    edges = EdgeIndex(edge_index, sparse_size=tuple(adjacency.shape), sort_order="col", is_undirected=True)
    edges.validate().fill_cache_()
    scatter = _Scatter(aggr="add")
    named: dict[str, Product] = {
        OURS: lambda x: symmetric_spmm(adjacency, x),
        "torch.sparse.mm, CSR": lambda x: torch.sparse.mm(adjacency, x),
        "PyG EdgeIndex": lambda x: edges.matmul(x, input_value=weight, transpose=True),
        "PyG edge_index, scatter": lambda x: scatter(x, edge_index, weight),
    }
    if WITH_TORCH_SPARSE:
        sparse = SparseTensor.from_torch_sparse_csr_tensor(adjacency)
        named["torch_sparse SparseTensor"] = lambda x: sparse.matmul(x)
    return named


def saved_bytes(product: Product, x: Tensor, adjacency: Tensor) -> int:
    """Bytes kept for backward besides x and the matrix; other copies of the matrix count."""
    return measure_saved_bytes(nn.Module(), lambda: product(x).sum(), [x, adjacency]).total


def compare(adjacency: Tensor, width: int, repetitions: int) -> list[list[str]]:
    """Rows of the table for one number of channels."""
    device = adjacency.device
    named = products(adjacency)
    x = torch.randn(adjacency.shape[0], width, device=device, requires_grad=True)
    grad = torch.randn(adjacency.shape[0], width, device=device)
    kept = {name: saved_bytes(product, x, adjacency) for name, product in named.items()}
    reference = symmetric_spmm(adjacency, x).detach()
    forward_s: dict[str, list[float]] = {name: [] for name in named}
    backward_s: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(repetitions):
        for name, product in named.items():
            x.grad = None
            with stopwatch(device, forward_s[name]):
                out = product(x)
            with stopwatch(device, backward_s[name]):
                out.backward(grad)
            torch.testing.assert_close(out.detach(), reference, rtol=1e-4, atol=1e-4)
            del out
    both = {name: [a + b for a, b in zip(forward_s[name], backward_s[name], strict=True)] for name in named}
    ours = statistics.median(both[OURS])
    rows = []
    for name in named:
        total_ms = sorted(1e3 * value for value in both[name])
        low, high = total_ms[len(total_ms) // 10], total_ms[-1 - len(total_ms) // 10]
        rows.append(
            [
                str(width),
                name,
                f"{statistics.median(both[name]) / ours:.2f}",
                f"{1e3 * statistics.median(forward_s[name]):.1f}",
                f"{1e3 * statistics.median(backward_s[name]):.1f}",
                f"{statistics.median(total_ms):.1f} [{low:.1f}, {high:.1f}]",
                f"{kept[name] / 2**20:.1f}",
            ]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--dataset", default="ogbn-arxiv", help="as in benchmarks/ogbn_arxiv.py")
    parser.add_argument("--root", default="data", help="folder with the data sets")
    parser.add_argument("--width", type=int, nargs="+", default=[64, 256], help="channels")
    parser.add_argument("--repetitions", type=int, default=7, help="timed rounds")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    arguments = parser.parse_args(argv)
    try:
        device = environment.resolve_device(arguments.device)
        dataset = load(arguments.dataset, arguments.root)
        tabulate = require("tabulate").tabulate
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    adjacency = dataset.adjacency.to(device)
    rows = [row for width in arguments.width for row in compare(adjacency, width, arguments.repetitions)]
    where = environment.describe(device)
    print(
        f"{dataset.title}: {dataset.num_nodes:,} nodes, {adjacency.values().numel():,} non-zeros; "
        f"{where['device']}, {where['threads']} threads, torch {where['packages']['torch']}; "
        f"{arguments.repetitions} rounds\n"
    )
    headers = ["width", "product", "time / ours", "forward [ms]", "backward [ms]", "both [ms]", "kept [MiB]"]
    print(tabulate(rows, headers, tablefmt="github", colalign=("right", "left", *["right"] * 5)))
    if not WITH_TORCH_SPARSE:
        print("\ntorch_sparse is not installed: SparseTensor not measured.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
