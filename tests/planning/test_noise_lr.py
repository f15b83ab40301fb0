"""The factor is the ratio of second moments that the docstring derives, and a resumed run goes on as it was."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rmm_gnn import NoiseLR, RMMConfig, convert_to_rmm, revert_rmm
from rmm_gnn.diagnostics import GradientProbe


def setting(rate=0.1):
    torch.manual_seed(0)
    model = convert_to_rmm(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), RMMConfig(rate=rate))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}], lr=0.1
    )
    return model, optimizer, torch.randn(300, 8)


def step(model, optimizer, scheduler, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize("full_batch", [False, True])
def test_the_factor_is_the_ratio_of_second_moments(full_batch):
    model, optimizer, x = setting()
    scheduler = NoiseLR(optimizer, model, every=1, full_batch=full_batch)
    assert scheduler.get_last_lr() == [0.5, 0.1]
    with GradientProbe(model, every=1) as probe:
        step(model, optimizer, scheduler, x)
    useful = sum(record.gradient_square + (0 if full_batch else record.sgd_variance) for record in probe.records)
    added = sum(record.rmm_variance for record in probe.records)
    expected = useful / (useful + added)
    assert 0.02 < expected < 0.98
    assert scheduler.get_last_lr() == pytest.approx([0.5 * expected, 0.1 * expected], rel=1e-6)


def test_less_noise_a_larger_step():
    factors = []
    for rate in (0.02, 0.2, 1.0):
        model, optimizer, x = setting(rate)
        scheduler = NoiseLR(optimizer, model, every=1)
        for _ in range(3):
            step(model, optimizer, scheduler, x)
        factors.append(scheduler.factor)
    assert factors[0] < factors[1] < factors[2] == pytest.approx(1.0)


def test_layers_that_keep_their_input_add_no_noise():
    model, optimizer, x = setting()
    scheduler = NoiseLR(optimizer, revert_rmm(model), every=1)
    step(model, optimizer, scheduler, x)
    assert scheduler.factor == 1.0


def test_negative_estimates_count_as_nothing():
    model, optimizer, x = setting()
    scheduler = NoiseLR(optimizer, model, every=1)
    step(model, optimizer, scheduler, x)
    before = scheduler.factor
    model(x).square().mean().backward()
    records = scheduler._probe.records
    for _ in range(len(records)):
        records.append(replace(records.popleft(), sketch_variance=-1e9, sgd_variance=-1e9))
    scheduler.step()
    assert before < scheduler.factor == pytest.approx((before + 1.0) / 2)


def test_between_measurements_the_rate_stays_and_measurements_are_smoothed():
    model, optimizer, x = setting()
    scheduler, rates = NoiseLR(optimizer, model, every=3), []
    for _ in range(7):
        step(model, optimizer, scheduler, x)
        rates.append(scheduler.get_last_lr()[0])
    assert rates[0] == rates[1] == rates[2] != rates[3] == rates[4] == rates[5] != rates[6]


def test_a_floor_holds():
    model, optimizer, x = setting(0.02)
    scheduler = NoiseLR(optimizer, model, every=1, min_factor=0.9)
    step(model, optimizer, scheduler, x)
    assert scheduler.factor < 0.9 and scheduler.get_last_lr() == pytest.approx([0.45, 0.09])


def test_a_resumed_run_goes_on_as_it_was():
    model, optimizer, x = setting()
    scheduler = NoiseLR(optimizer, model, every=2)
    for _ in range(3):
        step(model, optimizer, scheduler, x)
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
    again, other, _ = setting()
    resumed = NoiseLR(other, again, every=2)
    for thing, saved in zip((again, other, resumed), state, strict=True):
        thing.load_state_dict(saved)
    assert resumed.factor == scheduler.factor
    torch.manual_seed(1)
    step(model, optimizer, scheduler, x)
    scheduler.remove()
    torch.manual_seed(1)
    step(again, other, resumed, x)
    assert resumed.get_last_lr() == scheduler.get_last_lr()


def scheduled(model, optimizer, noise_first):
    """A ``NoiseLR`` and a warm-up, stepped in this order or the other."""
    made = [
        lambda: NoiseLR(optimizer, model, every=2),
        lambda: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=4),
    ]
    first, second = (make() for make in (made if noise_first else made[::-1]))
    return (first, second), (first if noise_first else second)


def both_step(model, optimizer, schedulers, x):
    step(model, optimizer, schedulers[0], x)
    schedulers[1].step()


@pytest.mark.parametrize("noise_first", [True, False])
def test_it_goes_with_another_scheduler(noise_first):
    model, optimizer, x = setting()
    schedulers, noise = scheduled(model, optimizer, noise_first)
    for count in range(1, 8):
        both_step(model, optimizer, schedulers, x)
        warm_up = 0.2 + 0.8 * min(count, 4) / 4
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([0.5 * warm_up * noise.factor, 0.1 * warm_up * noise.factor], rel=1e-6)
    assert noise.factor < 0.9


def test_a_resumed_run_with_another_scheduler_goes_on_as_it_was():
    model, optimizer, x = setting()
    schedulers, _ = scheduled(model, optimizer, True)
    for _ in range(3):
        both_step(model, optimizer, schedulers, x)
    things = [model, optimizer, *schedulers]
    state = copy.deepcopy([thing.state_dict() for thing in things])
    again, other, _ = setting()
    resumed, _ = scheduled(again, other, True)
    for thing, saved in zip((again, other, *resumed), state, strict=True):
        thing.load_state_dict(saved)
    rates = []
    for parts in ((model, optimizer, schedulers), (again, other, resumed)):
        torch.manual_seed(1)
        for _ in range(3):
            both_step(*parts, x)
        rates.append([group["lr"] for group in parts[1].param_groups])
    assert rates[0] == rates[1]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("smoothing", 1.0, r"'smoothing' must be in \[0, 1\)"),
        ("min_factor", 0.0, r"'min_factor' must be in \(0, 1\)"),
    ],
)
def test_errors(name, value, match):
    model, optimizer, _ = setting()
    with pytest.raises(ValueError, match=match):
        NoiseLR(optimizer, model, **{name: value})
