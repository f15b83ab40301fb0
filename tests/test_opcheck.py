"""The operators do as they are registered: schema, fake tensors, autograd and ahead-of-time dispatch."""

import pytest
import torch

import rmm_gnn.functional  # noqa: F401  (registers the operators)
from rmm_gnn import RMMConfig

OPS = torch.ops.rmm_gnn
SPEC = RMMConfig(rate=0.3, codec="int4").spec
SEED = torch.tensor(11)
FORWARD = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
BACKWARD = ("test_schema", "test_faketensor")


def leaf(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), requires_grad=True)


X, WEIGHT, BIAS, STATISTICS = leaf(20, 4), leaf(3, 4), leaf(3), (torch.zeros(4), torch.ones(4))
X_0 = torch.rand(20, 4, generator=torch.Generator().manual_seed(9), requires_grad=True)
KEPT = OPS.compress(X.detach(), SEED, SPEC)
CODE = OPS.encode(X.detach(), "int2", SEED)
G = torch.randn(20, 4)
ANCHORED = OPS.anchored_linear(X.detach(), WEIGHT.detach(), X_0.detach(), None, [], "fp32", 1.0, SEED, SPEC)[1]


def kept_by_norm(rate):
    return OPS.batch_norm(X.detach(), *[None] * 4, 0.1, 1e-5, "int2", True, SEED, rate, "auto")[2]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear_of_kept", (X, WEIGHT, BIAS, KEPT, SPEC)),
        ("linear_of_kept", (X.detach(), WEIGHT, None, KEPT, SPEC)),
        ("addmm", (BIAS, X, leaf(4, 3), 0.5, 2.0, SEED, SPEC)),
        ("coded_linear", (X, WEIGHT, CODE, "int2", 0.5)),
        ("anchored_linear", (X, WEIGHT, X_0, leaf(3, 4), CODE, "int2", 0.5, SEED, SPEC)),
        ("anchored_linear", (X, WEIGHT, X_0, leaf(3, 4), [], "fp32", 0.5, SEED, SPEC)),
        ("anchored_linear", (X.detach(), WEIGHT, X_0.detach(), None, [], "fp32", 1.0, SEED, SPEC)),
        ("relu", (X, None, "auto")),
        ("relu", (X, 0.1, "torch")),
        ("dropout", (X, 0.3, SEED, "auto")),
        ("relu_dropout", (X, 0.3, SEED, "auto")),
        ("batch_norm", (X, leaf(4), leaf(4), *STATISTICS, 0.1, 1e-5, "int2", True, SEED, 1.0, "auto")),
        ("batch_norm", (X, None, None, None, None, 0.1, 1e-5, "fp32", True, SEED, 1.0, "auto")),
        ("batch_norm", (X, leaf(4), leaf(4), *STATISTICS, 0.1, 1e-5, "int2", True, SEED, 0.3, "auto")),
        ("batch_norm", (leaf(4, 20).t(), None, None, None, None, 0.1, 1e-5, "int2", True, SEED, 1.0, "auto")),
        ("batch_norm", (leaf(3, 4, 9).permute(2, 1, 0), *[None] * 4, 0.1, 1e-5, "int2", True, SEED, 1.0, "torch")),
        ("batch_norm", (leaf(2, 3, 4, 5).permute(0, 3, 1, 2), *[None] * 4, 0.1, 1e-5, "fp32", True, SEED, 1.0, "auto")),
        ("batch_norm", (leaf(5, 3, 4, 2).permute(2, 0, 3, 1), *[None] * 4, 0.1, 1e-5, "int2", True, SEED, 1.0, "auto")),
        ("batch_norm", (leaf(9, 4, 3), None, None, None, None, 0.1, 1e-5, "fp32", True, SEED, 0.5, "auto")),
        ("layer_norm", (X, [4], leaf(4), leaf(4), 1e-5, "int2", True, SEED, "auto")),
        ("rms_norm", (X, [4], leaf(4), 1e-5, "int2", SEED, "auto")),
        ("rms_norm", (X.detach(), [4], leaf(4), 1e-5, "fp32", SEED, "auto")),
        ("activation", (X, "gelu", 0.0, "int4", SEED, "auto")),
        ("activation", (X, "elu", 0.5, "fp32", SEED, "auto")),
    ],
)
def test_forward(name, arguments):
    torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=FORWARD)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("compress", (X.detach(), SEED, SPEC)),
        ("encode", (X.detach(), "int2", SEED)),
        ("coded_weight_grad", (torch.randn(20, 3), CODE, 4, "int2")),
        ("anchored_weight_grads", (torch.randn(20, 3), ANCHORED, CODE, "int2", 4, SPEC)),
        ("anchored_weight_grads", (torch.randn(20, 3), ANCHORED, [X_0.detach()], "fp32", 4, SPEC)),
        ("masked_grad", (G, OPS.relu(X.detach(), None, "auto")[1], 0.7, 0.0, "auto")),
        ("dropout_backward", (G, 0.3, SEED, "auto")),
        ("activation_backward", (G, OPS.activation(X.detach(), "silu", 0.0, "int4", SEED, "auto")[1], "int4", "auto")),
        ("batch_norm_backward", (G, None, kept_by_norm(1.0), "int2", True, 1.0, None, "auto")),
        ("batch_norm_backward", (G, None, kept_by_norm(0.3), "int2", True, 0.3, SEED, "auto")),
        (
            "rms_norm_backward",
            (G, [4], None, OPS.rms_norm(X.detach(), [4], None, 1e-5, "int2", SEED, "auto")[1], "int2", True, "auto"),
        ),
        (
            "layer_norm_backward",
            (
                G,
                [4],
                None,
                OPS.layer_norm(X.detach(), [4], None, None, 1e-5, "int2", True, SEED, "auto")[1],
                "int2",
                True,
                True,
                "auto",
            ),
        ),
    ],
)
def test_backward(name, arguments):
    torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=BACKWARD)
