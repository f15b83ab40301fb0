"""The family and the codec that the documentation adds obey the laws of the library's own."""

import math
import os
import subprocess
import sys

import pytest
import torch

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.nn import RMMTorchLinear
from tests.docs.pages import ROOT, namespace_of

SKETCH_FILE = "docs/examples/sparse_sign_sketch.py"
SEEDS = 1000


@pytest.fixture
def family():
    return namespace_of(SKETCH_FILE)["SparseSignSketch"](nonzeros=3)


@pytest.fixture
def codec():
    return namespace_of("docs/examples/ternary_codec.py")["TernaryCodec"]()


def test_the_family_passes_the_conformance_suite():
    """By the command that the file names."""
    tests = [f"tests/sketches/test_{name}.py" for name in ("conformance", "statistics")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    done = subprocess.run(
        [*command, "-k", "given", "--sketch-file", SKETCH_FILE],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 30


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_the_familys_bytes_and_gradient_are_the_dense_formulas(family, size):
    x, weight = torch.randn(40, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    config, seed = RMMConfig(size=size, sketch=family, center=False), torch.tensor(11)
    assert config.saved_bytes(40, 5, torch.float64) == size * 5 * 8 + 8
    out = rmm_linear(x, weight, config=config, seed=seed)
    grad_output = torch.randn_like(out)
    out.backward(grad_output)
    s = family.to_dense(40, size, seed, dtype=torch.float64)
    torch.testing.assert_close(weight.grad, (s.T @ grad_output).T @ (s.T @ x))


def test_the_family_checks_its_setting(family):
    with pytest.raises(ValueError, match="'nonzeros' must be a positive whole number"):
        type(family)(nonzeros=0)


def test_both_serve_in_compiled_code(family, codec):
    config = RMMConfig(rate=0.3, sketch=family, codec=codec)
    layer, x = RMMTorchLinear(6, 4, config=config), torch.randn(50, 6)
    gradients = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(3)
        layer.zero_grad()
        run(x).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_codec_is_right_on_average_with_the_variance_it_states(codec):
    matrix = torch.randn(6, 9) * torch.logspace(-3, 3, 6).unsqueeze(1)
    matrix[2, 4:] = 0.0
    read = torch.stack([back(codec, matrix, seed) for seed in range(SEEDS)])
    closed, scale = codec.variance(matrix), matrix.abs().amax(1, keepdim=True)
    assert ((read.mean(0) - matrix).abs() <= 5 * (closed / SEEDS).sqrt() + 1e-6 * scale).all()
    along = (read * matrix / scale**2).sum((1, 2)) / (matrix / scale).square().sum()
    assert z_score(along, 1.0) < 5
    assert z_score(1.05 * along, 1.0) > 5
    squares = ((read - matrix).square() / scale.square()).mean((1, 2))
    expected = (closed / scale.square()).mean()
    assert z_score(squares, expected) < 5
    assert z_score(1.05 * squares, expected) > 5
    assert torch.equal(read[:, 2, 4:], torch.zeros(SEEDS, 5))


def test_any_two_entries_are_rounded_independently(codec):
    """Of a weight gradient, a sum of entries times numbers, the variance is then that of the entries."""
    matrix, direction = torch.randn(5, 8), torch.randn(5, 8)
    sums = torch.stack([(back(codec, matrix, seed) * direction).sum() for seed in range(SEEDS)])
    squares = (sums - (matrix * direction).sum()).square()
    closed = (codec.variance(matrix) * direction.square()).sum()
    assert z_score(squares, closed) < 5


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 129), (100, 3), (4, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_codecs_storage(codec, shape, dtype):
    matrix = torch.randn(shape).to(dtype)
    payload = codec.encode_matrix(matrix, torch.tensor(1))
    size = sum(part.numel() * part.element_size() for part in payload)
    assert size == codec.num_bytes(*shape, dtype) == shape[0] * (math.ceil(shape[1] / 4) + 4)
    whole, pieces = back(codec, matrix, 1), codec.empty(*shape, dtype, matrix.device)
    for start in range(0, shape[0], 3):
        codec.encode(matrix[start : start + 3], pieces, start, torch.tensor(1))
    assert all(torch.equal(one, other) for one, other in zip(payload, pieces, strict=True))
    magnitudes = matrix.double().abs()
    largest = magnitudes.amax(1, keepdim=True) if shape[1] else magnitudes
    assert torch.equal(whole == 0, (whole.double().abs() - largest).abs() > 1e-6 * largest)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_inf_and_nan_are_not_hidden(codec, bad):
    matrix = torch.randn(3, 5)
    matrix[1, 2] = bad
    found = back(codec, matrix, 0)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


def back(codec, matrix, seed):
    payload = codec.encode_matrix(matrix, torch.tensor(seed))
    return codec.decode(payload, 0, *matrix.shape, torch.float32)


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)
