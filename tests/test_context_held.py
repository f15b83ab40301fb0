"""Inputs that the caller holds: products that read them, or dropout of them, are exact and keep nothing new."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GraphSAGE

import rmm_gnn.functional as lean
from rmm_gnn import GradientProbe, NoiseController, RMMConfig, compress_activations, convert_to_rmm, memory_report
from rmm_gnn.autograd.bit_masks import TILE
from rmm_gnn.autograd.dropout import apply_dropout, dropped_rows
from rmm_gnn.functional.held import held_linear
from rmm_gnn.nn import LeanDropout
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

ROWS, WIDTH, OUT = 90, 16, 8
CONFIG = RMMConfig(rate=0.1)
SEED_BYTES = 8


def features(*shape, dtype=torch.float32):
    return torch.randn(shape or (ROWS, WIDTH), generator=torch.Generator().manual_seed(3)).to(dtype)


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, OUT).to(dtype)


DROPOUTS = {
    "F.dropout": lambda x: F.dropout(x, 0.3),
    "F.dropout(p=)": lambda x: F.dropout(input=x, p=0.3, training=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "nn.Dropout": nn.Dropout(0.3),
    "LeanDropout": LeanDropout(0.3),
    "none": lambda x: x,
}


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (3, ROWS // 3, WIDTH)])
def test_gradients_are_exact_and_nothing_but_a_seed_is_kept(name, converted, shape):
    x, linear = features(*shape), layer()
    if converted:
        convert_to_rmm(linear, CONFIG)
    with compress_activations(CONFIG, held=(x,)), saved_tensors() as saved:
        dropped = DROPOUTS[name](x)
        out = linear(dropped)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    out.backward(gradient)
    exact = gradient.flatten(0, -2).T @ dropped.flatten(0, -2)
    torch.testing.assert_close(out, F.linear(dropped, linear.weight, linear.bias))
    torch.testing.assert_close(linear.weight.grad, exact)
    torch.testing.assert_close(linear.bias.grad, gradient.flatten(0, -2).sum(0))
    kept = kept_storages(saved, besides=[x, *linear.parameters()])
    assert sum(kept.values()) == (0 if name == "none" else SEED_BYTES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype):
    x, linear = features(dtype=dtype), layer(dtype)
    with compress_activations(CONFIG, held=(x,)):
        dropped = F.dropout(x, 0.3)
        out = linear(dropped)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    out.backward(gradient)
    exact = (gradient.double().T @ dropped.double()).to(dtype)
    torch.testing.assert_close(linear.weight.grad, exact, rtol=2e-2 if dtype != torch.float64 else 1e-12, atol=1e-2)


@pytest.mark.parametrize("name", ["F.dropout", "none"])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (3, ROWS // 3, WIDTH)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_gradients_of_the_exact_layer_and_keeps_no_cast_copy(name, shape, dtype):
    x, linear = features(*shape), layer()
    with torch.autocast("cpu", dtype=dtype), saved_tensors() as saved:
        with compress_activations(CONFIG, held=(x,)):
            dropped = DROPOUTS[name](x)
            out = linear(dropped)
        kept = kept_storages(saved, besides=[x, *linear.parameters()])
        expected = F.linear(dropped.detach(), linear.weight, linear.bias)
    assert sum(kept.values()) == (0 if name == "none" else SEED_BYTES)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    parameters = list(linear.parameters())
    # Both round a sum of about the same terms to the low type once.
    torch.testing.assert_close(
        torch.autograd.grad(out, parameters, gradient),
        torch.autograd.grad(expected, parameters, gradient),
        rtol=2 * torch.finfo(dtype).eps,
        atol=2 * torch.finfo(dtype).eps,
    )


def test_autocast_with_a_held_tensor_that_needs_a_gradient_keeps_a_copy_of_the_weight():
    x, linear = features().requires_grad_(), layer()
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
        with compress_activations(CONFIG, held=(x,)):
            out = linear(x)
    kept = kept_storages(saved, besides=[x, *linear.parameters()])
    assert sum(kept.values()) == 2 * linear.weight.numel()
    gradient = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(4)).bfloat16()
    out.backward(gradient)
    torch.testing.assert_close(
        x.grad, gradient.float() @ linear.weight.detach().bfloat16().float(), rtol=1e-2, atol=1e-2
    )


ADDMMS = {
    "torch.addmm": lambda b, x, w: torch.addmm(b, x, w),
    "torch.addmm(mat1=)": lambda b, x, w: torch.addmm(input=b, mat1=x, mat2=w, beta=0.5, alpha=-2),
    "torch.addmm of a view": lambda b, x, w: torch.addmm(b, x, w.t().t(), beta=0),
    "Tensor.addmm": lambda b, x, w: b.addmm(x, w, alpha=3.0),
    "lean.addmm": lambda b, x, w: lean.addmm(b, x, w, beta=0.5, alpha=-2, config=CONFIG),
}


@pytest.mark.parametrize("call", ADDMMS)
@pytest.mark.parametrize("name", ["F.dropout", "none"])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("input_shape", [(OUT,), (ROWS, OUT), (ROWS, 1)])
def test_addmm_is_exact_and_keeps_nothing_but_a_seed(call, name, cast, input_shape):
    x, added, matrix = features(), features(*input_shape), nn.Parameter(features(WIDTH, OUT))
    added.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast), saved_tensors() as saved:
        with compress_activations(CONFIG, held=(x,)):
            dropped = DROPOUTS[name](x)
            out = ADDMMS[call](added, dropped, matrix)
        kept = kept_storages(saved, besides=[x, added, matrix])
        expected = ADDMMS["torch.addmm(mat1=)" if call == "lean.addmm" else call](added, dropped.detach(), matrix)
    assert sum(kept.values()) == (0 if name == "none" else SEED_BYTES)
    assert out.dtype == expected.dtype and torch.equal(out, expected)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if cast else {}
    torch.testing.assert_close(
        torch.autograd.grad(out, [added, matrix], gradient),
        torch.autograd.grad(expected, [added, matrix], gradient),
        **tolerance,
    )


def test_addmm_of_a_held_tensor_that_needs_a_gradient():
    x, matrix = features().requires_grad_(), nn.Parameter(features(WIDTH, OUT))
    with compress_activations(CONFIG, held=(x,)):
        dropped = F.dropout(x, 0.3)
        out = torch.addmm(torch.ones(OUT), dropped, matrix, alpha=-2)
    gradient = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(4))
    out.backward(gradient)
    torch.testing.assert_close(x.grad, -2 * (gradient @ matrix.detach().t()) * ((dropped != 0) / 0.7))
    torch.testing.assert_close(matrix.grad, -2 * dropped.detach().t() @ gradient)


def test_what_autocast_would_not_convert_is_kept_as_torch_keeps_it():
    x, linear = features(dtype=torch.bfloat16), layer()
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
        with compress_activations(CONFIG, held=(x,)):
            out = linear(x)
    assert not kept_storages(saved, besides=[x, *linear.parameters()])
    assert type(out.grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize("name", ["F.dropout", "none"])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("layout", ["permuted", "expanded", "every second column"])
def test_what_lies_otherwise_than_in_rows_is_kept_itself(name, cast, layout):
    x, linear = features(ROWS // 3, 3, WIDTH).transpose(0, 1), layer()
    if layout == "expanded":
        x = features(ROWS // 3, WIDTH).expand(3, -1, -1)
    elif layout == "every second column":
        x = features(3, ROWS // 3, 2 * WIDTH)[..., ::2]

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast), compress_activations(CONFIG, held=(x,)):
            dropped = DROPOUTS[name](x)
            return dropped, linear(dropped)

    with saved_tensors() as saved:
        dropped, out = run()
    kept = kept_storages(saved, besides=[x, *linear.parameters()])
    assert sum(kept.values()) == (0 if name == "none" else SEED_BYTES)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
    out.backward(gradient)
    exact = gradient.flatten(0, -2).float().T @ dropped.flatten(0, -2).to(out.dtype).float()
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if cast else {}
    torch.testing.assert_close(linear.weight.grad, exact, **tolerance)

    _, out = run()  # torch does not look at versions where hooks are set
    x[0, 0, 0] = 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_another_name_of_the_same_memory_is_held_too_and_a_part_of_it_is_not():
    x, linear = features(), layer()
    with compress_activations(CONFIG, held=(x,)):
        for tensor, estimated in ((x.detach(), False), (x[: ROWS // 2], True), (x.clone(), True)):
            with saved_tensors() as saved:
                linear(tensor)
            kept = kept_storages(saved, besides=[x, tensor, *linear.parameters()])
            assert bool(kept) == estimated, tensor.shape


def test_what_was_changed_after_dropout_is_sketched():
    x, linear = features(), layer()
    with compress_activations(CONFIG, held=(x,)), saved_tensors() as saved:
        dropped = F.dropout(x, 0.3)
        dropped[0] = 0.0
        linear(dropped)
    kept = kept_storages(saved, besides=[x, *linear.parameters()])
    assert sum(kept.values()) == CONFIG.saved_bytes(ROWS, WIDTH)


# Its sketch is exact: the gradient tells what was read.
WHOLE = RMMConfig(rate=1.0, sketch="row_sampling")


def assert_sketched(read):
    """``read(config, x, linear)`` returns what the layer read, and its output."""
    for config in (CONFIG, WHOLE):
        x, linear = features(), layer()
        with saved_tensors() as saved:
            dropped, out = read(config, x, linear)
        kept = kept_storages(saved, besides=[x, *linear.parameters()])
        assert sum(kept.values()) == config.saved_bytes(ROWS, WIDTH)
        out.sum().backward()
    torch.testing.assert_close(linear.weight.grad, torch.ones(OUT, ROWS) @ dropped)


def test_dropout_of_what_was_changed_since_is_sketched():
    def read(config, x, linear):
        with compress_activations(config, held=(x,)):
            dropped = F.dropout(x, 0.3)
            x.mul_(2.0)
            return dropped, linear(dropped)

    assert_sketched(read)


def test_dropout_that_an_earlier_entry_made_is_sketched():
    def read(config, x, linear):
        mode = compress_activations(config, held=(x,))
        with mode:
            dropped = F.dropout(x, 0.3)
        with mode:
            return dropped, linear(dropped)

    assert_sketched(read)


def test_dropout_under_a_probability_in_a_tensor_is_sketched():
    def read(config, x, linear):
        with compress_activations(config, held=(x,)):
            dropped = F.dropout(x, torch.tensor(0.3))
            return dropped, linear(dropped)

    assert_sketched(read)


@pytest.mark.parametrize("name", ["F.dropout", "none"])
def test_an_inner_mode_decides_what_is_held(name):
    def read(config, x, linear):
        with compress_activations(CONFIG, held=(x,)), compress_activations(config):
            dropped = DROPOUTS[name](x)
            return dropped, linear(dropped)

    assert_sketched(read)

    x, linear = features(), layer()
    with compress_activations(CONFIG), compress_activations(CONFIG, held=(x,)), saved_tensors() as saved:
        linear(x)
    assert not kept_storages(saved, besides=[x, *linear.parameters()])


def test_dropout_of_the_outer_mode_is_sketched_in_the_inner_and_exact_after_it():
    x, linear = features(), layer()
    with compress_activations(CONFIG, held=(x,)):
        dropped = F.dropout(x, 0.3)
        for inner, expected in ((True, CONFIG.saved_bytes(ROWS, WIDTH)), (False, SEED_BYTES)):
            with compress_activations(CONFIG) if inner else nullcontext(), saved_tensors() as saved:
                linear(dropped)
            assert sum(kept_storages(saved, besides=[x, *linear.parameters()]).values()) == expected


def test_two_layers_that_read_one_dropout_keep_one_seed():
    x, first, second = features(), layer(), layer()
    with compress_activations(CONFIG, held=(x,)), saved_tensors() as saved:
        dropped = F.dropout(x, 0.3)
        out = first(dropped) + 2 * second(dropped)
    kept = kept_storages(saved, besides=[x, *first.parameters(), *second.parameters()])
    assert sum(kept.values()) == SEED_BYTES
    out.sum().backward()
    torch.testing.assert_close(first.weight.grad, torch.ones(OUT, ROWS) @ dropped)
    torch.testing.assert_close(second.weight.grad, 2 * torch.ones(OUT, ROWS) @ dropped)


@pytest.mark.parametrize("name", ["F.dropout", "none"])
def test_a_parameter_may_be_held(name):
    x, linear = nn.Parameter(features()), layer()
    optimizer = torch.optim.SGD([x, *linear.parameters()], lr=0.1)
    gradient = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(4))
    for _ in range(2):  # the optimizer changes it in place between the steps
        optimizer.zero_grad()
        with compress_activations(CONFIG, held=(x,)), saved_tensors() as saved:
            dropped = DROPOUTS[name](x)
            out = linear(dropped)
        kept = kept_storages(saved, besides=[x, *linear.parameters()])
        # The seed is kept by dropout itself, which needs it for the gradient of x, and once more by the product.
        assert sum(kept.values()) == (0 if name == "none" else 2 * SEED_BYTES)
        out.backward(gradient)
        torch.testing.assert_close(linear.weight.grad, gradient.T @ dropped.detach())
        scale = 1.0 if name == "none" else (dropped != 0) / 0.7
        torch.testing.assert_close(x.grad, (gradient @ linear.weight.detach()) * scale)
        optimizer.step()


def test_changing_what_is_held_before_backward_raises():
    for read, cast in product((lambda x: x, lambda x: F.dropout(x, 0.3)), (False, True)):
        x, linear = features(), layer()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast), compress_activations(CONFIG, held=(x,)):
            loss = linear(read(x)).sum()
        x[0] = 1.0
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_held_tensors_that_need_a_gradient_get_it():
    x, linear = features().requires_grad_(), layer()
    with compress_activations(CONFIG, held=(x,)):
        dropped = F.dropout(x, 0.3)
        out = linear(dropped)
    gradient = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(4))
    out.backward(gradient)
    mask = (dropped != 0) / 0.7
    torch.testing.assert_close(x.grad, (gradient @ linear.weight) * mask)
    torch.testing.assert_close(linear.weight.grad, gradient.T @ dropped.detach())


def test_the_rest_of_the_model_is_compressed_as_ever():
    x = features()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, OUT))
    first = CONFIG.saved_bytes(ROWS, WIDTH) - SEED_BYTES  # its sketch goes, and the seed of the dropout before it comes
    assert memory_saved(model, x, held=(x,)) == memory_saved(model, x, held=()) - first


def memory_saved(model, x, held):
    with compress_activations(CONFIG, held=held):
        return memory_report(model, x).saved_bytes


def test_a_model_of_pyg_keeps_nothing_of_its_features():
    torch.manual_seed(0)
    model, x, edges = GraphSAGE(WIDTH, WIDTH, 2, OUT, dropout=0.5), features(), torch.randint(ROWS, (2, 300))
    with compress_activations(CONFIG, held=(x, edges)):
        report = memory_report(model, x, edges)
    # lin_r of the first layer reads the features, lin_l their mean.
    names = {entry.module for entry in report.entries}
    assert "convs.0.lin_l" in names and "convs.0.lin_r" not in names


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_within_a_checkpointed_block_the_mask_comes_back(use_reentrant):
    x, linear = features().requires_grad_(use_reentrant), layer()

    def block(x):
        with compress_activations(CONFIG, held=(x,)):
            dropped = F.dropout(x, 0.3)
            return linear(dropped), dropped

    out, dropped = checkpoint(block, x, use_reentrant=use_reentrant)
    out.sum().backward()
    torch.testing.assert_close(linear.weight.grad, torch.ones(OUT, ROWS) @ dropped)


@pytest.mark.parametrize("where", ["around", "inside"])
def test_compiled_code_sketches_what_is_held(where):
    x, linear = features() + 1.0, layer()
    mode = compress_activations(RMMConfig(rate=0.5), held=(x,))

    def loss(x):
        return linear(x).square().sum()

    def loss_inside(x):
        with mode:
            return loss(x)

    compiled = torch.compile(loss if where == "around" else loss_inside, fullgraph=True, backend="aot_eager")

    def gradient(loss):
        with mode if where == "around" else nullcontext():
            out = loss(x)
        return torch.autograd.grad(out, linear.weight)[0]

    exact = torch.autograd.grad(loss(x), linear.weight)[0]
    torch.testing.assert_close(gradient(loss if where == "around" else loss_inside), exact)
    estimate = assert_unbiased(lambda: gradient(compiled), exact, draws=300)
    assert not torch.equal(estimate, exact)


def test_a_probe_sees_no_noise_and_a_controller_leaves_the_rate_alone():
    x = features()
    torch.manual_seed(0)
    model = convert_to_rmm(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT)), CONFIG)
    probe, controller = GradientProbe(model, every=1), NoiseController(model, 0.5, every=1)
    with compress_activations(CONFIG, held=(x,)):
        model(x).square().sum().backward()
    controller.step()
    noise = {record.layer: record.rmm_variance for record in probe.records}
    assert noise["0.weight"] == 0.0 and noise["2.weight"] > 0.0
    assert controller.rates["0"] == CONFIG.rate != controller.rates["2"]


def test_inference_mode():
    x, linear = features(), layer()
    with torch.inference_mode(), compress_activations(CONFIG, held=(x,)):
        dropped = F.dropout(x, 0.3)
        out = linear(dropped)
        torch.testing.assert_close(out, F.linear(dropped, linear.weight, linear.bias))


@pytest.mark.parametrize("name", ["F.dropout", "none"])
def test_tensors_of_inference_mode_cannot_be_kept_and_are_sketched(name):
    with torch.inference_mode():
        x = features() + 1.0
    linear = layer()
    with compress_activations(RMMConfig(rate=1.0, sketch="row_sampling"), held=(x,)):
        dropped = DROPOUTS[name](x)
        linear(dropped).sum().backward()
    torch.testing.assert_close(linear.weight.grad, torch.ones(OUT, ROWS) @ dropped)


def test_double_backward_raises():
    x, linear = features().requires_grad_(), layer()
    with compress_activations(CONFIG, held=(x,)):
        out = linear(F.dropout(x, 0.3))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(out.sum(), linear.weight, create_graph=True)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: lean.dropout(x, "0.5"), "'p' must be a number"),
        (lambda x: lean.dropout(x, torch.tensor(0.5)), "'p' must be a number"),
        (lambda x: lean.rmm_linear(x, 3, config=CONFIG), "'weight' must be a tensor"),
        (lambda x: F.dropout(x, "0.5"), "not supported between"),  # torch's words
    ],
)
def test_wrong_arguments_raise_what_they_raise_elsewhere(call, match):
    x = features()
    with compress_activations(CONFIG, held=(x,)), pytest.raises(TypeError, match=match):
        call(x)


@pytest.mark.parametrize("held", [torch.ones(2, 2), 3, {"x": 1}.keys()])
def test_held_has_to_be_a_sequence(held):
    with pytest.raises(TypeError, match="'held' must be a sequence of tensors"):
        compress_activations(CONFIG, held=held)


def test_sparse_inputs_and_other_objects_are_passed_over():
    mode = compress_activations(CONFIG, held=(torch.eye(3).to_sparse_csr(), None, "graph"))
    assert mode.held == ()


@pytest.mark.parametrize("shape", [(1, 1), (63, 7), (100, 129), (2 * TILE // 1000 + 3, 1000)])
@pytest.mark.parametrize("height", [1, 40, 10_000])
def test_rows_made_again_are_those_of_dropout(shape, height):
    if height == 1 and shape[0] > 100:
        height = 5
    x, seed = features(*shape), torch.tensor(11)
    rows = torch.cat([rows.clone() for _, _, rows in dropped_rows(x, 0.3, seed, height)])
    assert torch.equal(rows, apply_dropout(x, 0.3, seed))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_operator_is_registered_right(p):
    x, linear, seed = features(), layer(), torch.tensor(5) if p else None
    matrix = linear.weight.detach().t().clone().requires_grad_()
    dropped = apply_dropout(x, p, seed).requires_grad_() if p else x
    for input in (None, linear.bias):
        args = (input, dropped, x, matrix, 0.5, 2.0, p, seed)
        torch.library.opcheck(torch.ops.rmm_gnn.held_addmm.default, args)
    for source in (x, x.view(3, ROWS // 3, WIDTH).transpose(0, 1)):
        torch.library.opcheck(torch.ops.rmm_gnn.held_weight_grad.default, (torch.randn(ROWS, OUT), source, p, seed))


def test_a_source_that_is_not_contiguous():
    source, linear, seed = features(WIDTH, ROWS).t(), layer(), torch.tensor(5)
    dropped = apply_dropout(source, 0.3, seed)
    out = held_linear(dropped, linear.weight, linear.bias, source=source, p=0.3, seed=seed)
    out.sum().backward()
    torch.testing.assert_close(linear.weight.grad, torch.ones(OUT, ROWS) @ dropped)


def test_a_copy_of_the_model_is_as_exact():
    x, linear = features(), copy.deepcopy(convert_to_rmm(layer(), CONFIG))
    with compress_activations(CONFIG, held=(x,)):
        linear(x).sum().backward()
    torch.testing.assert_close(linear.weight.grad, torch.ones(OUT, ROWS) @ x)
