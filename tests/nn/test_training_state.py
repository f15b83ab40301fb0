"""What a model holds between steps besides its state_dict is stored and put back."""

from __future__ import annotations

import copy

import pytest
import torch

from rmm_gnn import RMMConfig, convert_to_rmm, load_training_state, training_state


def model_of(sketch: str) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return convert_to_rmm(layers, RMMConfig(rate=0.3, sketch=sketch))


def step(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_next_step_draws_the_same_rows():
    model, x = model_of("importance_sampling"), torch.randn(200, 8)
    step(model, x)
    state = copy.deepcopy(training_state(model))
    assert sorted(state) == ["0", "2"] and state["0"]["written"].shape == (200,)
    generator = torch.get_rng_state()
    expected = step(model, x)
    fresh = model_of("importance_sampling")
    load_training_state(fresh, state)
    torch.set_rng_state(generator)
    assert all(torch.equal(one, other) for one, other in zip(step(fresh, x), expected, strict=True))
    without = model_of("importance_sampling")
    torch.set_rng_state(generator)
    assert not all(torch.equal(one, other) for one, other in zip(step(without, x), expected, strict=True))


def test_loading_drops_what_was_held():
    model, x = model_of("importance_sampling"), torch.randn(50, 8)
    step(model, x)
    load_training_state(model, {})
    assert training_state(model) == {}


def test_other_families_hold_nothing():
    model = model_of("count_sketch")
    step(model, torch.randn(50, 8))
    assert training_state(model) == {}


@pytest.mark.parametrize("state", [{"9": {"read": torch.ones(3)}}, {"0": {"else": torch.ones(3)}}])
def test_the_state_of_another_model_is_refused(state):
    with pytest.raises(ValueError, match=r"'state' must be what training_state returned of the same model \(got "):
        load_training_state(model_of("importance_sampling"), state)
