"""The loaders by name, the settings that each has, and what has to be installed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.harness.errors import BenchmarkError

if TYPE_CHECKING:
    from benchmarks.harness.run_config import RunConfig

FULL = "full"
# Settings that every loader but `full` has.
_COMMON = ("edge_weights", "eval_chunk", "workers")
# Methods that choose their settings by what one step of the whole graph keeps.
_PLANNED = ("rmm-plan", "rmm-uniform")


@dataclass(frozen=True)
class Loader:
    """A way to feed the training nodes.

    Attributes:
        settings: Fields of the sweep that apply.
        edge_weights: What these are unless they are chosen.
        is_there: Whether what PyG needs for it can be imported.
        missing: What to install where it cannot.
    """

    settings: tuple[str, ...] = ()
    edge_weights: str = "scaled"
    is_there: Callable[[], bool] = lambda: True
    missing: str = ""


def _has_torch_sparse() -> bool:
    import torch_geometric.typing as pyg

    return bool(pyg.WITH_TORCH_SPARSE)


def _partitions() -> bool:
    return find_spec("pymetis") is not None


LOADERS: dict[str, Loader] = {
    FULL: Loader(),
    "neighbor": Loader(("fan_out", "batch_size", *_COMMON)),
    "cluster": Loader(
        ("num_parts", "parts_per_batch", *_COMMON),
        "scaled",
        _partitions,
        "needs METIS, and pymetis is not installed: pip install -e '.[cluster]'",
    ),
    "saint": Loader(
        ("batch_size", "walk_length", "coverage", *_COMMON),
        "scaled",
        _has_torch_sparse,
        "needs torch-sparse, which could not be imported: build it with scripts/install_sparse.sh",
    ),
    "random-nodes": Loader(("num_parts", "parts_per_batch", *_COMMON), "plain"),
}
SETTINGS = tuple(dict.fromkeys(name for loader in LOADERS.values() for name in loader.settings))


def require_loader(name: str) -> None:
    """Look for what a loader needs, before anything is read.

    Raises:
        BenchmarkError: When it is missing.
    """
    loader = LOADERS[name]
    if not loader.is_there():
        free = " or ".join(other for other, one in LOADERS.items() if other != FULL and not one.missing)
        raise BenchmarkError(f"--loader {name} {loader.missing}. Or use --loader {free}, which needs nothing else.")


def check_run(run: RunConfig) -> None:
    """Refuse what a run cannot do with its loader and its number of processes.

    Raises:
        ValueError: When it asks for that.
    """
    if run.loader == FULL:
        if run.world_size > 1:
            raise ValueError(
                f"'loader' must divide the graph among {run.world_size} processes (got 'full', which trains on the "
                "whole graph in every one). Use --loader neighbor, cluster, saint or random-nodes, or leave out "
                "torchrun."
            )
        return
    if run.method in _PLANNED:
        raise ValueError(
            f"'method' must not look at the whole graph (got '{run.method}' with --loader {run.loader}). Use rmm-lean "
            "with the rate and codecs that a plan on a smaller graph gave."
        )
    if run.adaptive not in (None, "off"):
        raise ValueError(
            f"'adaptive' must be off (got '{run.adaptive}' with --loader {run.loader}): it measures noise between "
            "steps that see the same rows. Use it with --loader full."
        )
    if run.sketch is not None and run.sketch.startswith("importance_sampling"):
        raise ValueError(
            f"'sketch' must not remember rows (got '{run.sketch}' with --loader {run.loader}): it reads the norms of "
            "the step before, which saw other rows. Use norm_sampling."
        )
