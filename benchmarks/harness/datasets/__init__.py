"""Data sets by name; `load` is the one entry point."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.datasets.base import NodeDataset, Split, random_split
from benchmarks.harness.errors import BenchmarkError

__all__ = ["NodeDataset", "Split", "load", "random_split"]

KNOWN = "ogbn-arxiv, digits, npz:PATH, planetoid:NAME"


def load(spec: str, root: str | Path, download: bool = False) -> NodeDataset:
    """Read a data set.

    Args:
        spec: One of ``ogbn-arxiv``, ``digits``, ``npz:PATH``, ``planetoid:NAME``.
        root: Folder that holds the data sets read by name.
        download: Fetch missing data; without it nothing touches the network and no folder is made.

    Returns:
        The data set, on CPU.

    Raises:
        BenchmarkError: When the name is unknown or the data are missing or malformed.
    """
    kind, _, rest = spec.partition(":")
    root = _expanded(root)
    # Each loader has its own heavy dependency (ogb, scikit-learn), so only the one asked for is imported.
    if spec == "ogbn-arxiv":
        from benchmarks.harness.datasets.arxiv import load_arxiv

        return load_arxiv(root, download)
    if spec == "digits":
        from benchmarks.harness.datasets.digits import load_digits_graph

        return load_digits_graph()
    if kind == "npz" and rest:
        from benchmarks.harness.datasets.npz import load_npz

        return load_npz(_expanded(rest))
    if kind == "planetoid" and rest:
        from benchmarks.harness.datasets.planetoid import load_planetoid

        return load_planetoid(rest, root, download)
    raise BenchmarkError(f"'dataset' must be one of {KNOWN} (got '{spec}'). Choose one of them.")


def _expanded(path: Path | str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name: then it is a name like any other
        return Path(path)
