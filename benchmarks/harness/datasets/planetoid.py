"""Cora, CiteSeer and PubMed with their public split, through PyG."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.datasets.checks import check_archives, checked
from benchmarks.harness.datasets.planetoid_files import check_raw
from benchmarks.harness.datasets.staging import download_into, missing_files
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.propagation import normalized_adjacency

NAMES = {name.lower(): name for name in ("Cora", "CiteSeer", "PubMed")}
PUBLIC = (500, 1000)  # validation and test nodes of the public split, in each of them
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def load_planetoid(name: str, root: Path, download: bool = False) -> NodeDataset:
    """Read ``ROOT/NAME/raw/ind.name.*``; features as published, without row normalisation.

    The files are pickles.  They are read with nothing but arrays, matrices and lists first, and refused where they hold
    anything else, since PyG reads them without restriction.

    Args:
        name: Cora, CiteSeer or PubMed, in any case.
        root: Folder above NAME.
        download: Let PyG fetch the data when the folder is not there.

    Returns:
        The data set with its public split.

    Raises:
        BenchmarkError: When the name is unknown, or files are missing or unreadable.
    """
    if name.lower() not in NAMES:
        raise BenchmarkError(
            f"'dataset' must be planetoid: and one of {', '.join(NAMES.values())} (got '{name}'). Choose one of them."
        )
    name = NAMES[name.lower()]
    folder = root / name
    required = [f"raw/ind.{name.lower()}.{part}" for part in PARTS]
    missing = missing_files(folder, required)
    if missing and not download:
        state = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise BenchmarkError(
            f"The {name} data are not there: '{folder.absolute()}' {state}.\n"
            "  To fetch them, add --download.\n"
            f"  If you have them, put them in '{folder / 'raw'}', or "
            f"name the folder above '{name}' with --root.\n"
            "  To run on data that come with scikit-learn instead:\n"
            "      python benchmarks/ogbn_arxiv.py --dataset digits --rate 0.1"
        )
    from torch_geometric.datasets import Planetoid

    if missing:
        download_into(folder, lambda temporary: Planetoid(str(temporary), name))
    check_archives(folder / "processed")
    try:
        check_raw(folder / "raw", name.lower())
        with contextlib.redirect_stdout(sys.stderr):
            dataset = Planetoid(str(root), name)
        data = dataset[0]
        masks = (data.train_mask, data.val_mask, data.test_mask)
        made = NodeDataset(
            name=f"planetoid:{name}",
            title=name,
            x=data.x.float(),
            y=data.y.long(),
            adjacency=normalized_adjacency(data.edge_index, data.num_nodes),
            num_classes=dataset.num_classes,
            split=Split(*(mask.nonzero().view(-1) for mask in masks)),
        )
    except Exception as error:  # unpickling damaged files raises anything
        raise BenchmarkError(
            f"'{folder.absolute()}' could not be read ({type(error).__name__}: {error}). Get the files again."
        ) from error
    assert made.split is not None
    sizes = len(made.split.valid), len(made.split.test)
    if sizes != PUBLIC:
        raise BenchmarkError(
            f"'{folder.absolute()}' must have {PUBLIC[0]} validation and {PUBLIC[1]} test nodes (got {sizes[0]} and "
            f"{sizes[1]}). Get the files again."
        )
    return checked(made, folder.absolute())
