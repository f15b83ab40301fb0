"""The processes of a job that ``torchrun`` started: who one is, what is done together, and how an error ends all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.script import guarded, told

# Imported late, in the functions below: a single process reads its command line before torch is imported.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Result = TypeVar("Result")
# The others wait while the first evaluates, which may take long.
_TIMEOUT = timedelta(hours=2)
INTERRUPTED = 130


class SharedError(BenchmarkError):
    """An error that all ranks know of and raise together."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job; the one process of a job that torchrun did not start.

    Attributes:
        rank: Number of this process.
        world_size: How many there are.
        local_rank: Its number on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun says in the environment.

        Raises:
            BenchmarkError: When that makes no sense.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        values = [os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
            raise BenchmarkError(
                f"RANK and WORLD_SIZE must number the processes of a job (got {values[0]!r} of {values[1]!r}). Start "
                "it with torchrun, or unset both."
            )
        return cls(*map(int, values))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates, prints and writes."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the other processes: gloo for what is on CPU, nccl for what is on CUDA."""
        import torch
        import torch.distributed as dist

        both = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo", timeout=_TIMEOUT)

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank: ``cuda`` is then that of its number on the machine.

        Raises:
            BenchmarkError: When all would share one GPU, or there is none of that number.
        """
        import torch

        if self.world_size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise BenchmarkError(
                f"'device' must not name one GPU for {self.world_size} processes (got '{device}'). Use --device cuda: "
                "every process takes the one of its number."
            )
        if self.local_rank >= torch.cuda.device_count():
            raise BenchmarkError(
                f"There must be a GPU for every process on a machine (got {torch.cuda.device_count()} for process "
                f"{self.local_rank + 1}). Lower --nproc-per-node, or use --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return device

    def agree(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns here; if it fails on any rank as the user can put right, it fails on all.

        Raises:
            SharedError: On every rank, in place of the first rank's BenchmarkError, or of what the system refused it.
            SystemExit: On every rank, when it is raised on the first: by ``argparse``.
        """
        if self.world_size == 1:
            return work()
        result: Any = None
        failure: tuple[str, Any] | None = None
        try:
            with told():
                result = work()
        except BenchmarkError as error:
            failure = (str(error), None)
        except SystemExit as error:
            failure = ("", error.code)
        for rank, found in enumerate(self.gathered(failure)):
            if found is not None:
                message, code = found
                if not message:
                    raise SystemExit(code)
                raise SharedError(message if rank == 0 else f"{message} (process {rank} of {self.world_size})")
        return result

    def same(self, name: str, value: Result) -> Result:
        """``value``, if all ranks have the same.

        Raises:
            SharedError: When they have not.
        """
        values = self.gathered(value)
        if any(other != value for other in values):
            found = ", ".join(map(str, values))
            raise SharedError(
                f"'{name}' must be the same in every process (got {found}). Give all of them the same files."
            )
        return value

    def of_first(self, value: Result) -> Result:
        """What the first rank has."""
        return self.gathered(value)[0]

    def gathered(self, value: Result) -> list[Result]:
        """What every rank has."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def digests(self, model: nn.Module) -> list[str]:
        """A hash of the parameters of every rank: equal, unless training came apart."""
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        return self.gathered(digest.hexdigest()[:16])

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def total(self, *numbers: float) -> list[float]:
        """The sums over ranks."""
        if self.world_size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values)
        return values.tolist()

    def average(self, tensors: list[Tensor]) -> None:
        """Put the mean over ranks in the place of each tensor; what counts (integers) is rounded down."""
        if self.world_size == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(self.world_size, rounding_mode=None if tensor.is_floating_point() else "floor")

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks; itself in a single process."""
        if self.world_size == 1:
            return model
        import torch
        from torch.nn.parallel import DistributedDataParallel

        devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
        # Running statistics are averaged once an epoch; broadcasting rank 0's at every step would drop the others'.
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)


def run_ranks(work: Callable[[Ranks], int], interrupted: str) -> int:
    """The exit code of ``work`` on this rank; only the first prints, but for errors that another has for itself.

    Args:
        work: Takes the rank, returns the exit code where nothing goes wrong.
        interrupted: What to say after Ctrl-C, whose exit code is 130.
    """
    try:
        ranks = Ranks.of_environment()
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks.world_size == 1:
        return guarded(lambda: work(ranks), interrupted)
    import torch.distributed as dist

    ranks.join()
    try:
        with _silent(not ranks.is_first), told():
            code = work(ranks)
    except SharedError as error:
        if ranks.is_first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except BenchmarkError as error:
        # The others wait in vain for this rank: torchrun ends them when it has gone.
        print(f"error: {error} (process {ranks.rank} of {ranks.world_size})", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if ranks.is_first:
            print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except SystemExit:  # after `agree`: of all of them
        dist.destroy_process_group()
        raise
    if code != INTERRUPTED:
        # torchrun ends all as soon as one has failed: the first shall have spoken before.
        ranks.wait()
        dist.destroy_process_group()
    return code


@contextlib.contextmanager
def _silent(yes: bool) -> Iterator[None]:
    if not yes:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
