"""A plan's bytes are what the model then keeps, to the byte; its noise is what Monte Carlo finds."""

import copy
import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCN2Conv, GraphSAGE

from rmm_gnn import Plan, RMMConfig, compress_activations, convert_to_rmm, memory_report, plan
from rmm_gnn.nn import RMMGCN2Conv, RMMTorchLinear

N, C = 500, 32
EDGES = torch.randint(N, (2, 6 * N), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """GCN2 with normalisation, and functions between the layers."""

    def __init__(self, p=0.0):
        super().__init__()
        self.p = p
        self.first, self.last = nn.Linear(20, C), nn.Linear(C, 5)
        self.convs = nn.ModuleList(GCN2Conv(C, 0.5, shared_weights=False, cached=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(C) for _ in range(3))

    def forward(self, x):
        h = x_0 = self.first(F.dropout(x, self.p, self.training)).relu()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.dropout((norm(conv(h, x_0, EDGES)) + h).relu(), self.p, self.training)
        return self.last(h)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 20, generator=generator) + 0.5, torch.randint(5, (N,), generator=generator)


def loss_fn(out):
    return F.cross_entropy(out, data()[1])


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def made(net):
    return plan(net, data()[0], loss_fn, budget="8%")


def saved_bytes(model, context, x):
    with context:
        return memory_report(model, x, loss_fn=loss_fn).saved_bytes


def noise_by_monte_carlo(net, model, context, x, loss_fn, draws=60):
    """Noise to signal of a weight's gradient, on average over the weights."""

    def gradients(model, context):
        model.zero_grad()
        with context:
            loss = loss_fn(model(x))
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.dim() == 2]

    exact, found = gradients(copy.deepcopy(net), nullcontext()), 0.0
    for _ in range(draws):
        pairs = zip(gradients(model, context), exact, strict=True)
        found += sum(float((one - other).square().sum() / other.square().sum()) for one, other in pairs) / len(exact)
    return found / draws


def test_bytes_are_what_the_model_keeps_and_fit_the_budget(net, made):
    x, _ = data()
    model = made.apply(copy.deepcopy(net))
    assert saved_bytes(model, made.context(x), x) == made.saved_bytes <= 0.08 * made.stock_bytes
    assert made.saved_bytes > 0.078 * made.stock_bytes  # what may be spent is spent
    assert saved_bytes(net, nullcontext(), x) == made.stock_bytes


@pytest.mark.parametrize("budget", ["7%", "20%"])
def test_noise_is_what_monte_carlo_finds(net, budget):
    x, _ = data()
    made = plan(net, x, loss_fn, budget=budget)
    found = noise_by_monte_carlo(net, made.apply(copy.deepcopy(net)), made.context(x), x, loss_fn)
    assert found == pytest.approx(made.noise, rel=0.2)


def test_more_bytes_less_noise_and_the_other_way_round(net, made):
    x, _ = data()
    richer = plan(net, x, loss_fn, budget="16%")
    assert richer.noise < made.noise / 2
    back = plan(net, x, loss_fn, noise=made.noise)
    assert back.noise <= made.noise
    assert back.saved_bytes == pytest.approx(made.saved_bytes, rel=0.05)


def test_a_rate_is_the_budget_of_that_rate_everywhere_and_the_plan_is_less_noisy(net):
    x, _ = data()
    uniform = RMMConfig(rate=0.1, codec="int8")
    made = plan(net, x, loss_fn, rate=0.1, config=uniform)
    model = convert_to_rmm(copy.deepcopy(net), uniform, lean=True)
    mode = compress_activations(uniform, held=(x,))
    assert made.saved_bytes <= saved_bytes(model, mode, x)
    assert made.noise < 0.7 * noise_by_monte_carlo(net, model, mode, x, loss_fn)


def test_the_model_and_the_random_numbers_are_left_alone(net):
    x, _ = data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    plan(net, x, loss_fn, budget="20%")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert type(net.convs[0]) is GCN2Conv


def test_a_plan_with_dropout_settles_too():
    torch.manual_seed(0)
    net, (x, _) = Net(p=0.3), data()
    made = plan(net, x, loss_fn, budget="10%")
    model = made.apply(copy.deepcopy(net))
    assert saved_bytes(model, made.context(x), x) == made.saved_bytes
    assert 0 < made.noise < 10


def test_products_alone(net):
    x, _ = data()
    made = plan(net, x, loss_fn, budget="75%", lean=False)
    model = made.apply(copy.deepcopy(net))
    assert type(model.convs[0]) is RMMGCN2Conv and type(model.norms[0]) is nn.BatchNorm1d
    assert isinstance(made.context(), nullcontext)
    assert saved_bytes(model, nullcontext(), x) == made.saved_bytes


def test_layers_that_read_one_tensor_are_decided_together():
    """As query, key and value do: one sketch serves them, and its bytes count once."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(C, C) for _ in range(3))
            self.out = nn.Linear(C, 5)

        def forward(self, x):
            x = x.tanh()
            return self.out(self.query(x) * self.key(x) + self.value(x))

    torch.manual_seed(0)
    net, x = Attention(), torch.randn(N, C)
    made = plan(net, x, loss_fn, budget="70%")
    assert [row.layers for row in made.rows if "query" in row.layers] == [("key", "query", "value")]
    assert made.configs["query"] == made.configs["key"] == made.configs["value"]
    assert saved_bytes(made.apply(net), made.context(x), x) == made.saved_bytes


def test_products_of_functions_get_the_config_of_the_mode():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Parameter(torch.randn(C, C) / 6) for _ in range(2))

        def forward(self, x):
            return F.relu(x @ self.one) @ self.two

    torch.manual_seed(0)
    net, x = Plain(), torch.randn(N, C)
    made = plan(net, x, lambda out: out.square().sum(), budget="60%")
    assert not made.configs and made.rows[0].layers == ("(functions)",)
    assert type(made.apply(net)) is Plain
    with made.context(x):
        report = memory_report(net, x, loss_fn=lambda out: out.square().sum())
    assert report.saved_bytes == made.saved_bytes


def test_models_of_pyg():
    torch.manual_seed(0)
    net, (x, _) = GraphSAGE(20, C, 2, 5, norm="batch_norm", dropout=0.2), data()
    made = plan(net, (x, EDGES), loss_fn, budget="30%")
    model = made.apply(net)
    with made.context(x):
        assert memory_report(model, x, EDGES, loss_fn=loss_fn).saved_bytes == made.saved_bytes


def test_json_and_table(made):
    assert Plan.from_json(made.to_json()) == made
    json.loads(made.to_json())
    text = str(made)
    for word in ("convs.2", "norms.1", "x_0 of GCN2Conv", "(all else)", "% of", "on average"):
        assert word in text
    with pytest.raises(ValueError, match="'text' must be a plan written by to_json"):
        Plan.from_json("{}")


def test_a_plan_of_another_model_is_refused(made):
    with pytest.raises(ValueError, match="must have patterns that match a layer"):
        made.apply(nn.Sequential(nn.Linear(2, 2)))


def test_the_least_budget_is_named_and_is_enough(net):
    x, _ = data()
    with pytest.raises(ValueError, match=r"'budget' must be at least \d+ bytes") as error:
        plan(net, x, loss_fn, budget="0.1%")
    least = int(str(error.value).split("at least ")[1].split(" ")[0])
    assert plan(net, x, loss_fn, budget=least).saved_bytes == least


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, ValueError, "'budget', 'rate' or 'noise' must be given, one of them"),
        ({"budget": 10**6, "rate": 0.1}, ValueError, "one of them .*budget.*rate"),
        ({"rate": 2}, ValueError, "'rate' must lie in"),
        ({"noise": 0}, ValueError, "'noise' must be positive"),
        ({"noise": "low"}, TypeError, "'noise' must be a number"),
        ({"rate": 0.1, "lean": 1}, TypeError, "'lean' must be True or False"),
        ({"rate": 0.1, "config": 0.1}, TypeError, "'config' must be an RMMConfig"),
        ({"rate": 0.1, "config": RMMConfig(anchor=True)}, ValueError, "'config' must not be anchored"),
        ({"rate": 0.1, "config": RMMConfig(sketch="norm_sampling")}, ValueError, "a family whose variance follows"),
    ],
)
def test_errors(net, settings, error, match):
    with pytest.raises(error, match=match):
        plan(net, data()[0], loss_fn, **settings)


def test_what_cannot_be_planned_is_refused(net):
    with pytest.raises(TypeError, match=r"'model' must be a torch.nn.Module"):
        plan(F.relu, data()[0], loss_fn, rate=0.1)
    with pytest.raises(TypeError, match="'loss_fn' must be callable"):
        plan(net, data()[0], None, rate=0.1)
    with pytest.raises(ValueError, match="'model' must be in training mode"):
        plan(copy.deepcopy(net).eval(), data()[0], loss_fn, rate=0.1)
    norm = nn.Sequential(nn.BatchNorm1d(20))
    with pytest.raises(ValueError, match="'model' must have layers to plan"):
        plan(norm, data()[0], lambda out: out.square().sum(), rate=0.1)


def test_layers_planned_before_are_planned_anew(net, made):
    again = plan(made.apply(copy.deepcopy(net)), data()[0], loss_fn, budget="8%")
    assert again.stock_bytes == made.stock_bytes and again.configs.keys() == made.configs.keys()
    assert type(again.apply(copy.deepcopy(net)).last) is RMMTorchLinear


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_layer_that_reads_the_input_or_dropout_of_it_is_exact_and_free(p):
    torch.manual_seed(0)
    net, (x, _) = Net(p), data()
    made = plan(net, x, loss_fn, budget="8%")
    assert made.exact == ("first.weight",) and "first" not in made.configs
    assert "exact: reads the input" in str(made)
    assert Plan.from_json(made.to_json()).exact == made.exact
    model = made.apply(copy.deepcopy(net))
    assert saved_bytes(model, made.context(x), x) == made.saved_bytes
    with pytest.raises(ValueError, match=r"'inputs' must be the model's inputs, which first.weight reads"):
        made.context()


def test_a_model_whose_only_product_reads_the_input_needs_nothing():
    net, (x, _) = nn.Sequential(nn.Linear(20, 5)), data()
    made = plan(net, x, lambda out: out.square().sum(), budget="100%")
    assert made.rows == () and made.noise == 0.0
