"""The root-mean-square norms of transformers are what they were but for what they keep."""

from __future__ import annotations

import inspect
import pickle
import sys
from importlib import import_module

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import rmm_gnn.hf.norms
from rmm_gnn import RMMConfig, memory_report, revert_rmm
from rmm_gnn.codecs import get_codec
from rmm_gnn.hf import apply_rmm
from rmm_gnn.hf.norms import _HOMES, _LIKE_LLAMA, lean_norm, lean_norms
from tests.hf.models import BATCH, HIDDEN, LENGTH, batch, build
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

EXACT = RMMConfig(norm_codec="fp32")
NAMES = ["LlamaRMSNorm", "T5LayerNorm"]
LOW = torch.bfloat16


def stock(name: str) -> type:
    return getattr(import_module(_HOMES[name]), name)


def twins(name: str, dtype: torch.dtype = torch.float32, config: RMMConfig = EXACT):
    plain = stock(name)(16)
    torch.nn.init.uniform_(plain.weight, 0.5, 1.5)
    ours = lean_norm(type(plain))(16, config=config)
    ours.load_state_dict(plain.state_dict())
    return plain.to(dtype), ours.to(dtype)


@pytest.mark.parametrize("name", _HOMES)
def test_the_listed_ones_have_the_code_of_llama_or_t5(name):
    """What another release may change."""
    reference = stock("LlamaRMSNorm" if name in _LIKE_LLAMA else "T5LayerNorm")

    def code(norm: type) -> str:
        lines = inspect.getsource(norm.forward).splitlines()[1:]
        return "\n".join(line.strip() for line in lines if not line.strip().startswith("#"))

    assert code(stock(name)) == code(reference)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 2, (LOW, LOW), (torch.float32, LOW), (LOW, torch.float32)], ids=str
)
def test_outputs_and_gradients_are_the_stock_ones(name, dtypes):
    x_dtype, dtype = dtypes
    results = []
    for norm in twins(name, dtype):
        x = (3 * torch.randn(20, 5, 16, generator=torch.Generator().manual_seed(0))).to(x_dtype).requires_grad_()
        out = norm(x)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [x, norm.weight])))
        norm.eval()
        assert torch.equal(norm(x), stock(name).forward(norm, x))
    if dtypes == (torch.float32, torch.float32):
        assert torch.equal(results[0][0], results[1][0])
    tolerance = 1e-5 if LOW not in dtypes else 2e-2
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).float().norm() <= tolerance * theirs.float().norm()


@pytest.mark.parametrize("name", NAMES)
def test_kept_is_the_code_and_a_number_a_row(name):
    _, norm = twins(name, config=RMMConfig())
    with saved_tensors() as saved:
        norm(torch.randn(20, 5, 16, requires_grad=True))
    kept = sum(kept_storages(saved, besides=norm.parameters()).values())
    assert kept == get_codec("int2").num_bytes(100, 16, torch.float32) + 4 * 100
    assert "norm_codec='int2'" in repr(norm)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_weight_is_unbiased(name):
    plain, norm = twins(name, config=RMMConfig())
    x = 1 + torch.randn(100, 16)

    def draw(norm=norm) -> Tensor:
        return torch.autograd.grad(norm(x).square().sum(), norm.weight)[0]

    assert_unbiased(draw, draw(plain), draws=200)


def test_models_that_are_not_imported_stay_so():
    before = set(sys.modules)
    found = {norm.__name__ for norm in lean_norms()}
    assert "LlamaRMSNorm" in found and set(sys.modules) == before


def test_a_norm_of_another_library_under_the_name_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys.modules[_HOMES["T5LayerNorm"]], "T5LayerNorm", torch.nn.RMSNorm)
    assert torch.nn.RMSNorm not in lean_norms()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_models_are_converted_reverted_and_pickled(name):
    model = apply_rmm(build(name), {"rate": 0.25}, whole_block=True)
    lean = [module for module in model.modules() if type(module) in lean_norms().values()]
    assert len(lean) == {"llama": 5, "t5": 12}[name]
    again = pickle.loads(pickle.dumps(model))
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    report = memory_report(model, **batch(name), loss_fn=lambda out: out.loss)
    per_norm = get_codec("int2").num_bytes(BATCH * LENGTH, HIDDEN, torch.float32) + 4 * BATCH * LENGTH
    assert report.by_operator()["rmm_gnn.rms_norm"] == per_norm * len(lean)
    assert "rsqrt" not in report.by_operator()
    revert_rmm(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in build(name).modules()]


def test_other_names_raise():
    with pytest.raises(AttributeError, match="has no attribute 'LeanGemmaRMSNorm'"):
        rmm_gnn.hf.norms.LeanGemmaRMSNorm  # noqa: B018
