"""A whole training step in a CUDA graph: every replay draws its own S, masks and rounding, and the host sees no seed.

What is captured on a GPU is run as it is on the CPU, so that only the capture itself waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, rmm_linear
from rmm_gnn.nn import LeanDropout, LeanGELU, LeanReLUDropout, RMMLinear, RMMTorchLinear
from rmm_gnn.sketches import FAMILIES
from tests.nn.recording import assert_unbiased, one_thread

ROWS, WIDTH = 512, 8
DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def aligned(out: Tensor, x: Tensor) -> Tensor:
    """A loss whose gradient is far from orthogonal to x, so that few draws tell its mean from 0."""
    return (out * (x.detach().cumsum(1) + 1)).mean()


def squares(out: Tensor, x: Tensor) -> Tensor:
    return (out - 2 * x.detach().sum(1, keepdim=True)).square().mean()


class Step:
    """Forward, backward and the optimizer's step, on tensors that stay where they are.

    Attributes:
        out: Output of the latest run, or replay.
        loss: Likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        optimizer: torch.optim.Optimizer,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
        loss_of: Callable[[Tensor, Tensor], Tensor] = aligned,
    ) -> None:
        self.model, self.inputs, self.optimizer = model, inputs, optimizer
        self.context, self.loss_of = context, loss_of

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.inputs[0].grad = None
        with self.context():
            self.out = self.model(*self.inputs)
        self.loss = self.loss_of(self.out, self.inputs[0])
        self.loss.backward()
        self.optimizer.step()


def captured(step: Step) -> Callable[[], None]:
    """What runs the step again: the replay of its graph on a GPU, the step itself elsewhere."""
    if not step.inputs[0].is_cuda:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which refuses whatever waits for the GPU
        step()
    return graph.replay


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


def draw_x(device: str) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()


def ring(device: str) -> Tensor:
    nodes = torch.arange(ROWS, device=device)
    return torch.stack([nodes.repeat(2), torch.cat([nodes, (nodes + 1) % ROWS])])  # with loops


def still(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose steps are made and change nothing: the gradient of every step is that of the same weights."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


class Masked(nn.Module):
    """A layer that sketches three of four rows; the others have no gradient."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, device=device))
        self.mask = torch.arange(ROWS, device=device) % 4 > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight) * self.mask.unsqueeze(1)
        out = rmm_linear(x, self.weight, config=RMMConfig(rate=0.5), row_mask=self.mask)
        return out * self.mask.unsqueeze(1)


class Convolution(nn.Module):
    def __init__(self, config: RMMConfig) -> None:
        super().__init__()
        from torch_geometric.nn import GCN2Conv

        self.conv = GCN2Conv(WIDTH, 0.3, theta=0.5, layer=1, shared_weights=False, normalize=False)
        convert_to_rmm(self, config)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.conv(x, x.detach(), edges)


LAYERS: dict[str, Callable[[str], nn.Module]] = {
    **{
        family: lambda device, family=family: RMMTorchLinear(
            WIDTH, WIDTH, device=device, config=RMMConfig(rate=0.5, sketch=family)
        )
        for family in FAMILIES
    },
    "int4": lambda device: RMMTorchLinear(WIDTH, WIDTH, device=device, config=RMMConfig(rate=0.5, codec="int4")),
    "RMMLinear": lambda device: RMMLinear(WIDTH, WIDTH, config=RMMConfig(rate=0.5)).to(device),
    "RMMGCN2Conv": lambda device: Convolution(RMMConfig(rate=0.5, x0_codec="int8")).to(device),
    "row mask": Masked,
    "gelu": lambda device: nn.Sequential(
        nn.Linear(WIDTH, WIDTH), LeanGELU(config=RMMConfig(act_codec="int2"))
    ).to(device),
    # Last, since it is the one that calls a solver: a capture that fails spoils those after it in the process.
    "RMMGCN2Conv, anchored": lambda device: Convolution(RMMConfig(rate=0.5, anchor=True)).to(device),
}  # fmt: skip


def weight_of(model: nn.Module) -> Tensor:
    return next(parameter for parameter in model.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize("name", LAYERS)
@DEVICE
def test_replays_draw_anew_and_average_to_the_gradient(name, device):
    torch.manual_seed(0)
    model, x = LAYERS[name](device), draw_x(device)
    inputs = (x, ring(device)) if "Conv" in name else (x,)
    model.eval()
    (exact,) = torch.autograd.grad(aligned(model(*inputs), x), weight_of(model))
    model.train()
    run = captured(Step(model, inputs, still(model)))
    samples: list[Tensor] = []

    def draw() -> Tensor:
        run()
        samples.append(weight_of(model).grad.cpu())
        return samples[-1].clone()

    assert_unbiased(draw, exact.cpu(), draws=300)
    assert not any(torch.equal(one, other) for one, other in pairwise(samples))


@DEVICE
def test_a_seed_replays_the_replays(device):
    model = LAYERS["count_sketch"](device)
    run = captured(Step(model, (draw_x(device),), still(model)))
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        grads = []
        for _ in range(3):
            run()
            grads.append(model.weight.grad.clone())
        runs.append(grads)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(runs[0][0], runs[0][1]) and not torch.allclose(runs[0][1], runs[0][2])


@pytest.mark.parametrize("dropout", [LeanDropout, LeanReLUDropout])
@DEVICE
def test_replays_drop_other_entries_with_the_right_probability(dropout, device):
    p, replays = 0.3, 200
    x = draw_x(device).detach().abs().add(0.1).requires_grad_()
    model = nn.Sequential(dropout(p), nn.Identity())
    step = Step(model, (x,), torch.optim.SGD([x], lr=0.0))
    run, masks = captured(step), []
    for _ in range(replays):
        run()
        masks.append((step.out != 0).cpu())
        # The gradient passes where the value passed: one mask for both directions of a replay.
        assert torch.equal(x.grad != 0, step.out != 0)
    kept = torch.stack(masks).double()
    assert not any(torch.equal(one, other) for one, other in pairwise(masks))
    sigma = (p * (1 - p) / kept.numel()) ** 0.5
    assert (kept.mean() - (1 - p)).abs() < 5 * sigma
    assert 0.05 * (1 - p) > 10 * sigma, "too few entries to see 5 %"
    worst = (kept.mean(0) - (1 - p)).abs().max()  # of any one entry: a mask that stays would give p
    assert worst < 6 * (p * (1 - p) / replays) ** 0.5 < p


def block() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.LayerNorm(16), nn.GELU(),
        nn.RMSNorm(16), nn.Linear(16, WIDTH),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["modules", "mode"])
@DEVICE
def test_a_model_trains_in_a_graph(kind, device):
    config = RMMConfig(rate=0.5, codec="int8", norm_codec="int8")
    model = block().to(device)
    if kind == "modules":
        convert_to_rmm(model, config, lean=True)
    # A graph holds what it counts on the GPU: on the CPU there is no such thing to ask for.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, capturable=device == "cuda")
    context = (lambda: compress_activations(config)) if kind == "mode" else nullcontext
    step = Step(model, (draw_x(device),), optimizer, context, squares)
    run = captured(step)
    run()
    first, statistics = step.loss.item(), model[1].running_var.clone()
    batches = int(model[1].num_batches_tracked)
    for _ in range(60):
        run()
    assert step.loss.item() < 0.7 * first
    assert int(model[1].num_batches_tracked) == batches + 60
    assert not torch.equal(statistics, model[1].running_var)


@pytest.mark.cuda
def test_a_capture_leaves_no_norms_behind():
    """A layer of ``importance_sampling`` would hold memory of the graph, and the graph read memory of the layer."""
    layer = LAYERS["importance_sampling"]("cuda")
    step = Step(layer, (draw_x("cuda"),), still(layer))
    captured(step)  # whose warm-up, which is no part of the graph, does leave norms

    def held() -> dict[str, int]:
        return {name: value.data_ptr() for name, value in vars(layer).items() if name.startswith("_rmm")}

    before = held()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        step()
    assert before and held() == before
