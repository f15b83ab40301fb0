"""GCN2 in full batch, exactly and leanly: the same weights and steps, a thirtieth of the bytes."""

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch_geometric.nn import GCN2Conv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report


class Net(torch.nn.Module):
    def __init__(self, features, hidden, classes, layers=4):
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(features, hidden), torch.nn.Linear(hidden, classes)
        settings = {"alpha": 0.5, "shared_weights": False, "normalize": False}
        self.convs = torch.nn.ModuleList(GCN2Conv(hidden, **settings) for _ in range(layers))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(hidden) for _ in range(layers))

    def forward(self, x, adjacency):
        x = x_0 = F.relu(self.enter(F.dropout(x, 0.1, self.training)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.dropout(F.relu(norm(conv(x, x_0, adjacency)) + x), 0.1, self.training)
        return self.leave(x)


# scikit-learn's handwritten digits, each joined to its 10 nearest neighbours. In CSR no message is made for each edge;
# normalised once, no layer makes and keeps a normalised copy of its own.
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
neighbours = np.stack(kneighbors_graph(pixels, 10).nonzero())
adjacency = to_torch_csr_tensor(*gcn_norm(to_undirected(torch.from_numpy(neighbours).long())), size=len(x))
train = torch.rand(len(x), generator=torch.Generator().manual_seed(0)) < 0.1

config = RMMConfig(rate=0.55, codec="int2", norm_codec="int1", x0_codec="int2")  # many rows in few bits
for lean in (False, True):
    torch.manual_seed(0)
    model = Net(64, 64, 10)
    if lean:
        convert_to_rmm(model, config)  # GCN2 layers share one coded x_0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        # ReLU, dropout, BatchNorm and the other products; what reads x is exact.
        with compress_activations(config, held=(x,)) if lean else nullcontext():
            loss = F.cross_entropy(model(x, adjacency)[train], y[train])
        loss.backward()
        optimizer.step()
    with compress_activations(config, held=(x,)) if lean else nullcontext():
        kept = memory_report(model, x, adjacency).saved_bytes
    model.eval()
    with torch.no_grad():  # outside of the mode
        accuracy = (model(x, adjacency).argmax(1) == y)[~train].float().mean().item()
    print(f"{'lean' if lean else 'exact':5}: {kept / 2**10:6.0f} KiB kept, test accuracy {100 * accuracy:.1f} %")
