"""What only a GPU can show; run wherever there is a CUDA device."""

import pytest
import torch

from rmm_gnn import RMMConfig, draw_seed, rmm_linear
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import Stream, hash_index
from tests.sketches.cases import CASES

pytestmark = pytest.mark.cuda
FAMILY = pytest.mark.parametrize("family", CASES.values(), ids=CASES.keys())


def test_hash_and_permutation_agree_with_the_cpu():
    index, seed = torch.arange(100_000), torch.tensor(2**40 + 5)
    on_gpu = hash_index(seed.cuda(), Stream.SIGNS, index.cuda())
    assert torch.equal(on_gpu.cpu(), hash_index(seed, Stream.SIGNS, index))
    assert torch.equal(permutation(seed.cuda(), 100_000).cpu(), permutation(seed, 100_000))


@FAMILY
@pytest.mark.parametrize("center", [True, False])
def test_gradients_agree_with_the_cpu(family, center):
    x, weight, bias = torch.randn(700, 9), torch.randn(5, 9), torch.randn(5)
    grad_output = torch.randn(700, 5)
    gradients = []
    for device in ("cpu", "cuda"):
        w, b = (t.to(device, copy=True).requires_grad_() for t in (weight, bias))
        config = RMMConfig(rate=0.2, sketch=family, center=center)
        rmm_linear(x.to(device), w, b, config=config, seed=11).backward(grad_output.to(device))
        gradients.append((w.grad.cpu(), b.grad.cpu()))
    for on_cpu, on_gpu in zip(*gradients, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


@FAMILY
def test_a_training_step_never_waits_for_the_gpu(family):
    """The seed and all that follows from it stay on the device."""
    layer = RMMTorchLinear(16, 8, config=RMMConfig(sketch=family)).cuda()
    x = torch.randn(500, 16, device="cuda")
    layer(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_replay(dtype):
    layer, x = RMMTorchLinear(64, 32).cuda(), torch.randn(1000, 64, device="cuda")
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        layer.weight.grad = None
        with torch.autocast("cuda", dtype=dtype):
            out = layer(x)
        assert out.dtype == dtype
        out.float().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)


def test_transient_memory_obeys_the_workspace():
    workspace = 16 * 2**20
    x, weight = torch.randn(2**20, 64, device="cuda"), torch.randn(8, 64, device="cuda", requires_grad=True)
    config = RMMConfig(size=64, workspace_bytes=workspace)
    rmm_linear(x, weight, config=config).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = rmm_linear(x, weight, config=config)
    kept = torch.cuda.memory_allocated() - before
    out.backward(torch.ones_like(out))
    assert torch.cuda.max_memory_allocated() - before <= kept + 2 * out.nbytes + workspace


def test_seed_stays_on_the_device():
    assert draw_seed(torch.zeros(1, device="cuda")).is_cuda


def test_a_mask_is_counted_once_for_all_layers():
    """Whoever counts waits for the GPU; the second layer that is given the mask does not."""
    x, mask = torch.randn(8, 60, 16, device="cuda"), torch.rand(8, 60, device="cuda") < 0.5
    weight, config = torch.randn(4, 16, device="cuda", requires_grad=True), RMMConfig(rate=0.2)
    grad_output = torch.randn(8, 60, 4, device="cuda") * mask.unsqueeze(-1)
    expected = rmm_linear(x[mask], weight, config=config, seed=3)
    (expected,) = torch.autograd.grad(expected, weight, grad_output[mask])
    rmm_linear(x, weight, config=config, row_mask=mask)
    seed = draw_seed(x).fill_(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = rmm_linear(x, weight, config=config, seed=seed, row_mask=mask)
        (found,) = torch.autograd.grad(out, weight, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
