"""What is kept for backward goes when backward has run, when it never will, and when a pass raises."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.micro.long_run_model import CONFIGS, Run, SavedStorages
from tests.nn.recording import one_thread


class Stop(Exception):
    """Raised on purpose."""


def stop(*_: object) -> None:
    raise Stop


class MadeStorages(SavedStorages, TorchDispatchMode):
    """Refers to what this library's operators returned, and so sees without hooks, which keep tensors otherwise."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        SavedStorages.__init__(self, set())

    def watch(self) -> MadeStorages:
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "rmm_gnn":
            self.references += [StorageWeakRef(tensor.untyped_storage()) for tensor in tree_leaves(out)]
        return out


class WatchedRun(Run):
    """Watches what autograd saves, or what the operators made."""

    made = False

    def saved_storages(self) -> SavedStorages:
        return MadeStorages() if self.made else super().saved_storages()


@pytest.fixture(params=product(CONFIGS, (False, True)), ids=lambda param: f"{param[0]}-{('saved', 'made')[param[1]]}")
def run(request: pytest.FixtureRequest) -> Iterator[WatchedRun]:
    """A run of whose steps the first is done; without the collector, so that a cycle counts as a leak."""
    with one_thread():
        made = WatchedRun(request.param[0])
        made.made = request.param[1]
        made.step()
        gc.collect()
        gc.disable()
        try:
            yield made
        finally:
            gc.enable()


def forward(run: Run) -> tuple[Tensor, SavedStorages]:
    saved = run.saved_storages()
    with saved.watch():
        loss = run.loss()
    assert run.left(saved) > 15, "what is kept would not have been seen"
    return loss, saved


def test_after_backward(run):
    for _ in range(2):
        loss, saved = forward(run)
        loss.backward()
        assert run.left(saved) == 0, "while somebody holds the loss"


def test_after_the_second_backward_through_one_graph(run):
    loss, saved = forward(run)
    loss.backward(retain_graph=True)
    assert run.left(saved) > 15
    loss.backward()
    assert run.left(saved) == 0


def test_when_backward_is_never_called(run):
    loss, saved = forward(run)
    del loss
    assert run.left(saved) == 0


def test_when_forward_raises(run):
    saved, hook = run.saved_storages(), run.model.last.register_forward_hook(stop)
    try:
        with saved.watch():
            run.loss()
    except Stop:
        assert run.left(saved) > 15
    else:
        raise AssertionError("it did not raise")
    hook.remove()
    assert run.left(saved) == 0
    run.step()


def test_when_backward_raises(run):
    def stop_in_backward(module: nn.Module, args: object, out: Tensor) -> None:
        out.register_hook(stop)

    hook = run.model.convs[0].register_forward_hook(stop_in_backward)
    loss, saved = forward(run)
    try:
        loss.backward()
    except Stop:
        pass
    else:
        raise AssertionError("it did not raise")
    hook.remove()
    del loss
    assert run.left(saved) == 0
    run.step()
