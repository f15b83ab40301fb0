"""What the tests of the layers look at: the seeds in use, the tensors kept, and whether an estimate is unbiased."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class SeedRecorder(TorchDispatchMode):
    """Notes the seed of every sketch that is made in forward and of every one that is applied again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[int] = []
        self.backward: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.rmm_gnn.linear.default:
            self.forward.append(int(args[3]))
        elif func is torch.ops.rmm_gnn.anchored_linear.default:
            self.forward.append(int(args[7]))
        elif func is torch.ops.rmm_gnn.linear_weight_grad.default:
            self.backward.append(int(args[2]))
        elif func is torch.ops.rmm_gnn.anchored_weight_grads.default:
            self.backward.append(int(args[1][0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Collects what autograd keeps for backward."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address and bytes of each storage behind dense tensors, once however many of them share it."""
    dense = (tensor for tensor in tensors if tensor.layout == torch.strided)
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in dense}


def kept_storages(saved: Iterable[Tensor], *, besides: Iterable[Tensor]) -> dict[int, int]:
    known = storages(besides)
    return {address: size for address, size in storages(saved).items() if address not in known}


@contextmanager
def one_thread() -> Iterator[None]:
    """Small products one after the other: starting threads for each would take longer than all else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def assert_unbiased(draw: Callable[[], Tensor], exact: Tensor, *, draws: int) -> Tensor:
    """The mean of ``draws`` estimates is ``exact`` within 5 sigma, and one mis-scaled by 5 % would not have been.

    Measured along ``exact`` itself, where a wrong scale shows best, and along a fixed random direction.
    """
    torch.manual_seed(0)
    with one_thread():
        samples = torch.stack([draw().detach().double().flatten() for _ in range(draws)])
    truth = exact.detach().double().flatten()
    other = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for direction in (truth, other):
        along = samples @ direction
        sigma = along.std() / draws**0.5
        assert sigma > 0, "every draw gave the same estimate"
        assert (along.mean() - truth @ direction).abs() < 5 * sigma
    along = samples @ truth
    assert 0.05 * (truth @ truth) > 10 * along.std() / draws**0.5, "too few draws to see 5 %"
    return samples.mean(0).view_as(exact)
