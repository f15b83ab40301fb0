"""What a row keeps, tensor by tensor: the package's memory report of one training step."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import writing
from benchmarks.harness.files import write_text
from benchmarks.harness.loader_choice import FULL
from benchmarks.harness.loaders import BatchLoader
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.subgraphs import use_product
from benchmarks.harness.task import Task
from benchmarks.harness.train import build_model

if TYPE_CHECKING:
    from rmm_gnn import MemoryReport


class _InContext(nn.Module):
    """A model whose forward pass alone runs under the method's context."""

    def __init__(self, model: nn.Module, run: RunConfig, task: Task) -> None:
        super().__init__()
        self.model = model
        self._run, self._task = run, task

    def forward(self, *inputs: Any) -> Tensor:
        with METHODS[self._run.method].context(self.model, self._run, self._task):
            return self.model(*inputs)


def ledger_stem(run: RunConfig) -> str:
    """``ledger-`` and the row's label, with nothing in it that a file name should not have."""
    return "ledger-" + re.sub(r"[^\w.]+", "-", run.label).strip("-")


def measure_ledger(run: RunConfig, dataset: NodeDataset) -> MemoryReport:
    """Measure one step of a freshly initialised model.

    Args:
        run: Any run of the row.
        dataset: The data: on the run's device, or on CPU for runs on sampled batches, of which one is measured.
    """
    from rmm_gnn import memory_report

    split = dataset.split_for(run.seed)
    if run.loader == FULL:
        task = Task.of(dataset, split.to(run.device))
        loss_fn = task.loss_fn
    else:
        batch = next(BatchLoader(run, dataset, split.train).epoch(1)).to(torch.device(run.device))
        # A matrix given directly would go in as another tensor, without the transpose that it carries.
        matrices = batch.matrices if isinstance(batch.adjacency, tuple) else batch.matrices * run.layers
        task, held = replace(batch, adjacency=matrices).task(), batch.tensors()

        def loss_fn(logits: Tensor, held: tuple[Tensor, ...] = held) -> Tensor:
            # What a loss brings along counts as input: of a batch, also the transposes that its matrices carry.
            return task.loss_fn(logits)

    model = build_model(run, dataset.x.shape[1], dataset.num_classes, task).train()
    if run.loader != FULL:
        use_product(model)
    return memory_report(_InContext(model, run, task), *task.inputs, loss_fn=loss_fn)


def write_ledger(run: RunConfig, dataset: NodeDataset, folder: Path) -> list[Path]:
    """Measure one step of a freshly initialised model and write text, JSON and picture.

    Args:
        run: Any run of the row.
        dataset: The data, on the run's device.
        folder: Exists.

    Returns:
        The files written.
    """
    report = measure_ledger(run, dataset)
    paths = [folder / f"{ledger_stem(run)}{suffix}" for suffix in (".txt", ".json", ".png")]
    write_text(paths[0], f"{report}\n")
    write_text(paths[1], json.dumps(report.to_dict(), indent=1) + "\n")
    with writing(paths[2]):
        report.plot(paths[2])
    return paths
