"""inf and nan, in the input or in the gradient of the output: they reach what they reach in torch, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, rmm_linear
from tests.examples import examples
from tests.properties.configs import configs
from tests.properties.matrices import DTYPES, SEEDS
from tests.sketches.cases import CASES as FAMILIES
from tests.sketches.cases import norms_for

INF, NAN = float("inf"), float("nan")
BAD = [INF, -INF, NAN]


def all_gradients(x, weight, grad_output, config, seed=3):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = rmm_linear(x, weight, config=config, seed=seed, row_norms=norms_for(config.family, x.shape[0]))
    out.backward(grad_output)
    return out.detach(), x.grad, weight.grad


def check(x, grad_output, config, seed=3):
    weight = torch.randn(grad_output.shape[1], x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.dtype)
    out, grad_x, grad_weight = all_gradients(x, weight, grad_output, config, seed)
    assert torch.equal(out.nan_to_num(), F.linear(x, weight).nan_to_num())
    # The gradient of x is that of torch: rows of grad_output that are finite have finite ones.
    torch.testing.assert_close(grad_x, grad_output @ weight, equal_nan=True)
    exact = grad_output.double().T @ x.double()
    assert not grad_weight[~exact.isfinite()].isfinite().any()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("center", [True, False], ids=["centred", "plain"])
def test_every_family_and_codec_lets_them_through(family, center):
    """Also families that look at few rows: where those are not centred, a mark for each column stands for the rest."""
    for number, codec in enumerate(("fp32", "bf16", "int8", "int4:group_size=2", "int1")):
        config, value = RMMConfig(size=1 + 2 * (number % 2), sketch=family, codec=codec, center=center), BAD[number % 3]
        x, grad_output = torch.randn(20, 5), torch.randn(20, 4)
        x[7, 2] = value
        check(x, grad_output, config)
        x, grad_output = torch.randn(20, 5), torch.randn(20, 4)
        grad_output[11, 1] = value
        check(x, grad_output, config)


@examples(30)
@given(
    configs(), SEEDS, st.integers(1, 60), st.sampled_from(DTYPES),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 59), st.integers(0, 3), st.sampled_from(BAD)), min_size=1, max_size=5
    ),
)  # fmt: skip
def test_wherever_they_are(config, seed, rows, dtype, places):
    generator = torch.Generator().manual_seed(seed % 2**32)
    x = torch.randn(rows, 4, generator=generator).to(dtype)
    grad_output = torch.randn(rows, 4, generator=generator).to(dtype)
    for in_x, row, column, value in places:
        (x if in_x else grad_output)[row % rows, column] = value
    check(x, grad_output, config, seed)


def test_columns_without_them_stay_finite_in_casts():
    """A sketch of sums mixes rows, never columns."""
    x, grad_output = torch.randn(20, 5), torch.randn(20, 4)
    x[7, 2] = NAN
    for family in FAMILIES.values():
        for center in (True, False):
            config = RMMConfig(size=5, sketch=family, center=center)
            grad_weight = all_gradients(x, torch.randn(4, 5), grad_output, config)[2]
            if not family.depends_on_data:  # those draw by the norms of rows, of which one is nan
                assert grad_weight[:, [0, 1, 3, 4]].isfinite().all() and grad_weight[:, 2].isnan().all()


NORMS = {
    "layer_norm": lambda x, function, **rest: function.layer_norm(x, [6], torch.ones(6, dtype=x.dtype), **rest),
    "rms_norm": lambda x, function, **rest: function.rms_norm(x, [6], torch.ones(6, dtype=x.dtype), **rest),
    "batch_norm": lambda x, function, **rest: function.batch_norm(x, None, None, training=True, **rest),
}
ACTIVATIONS = {
    "relu": lambda x, function, **rest: function.relu(x, **rest),
    "leaky_relu": lambda x, function, **rest: function.leaky_relu(x, 0.1, **rest),
    "gelu": lambda x, function, **rest: function.gelu(x, **rest),
    "gelu_tanh": lambda x, function, **rest: function.gelu(x, approximate="tanh", **rest),
    "silu": lambda x, function, **rest: function.silu(x, **rest),
    "elu": lambda x, function, **rest: function.elu(x, **rest),
}
CODED = ["gelu", "gelu_tanh", "silu", "elu", *NORMS]


@pytest.mark.parametrize("name", [*ACTIVATIONS, *NORMS])
@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int1", "int4:group_size=2"])
def test_lean_functions_let_them_through(name, codec):
    """Output as torch's; where torch's gradient is nan or inf, so is the lean one; rows apart from them stay finite."""
    function = {**ACTIVATIONS, **NORMS}[name]
    rest = {"codec": codec} if name in CODED else {}
    for dtype in (torch.float32, torch.bfloat16):
        for value in BAD:
            for at_x in (True, False):
                x, grad_output = torch.randn(5, 6).to(dtype), torch.randn(5, 6).to(dtype)
                (x if at_x else grad_output)[2, 3] = value
                own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
                out, expected = function(own, lean, **rest), function(other, F)
                torch.testing.assert_close(out, expected, equal_nan=True, rtol=2e-2, atol=1e-2)
                out.backward(grad_output)
                expected.backward(grad_output)
                hidden = ~other.grad.isfinite() & own.grad.isfinite()
                assert not hidden.any()
                if name != "batch_norm":
                    assert own.grad[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("value", BAD)
def test_dropout_lets_them_through_or_drops_them(value):
    """An entry that is dropped is 0, whatever it was, as in torch: 0 times inf is not formed."""
    for function in (lean.dropout, lean.relu_dropout):
        x = torch.randn(4, 50).requires_grad_()
        with torch.no_grad():
            x[2] = value
        out = function(x, 0.5, seed=5)
        reference = F.dropout(x.detach(), 0.5)
        assert reference[2].isfinite().any() == out[2].isfinite().any() or function is lean.relu_dropout
        out.backward(torch.ones_like(out))
        assert x.grad.isfinite().all() and out[[0, 1, 3]].isfinite().all()
        if value != -INF or function is lean.dropout:
            assert not out[2].isfinite().all()
