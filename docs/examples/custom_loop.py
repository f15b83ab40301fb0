"""The core operator in a loop of your own: parameters are plain tensors, no module and no converter."""

import itertools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.functional import relu

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
torch.manual_seed(0)
sizes = (64, 256, 256, 10)
weights = [torch.nn.Parameter(torch.randn(m, n) / n**0.5) for n, m in itertools.pairwise(sizes)]
biases = [torch.nn.Parameter(torch.zeros(m)) for m in sizes[1:]]
optimizer = torch.optim.Adam([*weights, *biases], lr=2e-3)
config = RMMConfig(rate=0.1, codec="int8")


def forward(x):
    x = F.linear(x, weights[0], biases[0])  # x is there anyway: exact, and nothing more is kept
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = rmm_linear(relu(x), weight, bias, config=config)  # one bit an entry, and a sketch
    return x


kept = {}
with torch.autograd.graph.saved_tensors_hooks(
    lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
):
    forward(x)
own = {tensor.untyped_storage().data_ptr() for tensor in [x, *weights, *biases]}
total = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)
print(f"kept for backward: {total} bytes; each hidden matrix alone has {4 * len(x) * 256}")
print(f"a sketch of one, by the formula: {config.saved_bytes(len(x), 256)} bytes")
for epoch in range(61):
    optimizer.zero_grad()
    loss = F.cross_entropy(forward(x), y)
    loss.backward()
    optimizer.step()
    if epoch % 20 == 0:
        print(f"epoch {epoch:2}: loss {loss.item():.3f}")
