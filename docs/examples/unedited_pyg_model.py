"""A stock GraphSAGE of PyG, not edited: what it keeps by operator, before and under the mode."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE
from torch_geometric.utils import erdos_renyi_graph

from rmm_gnn import RMMConfig, compress_activations, memory_report

torch.manual_seed(0)
x, y = torch.randn(2000, 128), torch.randint(10, (2000,))
edge_index = erdos_renyi_graph(2000, 0.005)
model = GraphSAGE(128, 256, num_layers=3, out_channels=10, norm="batch_norm", dropout=0.5)
config = RMMConfig(rate=0.1, codec="int8")

before = memory_report(model, x, edge_index)
with compress_activations(config, held=(x,)):
    after = memory_report(model, x, edge_index)
print("stock\n" + before.table(by="operator"))
print("\ncompressed\n" + after.table(by="operator"))
print(f"\n{before.saved_bytes / after.saved_bytes:.1f}x less; not compressed: {after.untouched()}")

optimizer = torch.optim.Adam(model.parameters())
for step in range(3):  # a training loop changes in one line
    optimizer.zero_grad()
    with compress_activations(config, held=(x,)):
        loss = F.cross_entropy(model(x, edge_index), y)
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
