"""Hold the noise of sketches at a share of the data's: rates move by themselves."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from rmm_gnn import NoiseController, RMMConfig, convert_to_rmm

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
convert_to_rmm(model, RMMConfig(rate=0.1, codec="int4"))
optimizer = torch.optim.Adam(model.parameters())
controller = NoiseController(model, target=1.0, every=10)
for step in range(101):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    controller.step()  # after backward
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3}:", ", ".join(f"{name} at rate {rate:.2f}" for name, rate in controller.rates.items()))
for change in list(controller.history)[-2:]:
    print(f"measured last at {change.layer}: {change.measured:.2f} of the data's noise")
