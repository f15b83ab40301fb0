#!/usr/bin/env python3
"""Fine-tuning on GLUE: scores, memory and time at several rates (the paper's Tables 2 to 4 and Figures 3 to 8).

python benchmarks/glue.py --smoke                                                      # made-up sentences, seconds
python benchmarks/glue.py --task sst2 --data-dir DIR --model tiny --rate none 0.5 0.1  # a small RoBERTa, no network
python benchmarks/glue.py --task mrpc --rate none 0.1                                  # RoBERTa-base, from the hub
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.script import guarded
from benchmarks.text.cli import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 2 for something the user can put right, 130 after Ctrl-C.
    """

    def work() -> int:
        sweep = parse(argv, str(__doc__).split("\n\n")[0])
        # Imported late: torch and transformers take seconds, which --help should not.
        from benchmarks.text.sweep import run_sweep

        return run_sweep(sweep)

    return guarded(work, "Interrupted before the first run.")


if __name__ == "__main__":
    sys.exit(main())
