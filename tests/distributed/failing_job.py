"""A job one of whose ranks fails."""

import torch.distributed as dist


def fails_on_one_rank() -> None:
    dist.barrier()
    assert dist.get_rank() == 0, "the other rank is wrong"
    dist.barrier()


def is_not_reached() -> None: ...
