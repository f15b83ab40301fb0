#!/usr/bin/env python3
"""What PyG's own models keep for backward, as they are and under compress_activations.

    python benchmarks/micro/pyg_models.py --root DIR                # the ogbn-arxiv graph
    python benchmarks/micro/pyg_models.py --dataset digits          # embedded data

The graph is the data set's, the features are random numbers of the models' width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch_geometric.nn import GAT, GCN, GraphSAGE

from benchmarks.harness import environment
from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import parser_of
from rmm_gnn import RMMConfig, compress_activations, memory_report

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "GCN": (GCN, {}),
    "GraphSAGE": (GraphSAGE, {}),
    "GAT": (GAT, {"heads": 4}),
}
_MIB = 2**20


def compare(
    x: torch.Tensor, edge_index: torch.Tensor, num_classes: int, config: RMMConfig, *, ledgers: bool = False
) -> list[list[str]]:
    """Return a row for each model: saved and peak MiB before and after, and what is left uncompressed.

    ``ledgers`` prints both ledgers of every model, by operator.
    """
    rows = []
    for name, (kind, settings) in MODELS.items():
        width = x.shape[1]
        model = kind(width, width, 3, num_classes, dropout=0.5, norm="batch_norm", **settings).to(x.device)
        before = memory_report(model, x, edge_index)
        with compress_activations(config):
            after = memory_report(model, x, edge_index)
        if ledgers:
            print(f"{name}, stock\n{before.table('operator')}\n\n{name}, compressed\n{after.table('operator')}\n")
        left = ", ".join(f"{operator} {size / _MIB:.1f}" for operator, size in after.untouched().items())
        rows.append(
            [
                name,
                f"{before.saved_bytes / _MIB:.1f}",
                f"{after.saved_bytes / _MIB:.1f}",
                f"{before.saved_bytes / after.saved_bytes:.1f}",
                f"{before.peak_bytes / _MIB:.0f}",
                f"{after.peak_bytes / _MIB:.0f}",
                left,
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
    parser.add_argument("--width", type=int, default=256, help="channels")
    parser.add_argument("--rate", type=float, default=0.1, help="fraction of rows kept")
    parser.add_argument("--codec", default="int8", help="how sketches are stored")
    parser.add_argument("--ledger", action="store_true", help="print the models' ledgers too, by operator")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    arguments = parser.parse_args(argv)
    try:
        config = RMMConfig(rate=arguments.rate, codec=arguments.codec)
        device = environment.resolve_device(arguments.device)
        dataset = load(arguments.dataset, arguments.root)
        tabulate = require("tabulate").tabulate
    except (BenchmarkError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    edge_index = dataset.adjacency.to_sparse_coo().indices().to(device)
    x = torch.randn(dataset.num_nodes, arguments.width, device=device)
    rows = compare(x, edge_index, dataset.num_classes, config, ledgers=arguments.ledger)
    print(
        f"{dataset.title}: {dataset.num_nodes:,} nodes, {edge_index.shape[1]:,} edges; 3 layers of {arguments.width}\n"
    )
    headers = ["model", "saved [MiB]", "compressed", "times less", "peak [MiB]", "compressed", "left as it is [MiB]"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
