"""ogbn-arxiv through the real ``ogb`` loader and ``Evaluator``.

Three habits of ogb 1.3.6 are kept away from the user: its import starts a thread that asks PyPI for a newer
version; without its raw files it opens a connection, leaves an empty folder and asks a question on standard
input the next time; and its files do not load under PyTorch's safe unpickler unless PyG's classes are named.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.datasets.checks import check_archives, checked
from benchmarks.harness.datasets.staging import download_into, missing_files
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.propagation import normalized_adjacency

NAME = "ogbn-arxiv"
FOLDER = "ogbn_arxiv"
STAND_INS = "FEATURES_ARE_STAND_INS.txt"
STAND_INS_TITLE = "ogbn-arxiv graph, GPT-prediction features"
RAW = ["edge", "node-feat", "node-label", "node_year", "num-node-list", "num-edge-list"]
REQUIRED = [
    "RELEASE_v1.txt",
    *(f"raw/{name}.csv.gz" for name in RAW),
    *(f"split/time/{name}.csv.gz" for name in ("train", "valid", "test")),
]


def load_arxiv(root: Path, download: bool = False) -> NodeDataset:
    """Read ``ROOT/ogbn_arxiv`` (or ``ROOT/ogbn_arxiv_pyg``, which ogb prefers where it exists).

    The citation graph is made undirected.  A file FEATURES_ARE_STAND_INS.txt beside the data marks features
    that are not OGB's, and the data set is titled accordingly.

    Args:
        root: Folder above OGB's own.
        download: Let ogb fetch the data (about 80 MB) when the folder is not there.

    Returns:
        The data set with its published time split.

    Raises:
        BenchmarkError: When files are missing or unreadable, or ogb is not installed.
    """
    folder = root / f"{FOLDER}_pyg" if (root / f"{FOLDER}_pyg").exists() else root / FOLDER
    missing = missing_files(folder, REQUIRED)
    if missing and not download:
        raise BenchmarkError(_how_to_get(folder, missing))
    ogb = _import_ogb()
    if missing:
        download_into(folder, lambda temporary: _construct(ogb, temporary))
    check_archives(folder / "processed")
    stand_ins = (folder / STAND_INS).exists()
    try:
        data, split = _construct(ogb, root)
        made = NodeDataset(
            name=NAME,
            title=STAND_INS_TITLE if stand_ins else NAME,
            x=data.x.float(),
            y=data.y.view(-1).long(),
            adjacency=normalized_adjacency(data.edge_index, data.num_nodes),
            num_classes=int(data.y.max()) + 1,
            split=Split(split["train"], split["valid"], split["test"]),
            features_are_stand_ins=stand_ins,
            accuracy=_ogb_accuracy(ogb),
        )
    except (Exception, SystemExit) as error:  # pandas, gzip, pickle and ogb itself each raise their own kinds
        raise BenchmarkError(
            f"'{folder.absolute()}' could not be read ({type(error).__name__}: {error}). Get the files "
            f"again; if '{folder / 'processed'}' is from another version, delete that folder."
        ) from error
    return checked(made, folder.absolute())


def _how_to_get(folder: Path, missing: list[str]) -> str:
    state = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
    return (
        f"The ogbn-arxiv data are not there: '{folder.absolute()}' {state}.\n"
        "  To fetch them (about 80 MB), add --download.\n"
        "  If you have them, name the folder above OGB's 'ogbn_arxiv' with --root. Needed in 'ogbn_arxiv':\n"
        f"      {' '.join(REQUIRED)}\n"
        "  To run on data that come with scikit-learn instead:\n"
        "      python benchmarks/ogbn_arxiv.py --dataset digits --rate 0.1"
    )


def _import_ogb() -> ModuleType:
    blocked = "outdated" not in sys.modules
    if blocked:
        # None makes `import outdated` fail, and ogb then starts no thread that calls PyPI.
        sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        return require("ogb.nodeproppred")
    finally:
        if blocked:
            del sys.modules["outdated"]


def _construct(ogb: ModuleType, root: Path) -> tuple[Data, dict[str, Tensor]]:
    # Leaving the context forgets what it was given, so it must not be given what PyG itself has registered.
    known = torch.serialization.get_safe_globals()
    safe: list[Any] = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]
    safe = [kind for kind in safe if kind not in known]
    with (
        torch.serialization.safe_globals(safe),
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # pandas' arrays
        dataset = ogb.PygNodePropPredDataset(NAME, root=str(root))
        return dataset[0], dataset.get_idx_split()


def _ogb_accuracy(ogb: ModuleType) -> Callable[[Tensor, Tensor], float]:
    evaluator = ogb.Evaluator(NAME)

    def accuracy(y_true: Tensor, y_pred: Tensor) -> float:
        return float(evaluator.eval({"y_true": y_true.view(-1, 1), "y_pred": y_pred.view(-1, 1)})["acc"])

    return accuracy
