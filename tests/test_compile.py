"""Under torch.compile the layers draw, keep and estimate what they do without it.

One layer does not show the faults this guards against: a partitioner that draws anew in backward or keeps all of x, and
a pass that merges equal calls.  So every model here has several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Module, Sequential
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN2Conv, Linear

from rmm_gnn import RMMConfig, convert_to_rmm, rmm_linear
from rmm_gnn.nn import RMMTorchLinear
from tests.nn.recording import kept_storages, one_thread, saved_tensors

ROWS, WIDTH = 4096, 8
CONFIG = RMMConfig(rate=0.25)


class Attention(Module):
    """Three layers that read the same x, as query, key and value do."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (RMMTorchLinear(WIDTH, WIDTH, config=CONFIG) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.query(x)) * self.key(x) + self.value(x)


class Recurrent(Module):
    """One layer that is applied to the same x twice, and again to what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = RMMTorchLinear(WIDTH, WIDTH, config=CONFIG)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)) + self.layer(x))


class Graph(Module):
    """Layers of PyG on a ring, converted."""

    def __init__(self, config: RMMConfig = CONFIG) -> None:
        super().__init__()
        self.embed = Linear(WIDTH, WIDTH)
        self.convs = torch.nn.ModuleList(
            GCN2Conv(WIDTH, 0.3, theta=0.5, layer=1, shared_weights=False, normalize=False) for _ in range(2)
        )
        nodes = torch.arange(ROWS)
        self.register_buffer("edges", torch.stack([nodes, (nodes + 1) % ROWS]))
        convert_to_rmm(self, config)

    def forward(self, x: Tensor) -> Tensor:
        x = x_0 = self.embed(x)
        for conv in self.convs:
            x = torch.tanh(conv(x, x_0, self.edges))
        return x


class Checkpointed(Module):
    """Two layers that are recomputed in backward, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = mlp(), RMMTorchLinear(WIDTH, WIDTH, config=CONFIG)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(checkpoint(self.inner, x, use_reentrant=False))


def mlp() -> Sequential:
    layers = [RMMTorchLinear(WIDTH, WIDTH, config=CONFIG) for _ in range(3)]
    return Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])


MODELS: dict[str, tuple[Callable[[], Module], int]] = {  # and how many sketches one call makes
    "mlp": (mlp, 3),
    "attention": (Attention, 3),
    "recurrent": (Recurrent, 3),
    "graph": (Graph, 3),
    "anchored graph": (lambda: Graph(replace(CONFIG, anchor=True)), 3),
}


@dataclass(frozen=True)
class Subject:
    model: Module
    compiled: Module
    sketches: int


@pytest.fixture(scope="module", params=["aot_eager", "inductor"])
def backend(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def subject(request, backend) -> Iterator[Subject]:
    """One model, compiled once for all tests that only look at what it does."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    build, sketches = MODELS[request.param]
    model = build()
    yield Subject(model, torch.compile(model, backend=backend, fullgraph=True), sketches)
    torch._dynamo.reset()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def weight_grads(run: Callable[[Tensor], Tensor], model: Module, x: Tensor) -> Tensor:
    """Gradients of all weights, one after the other, of a loss whose gradient is far from 0."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    out = run(x)
    target = torch.linspace(-1, 1, WIDTH) + x.sum(1, keepdim=True)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad((out * target).sum(), weights)])


def exact_grads(model: Module, x: Tensor) -> Tensor:
    model.eval()
    try:
        return weight_grads(model, model, x).double()
    finally:
        model.train()


def assert_estimates(run: Callable[[Tensor], Tensor], model: Module, x: Tensor, *, steps: int = 80) -> None:
    """Mean over steps against the exact gradient, weight by weight: a z-score, and the error of one step.

    A gradient formed with another S than the sketch has mean 0, far outside; so is one mis-scaled by 5 %.
    """
    exact = exact_grads(model, x)
    samples = torch.stack([weight_grads(run, model, x).double() for _ in range(steps)])
    eager = torch.stack([weight_grads(model, model, x).double() for _ in range(30)])
    parts = exact.split(WIDTH * WIDTH)
    for part, truth in zip(samples.split(WIDTH * WIDTH, dim=1), parts, strict=True):
        along = part @ truth / (truth @ truth)
        sigma = along.std() / steps**0.5
        assert (along.mean() - 1).abs() < 5 * sigma + 1e-4  # of weight2 all draws agree to rounding
        assert 0.05 > 8 * sigma, "too few steps to see 5 %"

    single, reference = ((grads - exact).square().sum(1).mean() for grads in (samples, eager))
    assert 0.7 < single / reference < 1.4, "one step's error must be that of the same layers without the compiler"
    mean = (samples.mean(0) - exact).square().sum()
    assert mean < 3 * single / steps, "averaging must take the error down as independent draws do"


def test_the_weight_gradients_are_unbiased(subject, x):
    torch.manual_seed(0)
    assert_estimates(subject.compiled, subject.model, x)


def test_steps_differ_and_manual_seed_replays_them(subject, x):
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([weight_grads(subject.compiled, subject.model, x) for _ in range(3)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1]) and not torch.equal(runs[0][1], runs[0][2])


def test_every_layer_and_every_step_has_a_seed_of_its_own(subject, x):
    seeds: list[int] = []
    for _ in range(3):
        with saved_tensors() as saved:
            subject.compiled(x)
        seeds += [int(tensor) for tensor in saved if tensor.dtype == torch.int64 and tensor.dim() == 0]
    assert len(set(seeds)) == len(seeds) == 3 * subject.sketches


def test_outputs_and_exact_gradients_are_those_of_the_plain_layers(subject, x):
    x.requires_grad_()
    biases = [parameter for parameter in subject.model.parameters() if parameter.dim() == 1]
    outputs = [subject.model.eval()(x)]
    subject.model.train()
    outputs.append(subject.compiled(x))
    torch.testing.assert_close(outputs[1], outputs[0])
    grads = [torch.autograd.grad(out.square().sum(), [x, *biases]) for out in outputs]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-2)


@pytest.mark.usefixtures("fresh_compiler")
def test_layers_recomputed_in_backward_are_unbiased(backend, x):
    model = Checkpointed()
    assert_estimates(torch.compile(model, backend=backend, fullgraph=True), model, x)


@pytest.mark.usefixtures("fresh_compiler")
def test_the_inputs_of_the_layers_are_not_kept(x):
    model = mlp()
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    with saved_tensors() as saved:
        compiled(x)
    kept = kept_storages(saved, besides=model.parameters())
    masks = 2 * ROWS * WIDTH  # of the two ReLUs, a byte for each number
    assert sum(kept.values()) == 3 * CONFIG.saved_bytes(ROWS, WIDTH) + masks
    assert x.untyped_storage().data_ptr() not in kept and all(size < x.nbytes for size in kept.values())


@pytest.mark.usefixtures("fresh_compiler")
def test_exact_layers_do_keep_their_inputs(x):
    # What the test above must be able to see.
    model = Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(3)))
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    with saved_tensors() as saved:
        compiled(x)
    assert sum(size >= x.nbytes for size in kept_storages(saved, besides=model.parameters()).values()) == 3


@pytest.mark.usefixtures("fresh_compiler")
def test_training_does_not_recompile(backend, x):
    model = mlp()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):
            optimizer.zero_grad()
            compiled(x).square().mean().backward()
            optimizer.step()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("config", [CONFIG, RMMConfig(size=20, min_size=4), RMMConfig(rate=0.3, sketch="row_sampling")])
def test_one_graph_serves_all_row_counts(backend, config):
    model = convert_to_rmm(mlp(), config)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    exact = torch.compile(model, backend="eager")
    for rows in (100, 37, 64, 255):
        x = torch.randn(rows, WIDTH)
        torch.manual_seed(rows)
        out = compiled(x)
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
        torch.manual_seed(rows)
        expected = torch.autograd.grad(exact(x).square().sum(), list(model.parameters()))
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fresh_compiler")
def test_the_functional_form_compiles_with_and_without_a_seed(backend, x):
    weights = [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(2)]

    def run(x: Tensor, seed: Tensor | None) -> Tensor:
        return rmm_linear(rmm_linear(x, weights[0], config=CONFIG, seed=seed).relu(), weights[1], config=CONFIG)

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    for seed in (None, torch.tensor(3)):
        torch.manual_seed(1)
        expected = torch.autograd.grad(run(x, seed).square().sum(), weights)
        torch.manual_seed(1)
        actual = torch.autograd.grad(compiled(x, seed).square().sum(), weights)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("fresh_compiler")
def test_double_backward_raises(x):
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"differentiated twice|double backward|double backwards"):
        torch.autograd.grad(compiled(x).square().sum(), x, create_graph=True)[0].sum().backward()


FAMILIES = ["count_sketch", "gaussian", "rademacher", "block_rademacher", "sors", "row_sampling", "norm_sampling"]
FAMILIES += ["importance_sampling"]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_operators_do_as_they_are_registered(family, center):
    spec = RMMConfig(rate=0.3, sketch=family, center=center).spec
    x, weight = torch.randn(20, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    bias, seed = torch.randn(3, requires_grad=True), torch.tensor(11)
    linear = torch.ops.rmm_gnn.linear.default
    torch.library.opcheck(linear, (x, weight, bias, seed, spec), test_utils=CHECKS)
    torch.library.opcheck(linear, (x.detach(), weight, None, seed, spec), test_utils=CHECKS)

    _, (kept_seed, *kept) = linear(x.detach(), weight.detach(), None, seed, spec)
    arguments = (torch.randn(20, 3), kept, kept_seed, 4, spec)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.rmm_gnn.linear_weight_grad.default, arguments, test_utils=checks)
    exact = (x.detach(), weight.detach(), bias.detach(), seed)
    torch.library.opcheck(torch.ops.rmm_gnn.exact_linear.default, exact, test_utils=checks)


def test_the_operator_that_draws_does_as_it_is_registered():
    torch.library.opcheck(
        torch.ops.rmm_gnn.draw_seed.default, (torch.zeros(3),), test_utils=("test_schema", "test_faketensor")
    )
    seed = torch.ops.rmm_gnn.draw_seed(torch.zeros(3))
    assert seed.dtype == torch.int64 and seed.dim() == 0


def test_the_operators_say_that_they_are_random():
    for operator in ("linear", "linear_weight_grad", "exact_linear", "draw_seed"):
        assert torch.Tag.nondeterministic_seeded in getattr(torch.ops.rmm_gnn, operator).default.tags


@pytest.mark.parametrize("inside", [True, False], ids=["layers compiled", "model compiled"])
def test_reentrant_checkpointing_of_compiled_layers_draws_anew_at_every_step(backend, x, inside):
    """The first, no-grad pass must advance the generator: a draw that nothing used was removed as dead code there."""
    torch._dynamo.reset()
    model = mlp()
    compiled: Module = model
    if inside:
        for layer in model:
            layer.compile(backend=backend)
    else:
        compiled = torch.compile(model, backend=backend)
    gradients = []
    for _ in range(3):
        model.zero_grad()
        checkpoint(compiled, x.detach().requires_grad_(), use_reentrant=True).square().mean().backward()
        gradients.append(model[0].weight.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])


def test_a_compiled_training_call_without_grad_moves_the_generator(backend, x):
    torch._dynamo.reset()
    compiled = torch.compile(mlp(), backend=backend, fullgraph=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        compiled(x)
    assert not torch.equal(state, torch.get_rng_state())
