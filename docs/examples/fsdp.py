"""Training of layers that keep sketches, in a model whose weights are spread over the ranks (FSDP2).

Run: torchrun --nproc-per-node 2 docs/examples/fsdp.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
local_rank = int(os.environ["LOCAL_RANK"])  # by torchrun: its number on this machine
device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU())


torch.manual_seed(0)
config = RMMConfig(rate=0.1)
model = nn.Sequential(nn.Linear(64, 256), block(), block(), nn.Linear(256, 1)).to(device)
convert_to_rmm(model, config, lean=True)
for child in model:
    fully_shard(child)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

data = torch.Generator().manual_seed(0)
x, weights = torch.randn(4096, 64, generator=data), torch.randn(64, 1, generator=data)
y = torch.tanh(x @ weights / 4)
x, y = x[rank::ranks].to(device), y[rank::ranks].to(device)  # a shard of its own for every rank

for step in range(101):
    optimizer.zero_grad()
    with compress_activations(config, held=(x,)):  # the first layer reads x, which is there anyway: exact
        loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step:3d}  loss {mean.item() / ranks:.4f}", flush=True)

state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    stock = nn.Sequential(nn.Linear(64, 256), block(), block(), nn.Linear(256, 1))
    stock.load_state_dict(state)
dist.destroy_process_group()
