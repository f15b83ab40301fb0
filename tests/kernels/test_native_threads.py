"""The kernels in C run on torch's own threads, and on threads of their own where those are not there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rmm_gnn.kernels import count_sketch_native, native
from tests.kernels.compiler import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER
SEED = torch.tensor(2**40 + 11)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def sketch(matrix):
    return count_sketch_native.count_sketch(matrix, SEED, 400, 0, 400, with_sums=True)


def test_threads_of_torch_and_their_own_give_the_same(two_threads):
    matrix = torch.randn(4000, 256)
    assert native.threads_for(matrix.numel(), 400) == 2
    on_torchs = sketch(matrix)
    native.library().rmm_use_threads_of(None)
    try:
        on_their_own = sketch(matrix)
    finally:
        parallel = native._threads_of_torch()
        native.library().rmm_use_threads_of(parallel)
    assert parallel is not None  # the wheels of torch for Linux bring libgomp
    assert all(torch.equal(*pair) for pair in zip(on_torchs, on_their_own, strict=True))


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(two_threads):
    matrix = torch.randn(4000, 256)
    expected = sketch(matrix).rows  # torch's threads are there now
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        # Raw bytes: nothing here may start a parallel loop of torch's, which would wait for ever.
        os.write(writing, bytes(sketch(matrix).rows.numpy())[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert found == bytes(expected.numpy())[:4096]


def test_a_forked_process_may_be_the_first_to_load_the_library():
    """Its parent has torch's threads and never called a kernel."""
    script = """
import os, signal, torch
from rmm_gnn.kernels import count_sketch_native
torch.set_num_threads(2)
matrix = torch.randn(4000, 256)
torch.mm(matrix, matrix.T)
seed = torch.tensor(5)
child = os.fork()
if child == 0:
    signal.alarm(60)
    count_sketch_native.count_sketch(matrix, seed, 400, 0, 400)
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=150).returncode == 0


def test_a_machine_without_the_library_has_its_own_threads(monkeypatch, tmp_path):
    (library,) = Path(torch.__file__).with_name("lib").glob("libgomp*")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    assert native._threads_of_torch() is None
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libgomp.so").write_text("not a library")
    assert native._threads_of_torch() is None
    (tmp_path / "torch.libs").mkdir()
    (tmp_path / "torch.libs" / "libgomp-1.so").symlink_to(library)
    assert native._threads_of_torch() is not None


def test_small_work_is_done_by_one(two_threads):
    assert native.threads_for(1000, 10) == 1
    assert native.threads_for(1 << 20, 1) == 1
    assert native.threads_for(0, 0) == 1
