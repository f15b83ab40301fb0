"""Data-parallel training of layers that keep sketches.

Run: torchrun --nproc-per-node 2 docs/examples/ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rmm_gnn import RMMConfig, convert_to_rmm, revert_rmm

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
local_rank = int(os.environ["LOCAL_RANK"])  # by torchrun: its number on this machine
device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)

torch.manual_seed(0)  # the same weights on all ranks; sketches differ all the same
model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 1))
convert_to_rmm(model, RMMConfig(rate=0.1), lean=True)
model = DistributedDataParallel(model.to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

data = torch.Generator().manual_seed(0)
x, weights = torch.randn(4096, 64, generator=data), torch.randn(64, 1, generator=data)
y = torch.tanh(x @ weights / 4)
x, y = x[rank::ranks].to(device), y[rank::ranks].to(device)  # a shard of its own for every rank

for step in range(101):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step:3d}  loss {mean.item() / ranks:.4f}", flush=True)

revert_rmm(model.module).eval()  # the layers of torch again; their state_dict was the same all the time
dist.destroy_process_group()
