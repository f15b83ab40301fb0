"""Several threads, and a forked process, run layers at once: each gets what it would get alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, compress_activations, rmm_linear
from rmm_gnn.nn import RMMTorchLinear

THREADS, STEPS = 4, 3


def step(seed: int) -> list[torch.Tensor]:
    """One pass through most operators with seeds of its own."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(70, 12, generator=generator), torch.randn(12, 12, generator=generator)
    tensors = [x.requires_grad_(), weight.requires_grad_()]
    config = RMMConfig(rate=0.3, codec=("fp32", "int4")[seed % 2], sketch=("count_sketch", "sors")[seed // 2 % 2])
    hidden = rmm_linear(*tensors, config=config, seed=seed)
    hidden = lean.relu_dropout(lean.batch_norm(hidden, None, None, training=True, seed=seed), 0.3, seed=seed)
    hidden = lean.gelu(lean.layer_norm(hidden, [12], seed=seed), seed=seed)
    hidden = lean.shared_input_linear(hidden, weight, codec="int8", seed=seed)
    return [hidden.detach(), *torch.autograd.grad(hidden.square().sum(), tensors)]


def in_threads(function, arguments):
    barrier = Barrier(THREADS)

    def run(own):
        barrier.wait()
        return [function(argument) for argument in own]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(run, [arguments[number::THREADS] for number in range(THREADS)])
    return [result for part in zip(*parts, strict=True) for result in part]


def test_graphs_of_their_own():
    seeds = list(range(THREADS * STEPS))
    for found, expected in zip(in_threads(step, seeds), map(step, seeds), strict=True):
        assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def test_one_module_in_all():
    layer = RMMTorchLinear(12, 5, config=RMMConfig(rate=1.0))
    plain = torch.nn.Linear(12, 5)
    plain.load_state_dict(layer.state_dict())
    inputs = [torch.randn(40, 12, generator=torch.Generator().manual_seed(n)) for n in range(THREADS * STEPS)]

    def of(module):
        return lambda x: torch.autograd.grad(module(x).square().sum(), list(module.parameters()))

    for found, expected in zip(in_threads(of(layer), inputs), map(of(plain), inputs), strict=True):
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-3)


def test_backward_of_one_graph_in_another_thread():
    expected = step(3)
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(70, 12, generator=generator), torch.randn(12, 12, generator=generator)
    x.requires_grad_(), weight.requires_grad_()
    out = rmm_linear(x, weight, config=RMMConfig(rate=0.3), seed=3)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: torch.autograd.grad(out.sum(), [x, weight], retain_graph=True)).result()
    for own, other in zip(found, torch.autograd.grad(out.sum(), [x, weight]), strict=True):
        assert torch.equal(own, other)
    assert all(torch.equal(own, other) for own, other in zip(step(3), expected, strict=True))


def test_compress_activations_is_of_the_thread_that_entered_it():
    """Other threads keep whole what they keep."""

    def kept_bytes(compressed: bool) -> int:
        kept: list[int] = []

        def pack(tensor):
            kept.append(tensor.untyped_storage().nbytes())
            return tensor

        layer, x = torch.nn.Linear(32, 4), torch.randn(500, 32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if compressed:
                with compress_activations(RMMConfig(rate=0.1)):
                    layer(x)
            else:
                layer(x)
        return sum(kept)

    alone = [kept_bytes(True), kept_bytes(False)]
    assert alone[0] < alone[1] / 2
    assert in_threads(kept_bytes, [True, False] * (THREADS * 2)) == alone * (THREADS * 2)


def test_a_forked_process_computes_the_same():
    """With one thread: GNU's OpenMP, and so torch itself, waits for ever for threads that the parent had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = step(2)
    torch.set_num_threads(threads)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        same = False
        try:
            torch.set_num_threads(1)
            same = all(torch.equal(own, other) for own, other in zip(step(2), expected, strict=True))
        finally:
            os.write(write, b"1" if same else b"0")
            os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
