"""anchored_linear: two exact products, one estimate that the anchor leaves unbiased, and one Y^T X_0 for both."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rmm_gnn import RMMConfig
from rmm_gnn.anchor import fit_anchor, residual
from rmm_gnn.compression import compress
from rmm_gnn.functional import anchored_linear
from tests.nn.recording import assert_unbiased, kept_storages, one_thread, saved_tensors
from tests.sketches.cases import CASES

ROWS, IN, OUT = 60, 5, 3


def tensors(dtype=torch.float64, rows=ROWS, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(rows, IN, generator=generator, dtype=torch.float64).relu()
    x_0[:, 1] = 0  # a ReLU that is never active
    x = x_0 @ torch.randn(IN, IN, generator=generator, dtype=torch.float64) + 1
    x += 0.3 * torch.randn(rows, IN, generator=generator, dtype=torch.float64)
    weights = [torch.randn(OUT, IN, generator=generator, dtype=torch.float64) for _ in range(2)]
    made = [tensor.to(dtype) for tensor in (x, weights[0], x_0, weights[1])]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def reference(x, weight, x_0, weight_0, scale=1.0):
    out = x @ weight.T
    return out if weight_0 is None else out + scale * x_0 @ weight_0.T


def target():
    return torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.3


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("x0_codec", ["fp32", "bf16", "int4"])
@pytest.mark.parametrize("second", [True, False])
def test_output_and_exact_gradients(second, x0_codec, center):
    x, weight, x_0, weight_0 = tensors()
    weight_0 = weight_0 if second else None
    config = RMMConfig(rate=0.2, x0_codec=x0_codec, center=center)
    out = anchored_linear(x, weight, x_0, weight_0, scale=0.7, config=config)
    expected = reference(x, weight, x_0, weight_0, 0.7)
    torch.testing.assert_close(out, expected)
    wanted = [x, x_0, *([weight_0] if second and x0_codec == "fp32" else [])] if second else [x]
    for found, exact in zip(
        torch.autograd.grad((out * target()).sum(), wanted),
        torch.autograd.grad((expected * target()).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(found, exact)
    if not second:
        assert torch.autograd.grad(anchored_linear(x, weight, x_0, config=config).sum(), x_0, allow_unused=True) == (
            None,
        )


# Families that draw without looking at the data: the others cannot be anchored.
BLIND = [name for name, family in CASES.items() if not family.depends_on_data]


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("center", [True, False])
def test_the_sketch_is_that_of_the_residual(name, center):
    x, _, x_0, _ = (tensor.detach() for tensor in tensors())
    config = RMMConfig(rate=0.3, sketch=CASES[name], center=center)
    seed = torch.tensor(8)
    anchor = fit_anchor(x, x_0, center=center, workspace_bytes=config.workspace_bytes)
    dense = config.family.to_dense(ROWS, config.sketch_size(ROWS), seed, dtype=x.dtype)
    for workspace in (config.workspace_bytes, 512):
        kept = compress(x, replace(config, workspace_bytes=workspace), seed, anchor=anchor)
        torch.testing.assert_close(kept.payload[0], dense.T @ residual(x, anchor))


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_nothing_is_estimated_where_x_0_explains_x(rate):
    x, weight, x_0, weight_0 = tensors()
    x = (x_0.detach() @ torch.randn(IN, IN, dtype=x.dtype) + 2.0).requires_grad_()
    out = anchored_linear(x, weight, x_0, weight_0, config=RMMConfig(rate=rate))
    (found,) = torch.autograd.grad((out * target()).sum(), weight)
    torch.testing.assert_close(found, target().T @ x, rtol=1e-3, atol=1e-3)  # the ridge leaves a little


@pytest.mark.parametrize(
    ("x0_codec", "codec", "second"),
    [
        ("fp32", "fp32", True),
        ("fp32", "fp32", False),
        ("bf16", "fp32", True),
        ("int4", "fp32", True),
        ("int2", "int8", True),
        ("int2", "int8", False),
        ("int1", "fp32", True),
    ],
)
def test_the_estimates_are_unbiased(x0_codec, codec, second):
    x, weight, x_0, weight_0 = tensors()
    config = RMMConfig(rate=0.5, x0_codec=x0_codec, codec=codec)
    wanted = [weight, weight_0] if second else [weight]

    def draw():
        out = anchored_linear(x, weight, x_0, weight_0 if second else None, scale=0.5, config=config)
        return torch.autograd.grad((out * target()).sum(), wanted)

    draws = 1500 if x0_codec == "int1" else 400
    found = [draw() for _ in range(draws)]
    assert_unbiased(iter([grads[0] for grads in found]).__next__, target().T @ x, draws=draws)
    if second and x0_codec.startswith("int"):
        assert_unbiased(iter([grads[1] for grads in found]).__next__, 0.5 * target().T @ x_0, draws=draws)


def test_rounding_to_nearest_leaves_no_bias_where_a_fit_on_x_0_itself_would():
    """At rate 1 the sketch is exact, so that what x_0 was rounded by would show."""
    x, weight, x_0, weight_0 = tensors()
    out = anchored_linear(x, weight, x_0, weight_0, config=RMMConfig(rate=1.0, x0_codec="bf16"))
    found, rounded = torch.autograd.grad((out * target()).sum(), [weight, weight_0])
    torch.testing.assert_close(found, target().T @ x, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(rounded, target().T @ x_0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=4)))
def test_every_combination_of_gradients(needs):
    given = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors(), needs, strict=True)]
    out = anchored_linear(*given, scale=0.5, config=RMMConfig(rate=1.0))
    assert out.requires_grad == any(needs)
    wanted = [tensor for tensor in given if tensor.requires_grad]
    if wanted:
        exact = torch.autograd.grad((reference(*given, 0.5) * target()).sum(), wanted)
        torch.testing.assert_close(torch.autograd.grad((out * target()).sum(), wanted), exact)


@pytest.mark.parametrize("x0_codec", ["fp32", "int4", "bf16"])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kept_bytes(dtype, second, x0_codec):
    x, weight, x_0, weight_0 = tensors(dtype)
    config = RMMConfig(rate=0.2, x0_codec=x0_codec, codec="int8")
    with saved_tensors() as saved:
        anchored_linear(x, weight, x_0, weight_0 if second else None, config=config)
    kept = kept_storages(saved, besides=[weight, weight_0, x_0])
    code = {"int4": ROWS * (3 + 4), "bf16": 0 if dtype == torch.bfloat16 else 2 * ROWS * IN, "fp32": 0}[x0_codec]
    fit = IN * IN * (8 if dtype == torch.float64 else 4)
    assert sum(kept.values()) == config.saved_bytes(ROWS, IN, dtype) + fit + code
    known = {tensor.data_ptr() for tensor in saved}
    assert (x_0.data_ptr() in known) == (code == 0) and x.data_ptr() not in known


class Products(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_both_weights_share_one_product_with_x_0():
    given = tensors()
    out = anchored_linear(*given, config=RMMConfig(rate=0.2))
    with Products() as products:
        torch.autograd.grad(out.sum(), [given[1], given[3]])
    assert products.names.count("rmm_gnn::anchored_weight_grads") == 1
    assert "rmm_gnn::coded_weight_grad" not in products.names


def test_layers_share_one_code_of_x_0_and_every_step_has_its_own():
    x, weight, x_0, weight_0 = tensors()
    config = RMMConfig(rate=0.2, x0_codec="int2")
    codes = []
    for _ in range(2):
        with saved_tensors() as saved:
            out = sum(anchored_linear(x, weight, x_0, weight_0, config=config) for _ in range(3))
        codes.append({tensor.data_ptr() for tensor in saved if tensor.dtype == torch.uint8})
        out.sum().backward()
    assert [len(found) for found in codes] == [1, 1]


def test_three_dimensions():
    x, weight, x_0, weight_0 = (tensor.detach() for tensor in tensors())
    weight.requires_grad_()
    cut = x.reshape(6, 10, IN), weight, x_0.reshape(6, 10, IN), weight_0
    out = anchored_linear(*cut, config=RMMConfig(rate=1.0, x0_codec="bf16"))
    torch.testing.assert_close(out, reference(x, weight, x_0, weight_0).reshape(6, 10, OUT))
    (found,) = torch.autograd.grad((out * target().view(6, 10, OUT)).sum(), weight)
    torch.testing.assert_close(found, target().T @ x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision(dtype, autocast):
    # x_0 stays as it came under autocast; the gradients are those of the types of the arguments.
    given = tensors(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = anchored_linear(*given, scale=0.5, config=RMMConfig(rate=1.0))
    assert out.dtype == dtype
    found = torch.autograd.grad((out.float() * target().float()).sum(), given)
    exact = torch.autograd.grad((reference(*given, 0.5).float() * target().float()).sum(), given)
    for one, other, tensor in zip(found, exact, given, strict=True):
        assert one.dtype == tensor.dtype
        assert (one - other).double().norm() < 0.03 * other.double().norm()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("sketch", ["count_sketch", "row_sampling"])
@pytest.mark.parametrize("spoilt", [0, 2, "grad_output"])
def test_inf_and_nan_reach_the_gradient(spoilt, sketch, center):
    for value, row in itertools.product((torch.inf, torch.nan), (0, 31)):
        given = tensors(requires_grad=False)
        if spoilt != "grad_output":
            given[spoilt][row, 2] = value
        given[1].requires_grad_()
        out = anchored_linear(*given, config=RMMConfig(rate=0.1, sketch=sketch, center=center))
        grad_output = torch.ones_like(out)
        if spoilt == "grad_output":
            grad_output[row, 1] = value
        assert not torch.autograd.grad(out, given[1], grad_output)[0].isfinite().all()


@pytest.mark.parametrize("x0_codec", ["fp32", "int4"])
@pytest.mark.parametrize("second", [True, False])
def test_what_is_drawn_does_not_depend_on_grad_mode(second, x0_codec):
    """Reentrant checkpointing runs its first pass without; later draws must come out the same in both."""
    x, weight, x_0, weight_0 = tensors()
    states = []
    for enabled in (True, False):
        torch.manual_seed(3)
        with torch.set_grad_enabled(enabled):
            anchored_linear(x, weight, x_0, weight_0 if second else None, config=RMMConfig(x0_codec=x0_codec))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_no_rows():
    given = tensors(rows=0)
    anchored_linear(*given, config=RMMConfig()).sum().backward()
    assert not given[1].grad.any()


def test_double_backward_raises():
    given = tensors()
    with pytest.raises(RuntimeError, match="anchored_linear cannot be differentiated twice"):
        torch.autograd.grad(anchored_linear(*given, config=RMMConfig()).square().sum(), given[0], create_graph=True)


def test_x_may_be_changed_in_place_and_a_kept_x_0_may_not():
    x, weight, x_0, weight_0 = tensors(requires_grad=False)
    weight.requires_grad_()
    expected = target().T @ x
    for changed in (x, x_0):
        out = anchored_linear(x, weight, x_0, weight_0, config=RMMConfig(rate=1.0))
        changed.mul_(2)
        if changed is x:
            torch.testing.assert_close(torch.autograd.grad((out * target()).sum(), weight)[0], expected)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"config": 0.1}, TypeError, "'config' must be an RMMConfig"),
        ({"config": RMMConfig(sketch="norm_sampling")}, ValueError, "'sketch' must be a family that does not depend"),
        ({"config": RMMConfig(sketch="importance_sampling")}, ValueError, r"\(got 'importance_sampling'\)"),
        ({"x_0": torch.ones(ROWS, 2)}, ValueError, r"'x_0' must have the shape of 'x', \(60, 5\) \(got \(60, 2\)\)"),
        ({"x_0": torch.ones(ROWS, IN)}, TypeError, "'x_0' must have the type of 'x', torch.float64"),
        ({"x_0": [1.0]}, TypeError, "'x_0' must be a tensor"),
        ({"x_0": torch.ones(ROWS, IN, device="meta").double()}, ValueError, "'x_0' must be on the device of 'x'"),
        ({"weight_0": torch.ones(2, IN).double()}, ValueError, "'weight_0' must have the shape of 'weight'"),
        ({"weight": torch.ones(OUT, IN)}, TypeError, "'weight' must have the type of 'x'"),
        ({"seed": 0.5}, TypeError, "'seed' must be an int"),
    ],
)
def test_errors(change, error, match):
    names = ("x", "weight", "x_0", "weight_0")
    given = {**dict(zip(names, tensors(), strict=True)), "config": RMMConfig(), **change}
    with pytest.raises(error, match=match):
        anchored_linear(**given)
