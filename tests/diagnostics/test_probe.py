"""The probe sees the products that there are, measures what the functions of ``variance`` say, and disturbs nothing."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GAT, GCN, GCN2Conv, GraphSAGE

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.codecs import get_codec
from rmm_gnn.diagnostics import GradientProbe, alignment, rmm_variance, sgd_variance
from rmm_gnn.functional import anchored_linear
from tests.diagnostics.models import C, Expression, N

CONFIG = RMMConfig(rate=0.2, codec="int4")
EDGES = torch.randint(N, (2, 4 * N), generator=torch.Generator().manual_seed(0))


class TwoGCN2(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.first = torch.nn.Linear(8, C)
        self.convs = torch.nn.ModuleList([GCN2Conv(C, 0.5, normalize=False, **settings) for _ in range(2)])

    def forward(self, x):
        h = x_0 = self.first(x).relu()
        for conv in self.convs:
            h = F.relu(conv(h, x_0, EDGES))
        return h


def features(columns=8, seed=0):
    return torch.randn(N, columns, generator=torch.Generator().manual_seed(seed))


def run(model, x, mode=None, steps=1, **settings):
    with GradientProbe(model, CONFIG, **{"every": 1, **settings}) as probe:
        for _ in range(steps):
            if mode is None:
                loss = model(x).square().mean()
            else:
                with mode():
                    loss = model(x).square().mean()
            loss.backward()
    return {record.layer: record for record in probe.records}


def test_the_numbers_are_those_of_the_functions():
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)), features()
    record = run(model, x)["2.weight"]
    h = model[:2](x).detach()
    gradient = 2 * model[2](h).detach() / (3 * N)
    assert (record.step, record.num_rows, record.sketch_size) == (0, N, N // 5)
    expected = [sgd_variance(h, gradient), alignment(h, gradient), model[2].weight.grad.square().sum()]
    found = [record.sgd_variance, record.alignment, record.gradient_square]
    torch.testing.assert_close(torch.tensor(found), torch.stack(expected).float(), rtol=1e-4, atol=0)
    assert record.rmm_variance == pytest.approx(float(rmm_variance(h, gradient, CONFIG)), rel=0.1)
    assert record.variance_ratio == record.rmm_variance / record.sgd_variance
    assert record.relative_noise == record.rmm_variance / record.gradient_square


WEIGHTS = ["first.weight", *(f"convs.{i}.weight{j}" for i in (0, 1) for j in (1, 2))]


@pytest.mark.parametrize("theta", [None, 0.5])
@pytest.mark.parametrize("kind", ["stock", "converted", "compressed", "converted and compressed"])
def test_every_weight_is_measured_whatever_the_layers_are(kind, theta):
    settings = {} if theta is None else {"theta": theta, "layer": 1}
    model = TwoGCN2(shared_weights=False, **settings)
    if "converted" in kind:
        convert_to_rmm(model, CONFIG)
    other = RMMConfig(rate=0.5, codec="int2")  # the mode's, which functions are judged by, and converted layers not
    records = run(model, features(), (lambda: compress_activations(other)) if "compressed" in kind else None)
    assert sorted(records) == sorted(WEIGHTS)
    beta = model.convs[0].beta
    for name in WEIGHTS[1:]:
        if "converted" in kind and name.endswith("weight2"):  # x_0 is kept as it is: no noise, an exact gradient
            assert records[name].rmm_variance == 0
            exact = model.get_parameter(name).grad.square().sum() / (beta * model.convs[0].alpha) ** 2
            assert records[name].gradient_square == pytest.approx(float(exact), rel=1e-4)
        else:
            assert records[name].sketch_size == (N // 2 if kind == "compressed" else N // 5)
            assert records[name].rounding_variance > 0


def test_functions_under_a_mode_are_judged_by_its_config():
    """That the numbers are those of the mode's own config, and not of the probe's, whatever the function."""
    w, x = torch.randn(8, 6), features()
    config = RMMConfig(rate=0.5, sketch="norm_sampling", center=False)
    functions = [
        lambda self, x: F.linear(x, self.w.t()),
        lambda self, x: x @ self.w,
        lambda self, x: torch.mm(x, self.w),
        lambda self, x: torch.addmm(torch.zeros(6), x, self.w),
    ]
    for function in functions:
        model = Expression(function)
        model.w = torch.nn.Parameter(w.clone())
        record = run(model, x, lambda: compress_activations(config))["w"]
        gradient = 2 * (x @ w) / (6 * N)
        assert record.sketch_size == N // 2
        assert record.rmm_variance == pytest.approx(float(rmm_variance(x, gradient, config)), rel=1e-4)
        assert run(model, x)["w"].sketch_size == N // 5


def test_importance_sampling_of_a_mode_has_no_norms_to_be_judged_by():
    model, x = torch.nn.Linear(8, 3), features()
    record = run(model, x, lambda: compress_activations(IMPORTANCE))["weight"]
    gradient = 2 * model(x).detach() / (3 * N)
    assert record.sketch_variance == pytest.approx(float(rmm_variance(x, gradient, IMPORTANCE)), rel=1e-4)


@pytest.mark.parametrize("make", [GCN, GraphSAGE, GAT])
def test_stock_models_of_pyg(make):
    model = make(8, 16, num_layers=2, out_channels=4)
    wrapped = Expression(lambda self, x: self.model(x, EDGES), model=model)
    matrices = {name for name, parameter in wrapped.named_parameters() if parameter.dim() == 2}
    assert run(wrapped, features()).keys() == matrices


def test_mode_sketch_agrees_with_mode_exact():
    model = TwoGCN2(shared_weights=False)
    x = features()
    with GradientProbe(model, CONFIG, every=1) as exact, GradientProbe(model, CONFIG, every=1, mode="sketch") as online:
        model(x).square().mean().backward()
    pairs = list(zip(exact.records, online.records, strict=True))
    assert len(pairs) == 5
    for one, other in pairs:
        assert one.layer == other.layer
        assert other.sketch_variance == pytest.approx(one.sketch_variance, rel=0.25)
        assert other.rounding_variance == pytest.approx(one.rounding_variance, rel=0.25)
        assert other.sgd_variance == pytest.approx(one.sgd_variance, rel=0.25)


def test_a_coded_x_0_has_the_noise_of_its_rounding():
    model = convert_to_rmm(TwoGCN2(shared_weights=False), RMMConfig(rate=0.2, x0_codec="int2"))
    records, kept = run(model, features()), {}

    def keep(module, args, out):
        kept["x_0"] = args[1].detach()
        out.register_hook(lambda gradient: kept.update(gradient=gradient))

    handle = model.convs[1].register_forward_hook(keep)
    model(features()).square().mean().backward()
    handle.remove()
    per_row = get_codec("int2").variance(kept["x_0"]).sum(1)
    expected = (per_row * kept["gradient"].square().sum(1)).sum()
    assert records["convs.1.weight2"].rounding_variance == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("x0_codec", ["fp32", "int2"])
def test_an_anchored_layer_has_the_noise_of_what_is_left_to_sketch(x0_codec, shared_weights):
    config = RMMConfig(rate=0.2, anchor=True, x0_codec=x0_codec, codec="int4")
    model = convert_to_rmm(TwoGCN2(shared_weights=shared_weights), config)
    given = {}

    def keep(module, args, out):
        h = module.propagate(EDGES, x=args[0].detach(), edge_weight=None) * 0.5
        given["x"], given["x_0"] = h + (0.5 * args[1].detach() if shared_weights else 0), args[1].detach()
        out.register_hook(lambda gradient: given.update(gradient=gradient))

    handle = model.convs[1].register_forward_hook(keep)
    records = run(model, features())
    handle.remove()
    assert len(records) == 3 if shared_weights else 5
    record = records["convs.1.weight1"]
    expected = rmm_variance(given["x"], given["gradient"], config, anchor=given["x_0"], num_draws=20)
    assert record.rmm_variance == pytest.approx(float(expected), rel=0.05)
    assert record.rmm_variance < float(rmm_variance(given["x"], given["gradient"], config))
    assert record.gradient_square == pytest.approx(float((given["x"].T @ given["gradient"]).square().sum()), rel=1e-3)
    with GradientProbe(model, every=1, mode="sketch") as probe:
        model(features()).square().mean().backward()
    online = {found.layer: found for found in probe.records}["convs.1.weight1"]
    assert online.sketch_variance == pytest.approx(record.sketch_variance, rel=0.25)
    assert online.rounding_variance == pytest.approx(record.rounding_variance, rel=0.25)


@pytest.mark.parametrize("changed", ["x", "x_0"])
def test_an_input_or_anchor_changed_in_place_cannot_be_measured_exactly(changed):
    given = {name: torch.randn(50, 8) for name in ("x", "x_0")}
    weight = torch.nn.Parameter(torch.randn(3, 8))
    config = RMMConfig(rate=0.2, x0_codec="int4")
    model = Expression(lambda self, x, x_0: anchored_linear(x, self.weight, x_0, config=config))
    model.weight = weight
    with GradientProbe(model, every=1):
        out = model(**given)
        given[changed].mul_(2)
        with pytest.raises(RuntimeError, match="changed in place after the layer had read it"):
            out.sum().backward()


@pytest.mark.parametrize("mode", ["exact", "sketch"])
def test_training_is_what_it_is_without_a_probe(mode):
    def gradients(probed):
        torch.manual_seed(0)
        model = convert_to_rmm(TwoGCN2(shared_weights=False), CONFIG)
        probe = GradientProbe(model, every=1, mode=mode) if probed else None
        for _ in range(2):
            F.dropout(model(features())).square().mean().backward()
        assert probe is None or len(probe.records) == 10
        return [parameter.grad for parameter in model.parameters()] + [torch.rand(3)]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(one, other)


def test_only_some_steps_layers_and_records_are_kept():
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)), features()
    with GradientProbe(model, CONFIG, every=3, layers="1.*", max_records=2) as probe:
        for _ in range(8):
            model(x).square().mean().backward()
            model.eval()
            model(x)
            model.train()
            with torch.no_grad():
                model(x)
        assert [(record.step, record.layer) for record in probe.records] == [(3, "1.weight"), (6, "1.weight")]
    model(x).square().mean().backward()
    assert len(probe.records) == 2 and probe.step == 7


def test_what_is_held_at_a_step_goes_with_its_graph():
    import gc
    import weakref

    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), features()
    inputs = []
    model[2].register_forward_pre_hook(lambda module, args: inputs.append(weakref.ref(args[0])))
    with GradientProbe(model, CONFIG, every=1) as probe:
        loss = model(x).square().mean()
        loss.backward()
        del loss
        gc.collect()
        assert inputs[0]() is None and len(probe.records) == 2


def test_an_error_in_the_forward_pass_leaves_no_mode_behind():
    model = Expression(lambda self, x: 1 / 0, layer=torch.nn.Linear(2, 2))
    with GradientProbe(model, every=1), pytest.raises(ZeroDivisionError):
        model(torch.ones(2, 2))
    assert torch.overrides._get_current_function_mode() is None


def test_checkpointed_blocks_are_seen_once():
    model = Expression(
        lambda self, x: self.last(checkpoint(self.first, x, use_reentrant=False)),
        first=torch.nn.Linear(8, 8), last=torch.nn.Linear(8, 2),
    )  # fmt: skip
    with GradientProbe(model, CONFIG, every=1) as probe:
        model(features()).square().mean().backward()
    assert sorted(record.layer for record in probe.records) == ["first.weight", "last.weight"]


def test_an_input_that_is_overwritten_is_refused_in_exact_mode():
    model = Expression(lambda self, x: self.layer(x) + x.mul_(2).sum() * 0, layer=torch.nn.Linear(8, 2))
    convert_to_rmm(model, CONFIG)
    with GradientProbe(model, every=1), pytest.raises(RuntimeError, match=r"'layer.weight' was changed in place"):
        model(features()).sum().backward()
    with GradientProbe(model, every=1, mode="sketch") as probe:
        model(features()).sum().backward()
    assert len(probe.records) == 1


def test_records_are_written_one_object_a_line(tmp_path):
    model = torch.nn.Linear(8, 2)
    with GradientProbe(model, CONFIG, every=1) as probe:
        model(features()[:1]).sum().backward()  # one row has no variance
        model(features()).sum().backward()
    probe.to_jsonl(tmp_path / "noise.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "noise.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[0]["sgd_variance"] is None and lines[1]["rmm_variance"] == probe.records[1].rmm_variance


def test_a_record_says_what_is_kept(tmp_path):
    x = features()
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    convert_to_rmm(model, CONFIG, module_filter_fn=lambda module, name: name != "1")
    with GradientProbe(model, CONFIG, every=1) as probe:
        model(x).sum().backward()
        with compress_activations(CONFIG, held=(x,)):
            loss = model(x).sum()
        loss.backward()
    kept = {(record.step, record.layer): record.kept for record in probe.records}
    assert [kept[0, f"{i}.weight"] for i in range(3)] == ["sketch", "whole", "sketch"]
    assert [kept[1, f"{i}.weight"] for i in range(3)] == ["held", "sketch", "sketch"]
    probe.to_jsonl(tmp_path / "noise.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "noise.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in lines] == [record.kept for record in probe.records]
    coded = run(convert_to_rmm(TwoGCN2(shared_weights=False), RMMConfig(x0_codec="int2")), x)["convs.0.weight2"]
    assert coded.kept == "code"


def test_the_plot_has_a_column_for_each_layer(tmp_path):
    pytest.importorskip("matplotlib")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    with GradientProbe(model, CONFIG, every=1) as probe:
        for _ in range(3):
            model(features()).square().mean().backward()
    probe.plot(tmp_path / "noise.png")
    probe.plot(tmp_path / "one.png", ["1.weight"])
    import matplotlib.image

    wide, narrow = (matplotlib.image.imread(tmp_path / name).shape[1] for name in ("noise.png", "one.png"))
    assert wide == 2 * narrow
    with pytest.raises(ValueError, match=r"'layers' must be weights that were recorded .*1.weight, 0.weight"):
        probe.plot(tmp_path / "none.png", ["2.weight"])


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"config": 0.1}, TypeError, "'config' must be an RMMConfig"),
        ({"every": 0}, ValueError, "'every' must be at least 1"),
        ({"mode": "fast"}, ValueError, "'mode' must be a known name .*exact, sketch"),
        (
            {"layers": ["weight", "wait"]},
            ValueError,
            r"'layers' must name trained weights .*\['wait'\].*They are: weight",
        ),
        ({"layers": "none"}, ValueError, r"'layers' must name trained weights"),
    ],
)
def test_errors(settings, error, match):
    with pytest.raises(error, match=match):
        GradientProbe(torch.nn.Linear(2, 2), **settings)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"'model' must be a torch.nn.Module"):
        GradientProbe(F.relu)
    with pytest.raises(TypeError, match="'model' must not be compiled"):
        GradientProbe(torch.compile(torch.nn.Linear(2, 2)))
    model = torch.nn.Linear(2, 2)
    model.compile(backend="eager")
    with pytest.raises(TypeError, match="Compiled code is never measured"):
        GradientProbe(model)


IMPORTANCE = RMMConfig(rate=0.2, sketch="importance_sampling")


def test_importance_sampling_is_judged_by_the_norms_it_draws_with():
    """Each step's number is that of the norms of the step before, and of norm sampling at the first one."""
    model, x = convert_to_rmm(torch.nn.Linear(8, 3), IMPORTANCE), features()
    gradients = [torch.randn(N, 3) * torch.rand(N, 1).pow(4) for _ in range(3)]
    with GradientProbe(model, every=1) as probe:
        for gradient in gradients:
            model(x).backward(gradient)
    norms = [None, *(gradient.norm(dim=1) for gradient in gradients)]
    for record, gradient, given in zip(probe.records, gradients, norms, strict=False):
        expected = rmm_variance(x, gradient, IMPORTANCE, row_norms=given)
        assert record.sketch_variance == pytest.approx(float(expected), rel=0.01)  # the layer's norms are rounded
        if given is not None:
            assert record.sketch_variance != pytest.approx(float(rmm_variance(x, gradient, IMPORTANCE)), rel=0.1)


def test_importance_sampling_does_not_judge_layers_that_keep_their_input():
    model, x = torch.nn.Linear(8, 3), features()
    with GradientProbe(model, IMPORTANCE, every=1), pytest.raises(ValueError, match=r"'config' must .*'importance_sam"):
        model(x)
    model(x).sum().backward()
    with GradientProbe(convert_to_rmm(model, IMPORTANCE), every=1, mode="sketch"):
        with pytest.raises(ValueError, match=r"variance follows from a, c, d \(got 'importance_sampling'\)"):
            model(x)
