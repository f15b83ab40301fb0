"""The lean operators, codecs, the mode and EXACT on a GPU: as on the CPU, and without waiting for the device."""

import pytest
import torch
from torch import nn

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.baselines.exact import convert_to_exact
from rmm_gnn.codecs import get_codec

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
ROWS, COLUMNS = 700, 20
OPERATORS = {
    "relu": lambda x, w: lean.relu(x),
    "leaky_relu": lambda x, w: lean.leaky_relu(x, 0.1),
    "dropout": lambda x, w: lean.dropout(x, 0.3, seed=7),
    "relu_dropout": lambda x, w: lean.relu_dropout(x, 0.3, seed=7),
    "gelu": lambda x, w: lean.gelu(x, seed=7),
    "silu": lambda x, w: lean.silu(x, seed=7),
    "elu": lambda x, w: lean.elu(x, seed=7),
    "batch_norm": lambda x, w: lean.batch_norm(x, None, None, w[0], w[1], training=True, seed=7),
    "layer_norm": lambda x, w: lean.layer_norm(x, (COLUMNS,), w[0], w[1], seed=7),
    "rms_norm": lambda x, w: lean.rms_norm(x, (COLUMNS,), w[0], seed=7),
    "addmm": lambda x, w: lean.addmm(x, x, w, config=RMMConfig(rate=0.2, codec="int4"), seed=7),
    "coded": lambda x, w: lean.shared_input_linear(x, w, scale=0.5, codec="int4", seed=7),
}
OPERATOR = pytest.mark.parametrize("name", OPERATORS)


def tensors(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, COLUMNS), (COLUMNS, COLUMNS), (ROWS, COLUMNS)
    x, w, grad_output = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return x.requires_grad_(), w.requires_grad_(), grad_output


@OPERATOR
def test_values_and_gradients_agree_with_the_cpu(name):
    results = []
    for device in ("cpu", DEVICE):
        x, w, grad_output = tensors(device)
        out = OPERATORS[name](x, w)
        gradients = torch.autograd.grad(out, (x, w), grad_output, allow_unused=True)
        results.append([out.detach().cpu(), *(g.cpu() for g in gradients if g is not None)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        # A value beside the border of two codes may fall on the other side: few entries, by a step at the most.
        differ = ~torch.isclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
        assert differ.float().mean() < 0.02


@OPERATOR
def test_a_step_never_waits_for_the_gpu(name):
    x, w, grad_output = tensors(DEVICE)
    operator = OPERATORS[name]
    operator(x, w).backward(grad_output)
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator(x, w).backward(grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("codec", ["int8", "int4", "int2", "int1", "int4:group_size=8"])
def test_codes_agree_with_the_cpu(codec):
    x, _, _ = tensors("cpu")
    x, seed, codec = x.detach(), torch.tensor(2**40 + 5), get_codec(codec)
    decoded = [
        codec.decode(codec.encode_matrix(x.to(d), seed.to(d)), 0, ROWS, COLUMNS, torch.float32).cpu()
        for d in ("cpu", DEVICE)
    ]
    assert torch.isclose(*decoded, rtol=1e-4, atol=1e-4).float().mean() > 0.99


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(COLUMNS, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(32), nn.GELU(),
        nn.Linear(32, 8),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mode", "modules", "exact"])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_whole_models_train_and_replay(kind, dtype):
    config = RMMConfig(rate=0.5, codec="int8")
    model = network().to(DEVICE)
    if kind == "modules":
        convert_to_rmm(model, config, lean=True)
    elif kind == "exact":
        convert_to_exact(model, kept_frac=0.5, bits=4)
    mode = compress_activations(config) if kind == "mode" else torch.enable_grad()
    x, gradients = tensors(DEVICE)[0].detach(), []
    for _ in range(2):
        torch.manual_seed(3)
        model.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype or torch.bfloat16, enabled=dtype is not None), mode:
            loss = model(x).float().square().mean()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()
