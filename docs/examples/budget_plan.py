"""Say how many bytes may be kept: a plan gives every layer its rate, codec and centring."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch_geometric.nn import GCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from rmm_gnn import Plan, memory_report, plan

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
neighbours = torch.from_numpy(np.stack(kneighbors_graph(pixels, 10).nonzero())).long()
adjacency = to_torch_csr_tensor(*gcn_norm(to_undirected(neighbours)), size=len(x))

torch.manual_seed(0)
model = GCN(64, 64, num_layers=3, out_channels=10, norm="batch_norm", dropout=0.1, normalize=False)


def loss_of(out):
    return F.cross_entropy(out, y)


made = plan(model, (x, adjacency), loss_of, budget="3%")  # or "2GiB", or noise=0.05 in its place
print(made)

made = Plan.from_json(made.to_json())  # a plan can be kept in a file
made.apply(model)
with made.context(x):
    report = memory_report(model, x, adjacency, loss_fn=loss_of)
print(f"\npredicted: {made.saved_bytes} bytes; counted by memory_report: {report.saved_bytes}")

optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(10):
    optimizer.zero_grad()
    with made.context(x):
        loss = loss_of(model(x, adjacency))
    loss.backward()
    optimizer.step()
print(f"loss after 10 epochs: {loss.item():.3f}")
