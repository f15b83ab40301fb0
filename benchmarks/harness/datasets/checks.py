"""What any data set must be, told before the first run and not by an index error in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import BenchmarkError


def checked(dataset: NodeDataset, path: Path) -> NodeDataset:
    """Return the data set if its parts fit one another.

    Args:
        dataset: On CPU.
        path: File or folder that it was read from, for the message.

    Raises:
        BenchmarkError: When a part does not fit.
    """
    x, y, nodes = dataset.x, dataset.y, dataset.adjacency.shape[0]
    found = [
        (x.dim() == 2 and x.shape[0] == nodes, f"have features [{nodes}, F], a row for each node", list(x.shape)),
        (bool(x.isfinite().all()), "have finite features", "inf or nan"),
        (y.shape == (nodes,), f"have one class for each of {nodes} nodes", list(y.shape)),
    ]
    if y.numel():
        low, high = int(y.min()), int(y.max())
        rule = f"have classes from 0 to {dataset.num_classes - 1}"
        found.append((0 <= low and high < dataset.num_classes, rule, f"{low} to {high}"))
    split = dataset.split
    parts = {} if split is None else {"training": split.train, "validation": split.valid, "test": split.test}
    for name, part in parts.items():
        found.append((part.numel() > 0, f"have {name} nodes", "none"))
        if part.numel():
            low, high = int(part.min()), int(part.max())
            found.append((0 <= low and high < nodes, f"have {name} nodes in [0, {nodes})", f"{low} to {high}"))
    if parts:
        together = torch.cat([part.view(-1) for part in parts.values()])
        twice = together.numel() - together.unique().numel()
        found.append((twice == 0, "have no node twice in its split", f"{twice} repetitions"))
    for holds, rule, got in found:
        if not holds:
            raise BenchmarkError(f"'{path}' must {rule} (got {got}). Get the data again.")
    return dataset


def check_archives(folder: Path) -> None:
    """Check the checksums in the files that `torch.save` wrote in a folder: `torch.load` does not.

    Raises:
        BenchmarkError: When one is damaged.
    """
    for path in sorted(folder.glob("*.pt")) if folder.is_dir() else ():
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            damaged = str(error)
        if damaged is not None:
            raise BenchmarkError(
                f"'{path}' must be as it was written (got damage: {damaged}). Delete the folder '{folder}': it is made "
                "again from the raw files."
            )
