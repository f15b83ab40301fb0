"""Plans of models in which weights are tied, used often, never reached, or without a gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmm_gnn import RMMConfig, memory_report, plan
from tests.planning.test_plan import noise_by_monte_carlo

N, C = 400, 24


def features():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(1)) + 0.3


def loss_fn(out):
    return out.square().mean()


def checked(net, budget, *, rel=0.2, **arguments):
    """A plan whose bytes are those kept, and whose noise is that of Monte Carlo."""
    x = features()
    made = plan(net, x, loss_fn, budget=budget, **arguments)
    model = made.apply(copy.deepcopy(net))
    with made.context(x):
        assert memory_report(model, x, loss_fn=loss_fn).saved_bytes == made.saved_bytes
    found = noise_by_monte_carlo(net, model, made.context(x), x, loss_fn, draws=100)
    assert found == pytest.approx(made.noise, rel=rel)
    return made


class Chain(nn.Module):
    """Layers one after the other, the first of which reads no input, so that all of them are decided."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        x = x.sin()
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_tied_layers_get_one_config():
    torch.manual_seed(0)
    net = Chain(nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 4))
    net.layers[1].weight = net.layers[0].weight
    made = checked(net, "30%")
    assert made.configs["layers.0"] == made.configs["layers.1"] != made.configs["layers.2"]
    assert made.num_weights == 2


def test_a_layer_used_several_times_is_judged_by_its_whole_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(C, C)
    made = checked(Chain(layer, layer, layer, nn.Linear(C, 4)), "40%")
    assert made.num_weights == 2


class Scaled(nn.Module):
    """A product that nothing here takes, its weight being computed, between two that are taken."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(C, C), nn.Linear(C, 4)
        self.weight = nn.Parameter(torch.randn(C, C) / 5)

    def forward(self, x):
        return self.two(F.relu(self.one(x.sin())) @ (self.weight * 0.5))


@pytest.mark.parametrize("lean", [True, False])
def test_what_is_kept_whole_whatever_is_decided_is_no_decision(lean):
    torch.manual_seed(0)
    net = Scaled()
    with pytest.raises(ValueError, match=r"'budget' must be at least \d+ bytes") as error:
        plan(net, features(), loss_fn, budget=100, lean=lean)
    least = int(str(error.value).split("at least ")[1].split(" ")[0])
    made = checked(net, least, lean=lean)
    assert made.saved_bytes == least and made.num_weights == 3
    assert all("(functions)" not in row.layers for row in made.rows)


def test_a_weight_without_a_gradient_is_named():
    net = Chain(nn.Linear(C, C), nn.Linear(C, 4))
    nn.init.zeros_(net.layers[1].weight)
    with pytest.raises(ValueError, match=r"a gradient for every weight \(got none for layers.0.weight\)"):
        plan(net, features(), loss_fn, budget="50%")


def test_a_normalisation_of_zeros_costs_no_noise():
    class Dead(Chain):
        def forward(self, x):
            dead, live = self.layers[1](F.relu(self.layers[0](x.sin()))), self.layers[2](x.sin())
            return self.layers[3](live + dead)

    torch.manual_seed(0)
    net = Dead(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, C), nn.Linear(C, 4))
    nn.init.constant_(net.layers[0].bias, -100.0)
    for parameter in net.layers[0].parameters():
        parameter.requires_grad_(False)
    made = plan(net, features(), loss_fn, budget="30%")
    assert next(row.noise for row in made.rows if row.layers == ("layers.1",)) == 0.0


def test_normalisation_that_codes_nothing_is_no_decision():
    torch.manual_seed(0)
    net = Chain(nn.BatchNorm1d(C, affine=False), nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, 4))
    net.layers[2].eval()
    made = checked(net, "60%")
    assert not {("layers.0",), ("layers.2",)} & {row.layers for row in made.rows}


def test_a_plan_decides_sizes_by_the_rate_alone():
    torch.manual_seed(0)
    net = Chain(nn.Linear(C, C), nn.Linear(C, 4))
    made = checked(net, "40%", config=RMMConfig(max_size=10, min_size=3))
    assert all(config.max_size is None and config.min_size is None for config in made.configs.values())


def test_a_rate_serves_a_model_of_functions():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(C, 4))

        def forward(self, x):
            return F.relu(x.sin() @ self.weight)

    torch.manual_seed(0)
    made = plan(Functions(), features(), loss_fn, rate=0.2)
    assert [row.layers for row in made.rows] == [("(functions)",)]


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(C, 2 * C),
            norm(2 * C),
            nn.GELU(),
            nn.Linear(2 * C, 2 * C),
            norm(2 * C),
            nn.GELU(),
            nn.Linear(2 * C, 4),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("budget", ["6%", "12%"])
def test_noise_of_a_trained_model_at_a_tight_budget(norm, budget):
    torch.manual_seed(0)
    net, x = Block(norm), features()
    target = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)) + x[:, :4]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    checked(net, budget)
