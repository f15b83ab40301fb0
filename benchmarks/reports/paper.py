"""Numbers of the paper, each with the table it stands in; what is missing here could not be read and is never guessed.

Bershatsky, Mikhalev, Katrutsa, Gusak, Merkulov, Oseledets: *Memory-Efficient Backpropagation through Large Linear
Layers*, arXiv 2201.13195.
"""

from __future__ import annotations

NOT_AT_HAND = "not at hand"
MODEL = "roberta-base"
EPOCHS = 10

# The tasks of Table 2, in its order; Table 4 has WNLI besides.
TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
TITLES = {
    "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2",
    "stsb": "STS-B", "wnli": "WNLI",
}  # fmt: skip
RATES = (0.9, 0.5, 0.2, 0.1)

# Table 2: average over the eight tasks, by rate; None is exact training.
TABLE2_AVERAGE: dict[float | None, float] = {None: 85.58, 0.9: 85.35, 0.5: 85.23, 0.2: 84.70, 0.1: 84.56}

# Table 3, left: per cent of peak memory saved, by task, batch size and rate.
TABLE3_MEMORY: dict[tuple[str, int], dict[float, float]] = {
    ("mrpc", 128): {0.5: 6.3, 0.2: 19.3, 0.1: 23.3},
    ("qnli", 16): {0.5: 4.2, 0.2: 11.6, 0.1: 13.8},
    ("sst2", 256): {0.5: 6.1, 0.2: 20.8, 0.1: 25.5},
}

# Table 3, right: CoLA, score and minutes:seconds, by family (as the command line names it) and rate.  The rows at 0.5
# and 0.2 are from the authors' notebook that writes this table (skolai/fewbit, notebooks/rmm/exp-matmul-post.ipynb),
# whose other rows agree with it.
TABLE3_EXACT = (60.90, "8:44")
TABLE3_MATMULS: dict[str, dict[float, tuple[float, str]]] = {
    "gaussian": {0.5: (58.60, "10:36"), 0.2: (57.79, "10:02"), 0.1: (56.52, "10:03")},
    "rademacher": {0.5: (62.38, "15:27"), 0.2: (59.11, "15:38"), 0.1: (55.50, "15:43")},
    "sors:transform=dct": {0.5: (59.17, "16:26"), 0.2: (58.81, "16:37"), 0.1: (53.38, "17:24")},
    "sors:transform=dft": {0.5: (59.05, "12:20"), 0.2: (60.60, "11:42"), 0.1: (47.62, "12:25")},
}
TABLE3_NAMES = {
    "gaussian": "Gauss", "rademacher": "Rademacher", "sors:transform=dct": "DCT", "sors:transform=dft": "DFT"
}  # fmt: skip

# Table 5: GCN2 on ogbn-arxiv at rate 0.1, three runs: test accuracy in per cent and its deviation, by the paper's name.
TABLE5_RATE = 0.1
TABLE5: dict[str, tuple[float, float]] = {
    "Baseline": (72.87, 0.68), "EXACT": (72.61, 0.27), "RMM Gauss": (70.99, 0.33), "RMM Rademacher": (71.53, 0.13)
}  # fmt: skip


def seconds(text: str) -> int:
    """A time such as ``8:44`` in seconds."""
    minutes, rest = text.split(":")
    return 60 * int(minutes) + int(rest)
