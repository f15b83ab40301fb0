"""convert_to_rmm(lean=True) changes what modules keep and nothing else; revert_rmm undoes it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import Module, Sequential
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN, MLP, BatchNorm

from rmm_gnn import RMMConfig, convert_to_rmm, revert_rmm
from rmm_gnn.convert import LEAN_SWAPS
from rmm_gnn.nn import LeanBatchNorm1d, LeanDropout, LeanGELU, LeanReLU, RMMLinear, RMMTorchLinear
from tests.nn.recording import kept_storages, one_thread, saved_tensors

# At the whole rate and with exact codecs a converted model computes what it did before.
EXACT = RMMConfig(rate=1.0, sketch="row_sampling", norm_codec="fp32", act_codec="fp32")
CONFIG = RMMConfig(rate=0.25)
ROWS = 40


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield


class WithMap(Module):
    """What takes an image, as the last part of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.three = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(x.view(ROWS, 4, 2, 2))
        return self.three(x.unsqueeze(2)).view(ROWS, 16)


def sequence() -> Module:
    """One module of every kind that is swapped."""
    return Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.LayerNorm(16),
        torch.nn.GELU(),
        torch.nn.LeakyReLU(0.2),
        WithMap(),
        torch.nn.SiLU(),
        Sequential(torch.nn.Linear(16, 16), torch.nn.ELU(0.7), torch.nn.RMSNorm(16)),
        torch.nn.Linear(16, 3),
    )


def edges() -> Tensor:
    nodes = torch.arange(ROWS)
    return torch.cat([torch.stack([nodes, (nodes + step) % ROWS]) for step in (1, 3, ROWS - 1)], 1)


MODELS = {
    "sequence": sequence,
    "mlp": lambda: MLP([8, 16, 16, 3], norm="batch_norm", act="relu", dropout=0.0),
    "mlp, layer norm": lambda: MLP([8, 16, 3], norm="layer_norm", act="gelu", dropout=0.0),
    "gcn": lambda: GCN(8, 16, 3, 3, dropout=0.0, norm="batch_norm"),
    "gcn, dropout": lambda: GCN(8, 16, 2, 3, dropout=0.4, norm="batch_norm", act="elu"),
}


@pytest.fixture(params=MODELS)
def model(request) -> Module:
    torch.manual_seed(0)
    return MODELS[request.param]()


def run(model: Module, x: Tensor | None = None) -> Tensor:
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1)) if x is None else x
    return model(x, edges()) if isinstance(model, GCN) else model(x)


def silence(model: Module) -> Module:
    """Takes the randomness out: no share of entries is dropped."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def classes(model: Module) -> list[type]:
    return [type(module) for module in model.modules()]


def test_every_kind_is_swapped_and_the_same_model_comes_back():
    model = sequence()
    before = classes(model)
    assert set(LEAN_SWAPS) <= set(before)
    modules = list(model.modules())
    assert convert_to_rmm(model, CONFIG, lean=True) is model
    assert all(first is second for first, second in zip(modules, model.modules(), strict=True))
    expected = [LEAN_SWAPS.get(kind, RMMTorchLinear if kind is torch.nn.Linear else kind) for kind in before]
    assert classes(model) == expected
    swapped = [module for module in model.modules() if hasattr(module, "config")]
    assert len(swapped) == 14 and all(module.config is CONFIG for module in swapped)


def test_without_lean_only_linear_layers_are():
    model = convert_to_rmm(sequence(), CONFIG)
    assert not set(classes(model)) & set(LEAN_SWAPS.values())
    assert sum(kind is RMMTorchLinear for kind in classes(model)) == 3
    # Converting once more reaches the rest.
    assert set(LEAN_SWAPS.values()) <= set(classes(convert_to_rmm(model, CONFIG, lean=True)))


def test_pygs_batch_norm_wraps_torchs():
    for model in (MODELS["mlp"](), MODELS["gcn"]()):
        convert_to_rmm(model, CONFIG, lean=True)
        norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        assert norms and all(type(norm) is BatchNorm and type(norm.module) is LeanBatchNorm1d for norm in norms)
        kinds = classes(model)
        assert RMMLinear in kinds and LeanReLU in kinds and torch.nn.ReLU not in kinds


def test_the_dropout_module_of_pygs_models_is_reached():
    assert LeanDropout in classes(convert_to_rmm(MODELS["gcn, dropout"](), CONFIG, lean=True))


def test_training_outputs_and_statistics_stay(model):
    reference = silence(copy.deepcopy(model))
    convert_to_rmm(silence(model), CONFIG, lean=True)
    for _ in range(3):
        torch.testing.assert_close(run(model), run(reference))
    for (name, mine), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_gradients_stay_where_nothing_is_estimated(model):
    reference = silence(copy.deepcopy(model))
    convert_to_rmm(silence(model), EXACT, lean=True)
    gradients = [torch.autograd.grad(run(each).square().sum(), list(each.parameters())) for each in (model, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_eval_is_the_same_bit_for_bit(model):
    run(model)
    reference = copy.deepcopy(model).eval()
    convert_to_rmm(model, CONFIG, lean=True).eval()
    state = torch.get_rng_state()
    assert torch.equal(run(model), run(reference))
    assert torch.equal(torch.get_rng_state(), state)


def test_conversion_does_not_touch_the_generator_or_the_parameters(model):
    parameters, buffers, state = list(model.parameters()), list(model.buffers()), torch.get_rng_state()
    keys = list(model.state_dict())
    convert_to_rmm(model, CONFIG, lean=True)
    assert all(first is second for first, second in zip(parameters, model.parameters(), strict=True))
    assert all(first is second for first, second in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state) and list(model.state_dict()) == keys


def test_less_is_kept(model):
    sizes = []
    for lean in (None, False, True):
        candidate = copy.deepcopy(model)
        if lean is not None:
            convert_to_rmm(candidate, CONFIG, lean=lean)
        with saved_tensors() as saved:
            run(candidate)
        sizes.append(sum(kept_storages(saved, besides=[*candidate.parameters(), edges()]).values()))
    assert sizes[2] < 0.8 * min(sizes[:2])


def test_revert_gives_back_classes_and_values(model):
    before, reference = classes(model), copy.deepcopy(model)
    parameters = list(model.parameters())
    convert_to_rmm(model, CONFIG, lean=True)
    assert classes(model) != before
    assert revert_rmm(model) is model
    assert classes(model) == before and not any(hasattr(module, "config") for module in model.modules())
    assert all(first is second for first, second in zip(parameters, model.parameters(), strict=True))
    torch.manual_seed(1)
    expected = run(reference)
    torch.manual_seed(1)
    assert torch.equal(run(model), expected)
    assert repr(model) == repr(reference)


def test_modules_made_directly_revert_too():
    model = revert_rmm(Sequential(LeanReLU(), LeanGELU("tanh", config=CONFIG), LeanBatchNorm1d(4)))
    assert classes(model)[1:] == [torch.nn.ReLU, torch.nn.GELU, torch.nn.BatchNorm1d]


def test_converting_twice_is_converting_once_and_takes_the_new_config(model):
    convert_to_rmm(model, CONFIG, lean=True)
    before, other = classes(model), RMMConfig(rate=0.5, act_codec="int8")
    convert_to_rmm(model, other, lean=True)
    assert classes(model) == before
    assert all(module.config is other for module in model.modules() if hasattr(module, "config"))


def test_converting_again_without_lean_gives_lean_modules_the_new_config_too():
    model = convert_to_rmm(sequence(), CONFIG, lean=True)
    model[6] = torch.nn.LeakyReLU()
    other = RMMConfig(rate=0.5)
    convert_to_rmm(model, other)
    assert model[0].config is other and model[2].config is other and type(model[2]) is LeanReLU
    assert type(model[6]) is torch.nn.LeakyReLU


def test_hooks_stay_and_fire(model):
    """Forward, pre-forward and full backward hooks of every module that is swapped."""
    silence(model)
    fired: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if type(module) in LEAN_SWAPS:
            module.register_forward_hook(lambda *_, name=name: fired.append((name, "forward")))
            module.register_forward_pre_hook(lambda *_, name=name: fired.append((name, "pre")))
            module.register_full_backward_hook(lambda *_, name=name: fired.append((name, "backward")))
    run(model).sum().backward()
    expected, fired[:] = sorted(fired), []
    convert_to_rmm(model, CONFIG, lean=True)
    run(model).sum().backward()
    assert expected and sorted(fired) == expected
    fired.clear()
    run(revert_rmm(model)).sum().backward()
    assert sorted(fired) == expected


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_converted_model_train_and_revert(model, duplicate):
    before = classes(model)
    twin = duplicate(convert_to_rmm(model, CONFIG, lean=True))
    assert classes(twin) == classes(model)
    run(twin).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert classes(revert_rmm(twin)) == before


def test_state_dicts_go_both_ways(model):
    other = convert_to_rmm(copy.deepcopy(model), CONFIG, lean=True)
    run(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other.eval()), run(model.eval()))
    model.load_state_dict(other.state_dict())


def test_an_optimizer_made_before_goes_on_and_the_model_learns(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    convert_to_rmm(silence(model), CONFIG, lean=True)
    target = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (run(model) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing_a_converted_model(use_reentrant):
    """The same masks, sketches and rounding in both passes, so the same gradients, from the same generator state."""
    torch.manual_seed(0)
    model = convert_to_rmm(sequence(), CONFIG, lean=True)
    results = []
    for wrap in (model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        model.zero_grad()
        x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = wrap(x)
        out.square().sum().backward()
        results.append([out.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_patterns_and_filters_reach_lean_modules():
    codec = RMMConfig(norm_codec="int8")
    model = convert_to_rmm(sequence(), {"1": codec, r"[23]": CONFIG, ".*": None}, lean=True)
    assert model[1].config is codec and type(model[2]) is LeanReLU and type(model[3]) is LeanDropout
    assert type(model[0]) is torch.nn.Linear and type(model[4]) is torch.nn.LayerNorm

    seen = []

    def choose(module: Module, name: str) -> bool:
        seen.append(name)
        return isinstance(module, torch.nn.ReLU)

    model = convert_to_rmm(sequence(), CONFIG, module_filter_fn=choose, lean=True)
    assert [type(module) for module in model.modules() if hasattr(module, "config")] == [LeanReLU]
    assert len(seen) == 14 and "7.two" in seen and "9.1" in seen


def test_a_pattern_for_a_lean_module_needs_lean():
    with pytest.raises(ValueError, match="'config' must have patterns that match a layer"):
        convert_to_rmm(sequence(), {"2": CONFIG})


def test_a_model_of_lean_modules_alone_converts():
    assert type(convert_to_rmm(Sequential(torch.nn.ReLU()), CONFIG, lean=True)[0]) is LeanReLU
    with pytest.raises(ValueError, match="'model' must have a layer to convert"):
        convert_to_rmm(Sequential(torch.nn.ReLU()), CONFIG)


def test_a_shared_module_is_swapped_once():
    shared = torch.nn.ReLU()
    model = convert_to_rmm(Sequential(shared, torch.nn.Linear(8, 8), shared), CONFIG, lean=True)
    assert model[0] is model[2] and type(model[0]) is LeanReLU


def test_subclasses_are_left_alone():
    class Clipped(torch.nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).clamp(max=1)

    model = convert_to_rmm(Sequential(torch.nn.Linear(8, 8), Clipped(), torch.nn.ReLU6()), CONFIG, lean=True)
    assert classes(model)[2:] == [Clipped, torch.nn.ReLU6]


def test_inplace_and_mode_stay():
    model = Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.3, inplace=True)).eval()
    convert_to_rmm(model, CONFIG, lean=True)
    assert model[1].inplace and model[2].inplace and not any(module.training for module in model.modules())
    run(model.train()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_forward_set_on_the_instance_raises_and_swaps_nothing():
    model = sequence()
    model[2].forward = lambda x: x
    before = classes(model)
    with pytest.raises(ValueError, match="'2' must run its class's forward"):
        convert_to_rmm(model, CONFIG, lean=True)
    assert classes(model) == before


@pytest.mark.parametrize("lean", [1, None, "yes"])
def test_lean_is_a_bool(lean):
    with pytest.raises(TypeError, match="'lean' must be True or False"):
        convert_to_rmm(sequence(), CONFIG, lean=lean)
