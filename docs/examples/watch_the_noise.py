"""Watch what sketches add to the weight gradients, beside what the choice of samples brings anyway."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from rmm_gnn import GradientProbe, RMMConfig, convert_to_rmm

picture = sys.argv[1] if len(sys.argv) > 1 else "noise.png"
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
)
convert_to_rmm(model, RMMConfig(rate=0.1))
optimizer = torch.optim.Adam(model.parameters())
probe = GradientProbe(model, every=20)  # the run is the one without a probe, random numbers included
for _ in range(101):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
probe.remove()

print("step  weight    noise to signal  over the data's noise")
for record in probe.records:
    if record.step in (0, 60, 100):
        print(f"{record.step:4}  {record.layer:9} {record.relative_noise:15.3f} {record.variance_ratio:22.2f}")
probe.plot(picture)
print(f"wrote {picture}: both variances, their ratio and alpha, as the paper's Figures 3 and 5")
