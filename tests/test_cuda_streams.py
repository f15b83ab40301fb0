"""On a side stream layers compute what they compute on the default one, in forward and in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmm_gnn import RMMConfig, convert_to_rmm
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.sketches import FAMILIES

ROWS, WIDTH = 3000, 39
DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
# Long enough for a stream that does not wait for another one to be seen.
_SLEEP_CYCLES = 20_000_000


def beside(run: Callable[[], Any], device: str) -> Any:
    """The result of ``run`` on a side stream that lags behind; on the CPU, simply its result."""
    if device == "cpu":
        return run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(_SLEEP_CYCLES)
        result = run()
    torch.cuda.current_stream().wait_stream(side)
    return result


def lean_block(config: RMMConfig) -> nn.Module:
    return convert_to_rmm(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.GELU()),
        config,
        lean=True,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        family: lambda family=family: RMMTorchLinear(
            WIDTH, WIDTH, config=RMMConfig(rate=0.2, sketch=family, codec="int8")
        )
        for family in FAMILIES
    },
    "lean": lambda: lean_block(RMMConfig(rate=0.2)),
}  # fmt: skip


def step(model: nn.Module, x: Tensor, forward_beside: bool, backward_beside: bool, device: str) -> list[Tensor]:
    """Gradients under a fixed seed."""
    torch.manual_seed(3)
    model.zero_grad()
    weights = torch.linspace(-1, 1, WIDTH, device=device)

    def forward() -> Tensor:
        return (model(x) * weights).square().mean()

    loss = beside(forward, device) if forward_beside else forward()

    def backward() -> None:
        loss.backward()

    beside(backward, device) if backward_beside else backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("streams", [(True, True), (True, False), (False, True)], ids=["both", "forward", "backward"])
@pytest.mark.parametrize("name", MODELS)
@DEVICE
def test_a_side_stream_gives_what_the_default_stream_gives(name, streams, device):
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    x = torch.randn(ROWS, WIDTH, device=device)
    # As importance sampling holds norms from one step to the next, each step here is the first one of its model.
    found = []
    for places in ((False, False), streams):
        for layer in model.modules():
            for held in [held for held in vars(layer) if held.startswith("_rmm")]:
                delattr(layer, held)
        found.append(step(model, x, *places, device))
    for beside_it, default in zip(found[1], found[0], strict=True):
        assert default.abs().sum() > 0
        torch.testing.assert_close(beside_it, default, rtol=1e-4, atol=1e-6)
