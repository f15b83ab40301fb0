#!/usr/bin/env python3
"""GCN2 on ogbn-arxiv: memory, time and accuracy of ways to train it (the paper's Table 5 and Figure 7).

python benchmarks/ogbn_arxiv.py --dataset digits --rate 0.1     # embedded data, a minute
python benchmarks/ogbn_arxiv.py --root DIR --rate 0.1           # the protocol: 16 layers of 256, 1000 epochs
python benchmarks/ogbn_arxiv.py --root DIR --method baseline rmm-lean --rate 0.1 --codec int8 --x0-codec int4
python benchmarks/ogbn_arxiv.py --root DIR --method rmm:rate=0.1 exact:rate=0.125,exact-bits=2     # settings by row
torchrun --nproc-per-node 2 benchmarks/ogbn_arxiv.py --root DIR --loader neighbor               # batches, 2 processes
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.cli import parse
from benchmarks.harness.ranks import Ranks, run_ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 2 for something the user can put right, 130 after Ctrl-C.
    """

    def work(ranks: Ranks) -> int:
        sweep = ranks.agree(lambda: parse(argv, str(__doc__).split("\n\n")[0]))
        # Imported late: torch and PyG take seconds, which --help should not.
        from benchmarks.harness.sweep import run_sweep

        return run_sweep(sweep, ranks)

    return run_ranks(work, "Interrupted before the first run.")


if __name__ == "__main__":
    sys.exit(main())
