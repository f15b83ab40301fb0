"""What several layers read is kept once: sketches of one tensor at one rate, and the code of a shared x_0."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN2Conv

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.codecs import get_codec
from rmm_gnn.functional import shared_input as shared_input_module
from rmm_gnn.functional import shared_input_linear
from rmm_gnn.nn import RMMGCN2Conv
from rmm_gnn.sharing import KeptOnce
from tests.nn.recording import assert_unbiased, kept_storages, one_thread, saved_tensors

CONFIG = RMMConfig(rate=0.25)
ROWS, CHANNELS = 40, 8


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield


class Maker:
    """Makes something new at each call, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[Tensor]:
        self.calls += 1
        return [torch.full((2,), float(self.calls))]


class TestKeptOnce:
    def test_the_same_tensor_and_key_find_what_was_made(self):
        kept, make, x = KeptOnce(), Maker(), torch.ones(3)
        first, second = (kept.get_or_make(x, "key", make) for _ in range(2))
        assert make.calls == 1 and first[0].data_ptr() == second[0].data_ptr()

    def test_another_tensor_or_key_does_not(self):
        kept, make, x = KeptOnce(), Maker(), torch.ones(3)
        asked = [(x, "a"), (x, "b"), (x.clone(), "a"), (x.view(3), "a"), (x.detach(), "a")]
        held = [kept.get_or_make(tensor, key, make) for tensor, key in asked]
        assert make.calls == len(held) == 5

    def test_two_memories_do_not_share(self):
        make, x = Maker(), torch.ones(3)
        held = [kept.get_or_make(x, "key", make) for kept in (KeptOnce(), KeptOnce())]
        assert make.calls == len(held) == 2

    @pytest.mark.parametrize(
        "change",
        [lambda x: x.add_(1), lambda x: x[0].fill_(3), lambda x: x.view(-1).zero_(), lambda x: x.detach().neg_()],
    )
    def test_a_change_in_place_voids_the_entry(self, change):
        kept, make, x = KeptOnce(), Maker(), torch.ones(3)
        held = [kept.get_or_make(x, key, make) for key in "ab"]
        with torch.no_grad():
            change(x)
        held += [kept.get_or_make(x, key, make) for key in "abab"]
        assert [float(payload[0][0]) for payload in held] == [1.0, 2.0, 3.0, 4.0, 3.0, 4.0]

    def test_nothing_is_held(self):
        """An entry lasts as long as what it refers to, and no longer than its tensor."""
        kept, make, x = KeptOnce(), Maker(), torch.ones(3)
        payload = kept.get_or_make(x, "key", make)
        alive = weakref.ref(payload[0])
        del payload
        gc.collect()
        assert alive() is None
        payload = kept.get_or_make(x, "key", make)
        assert make.calls == 2
        tensor = weakref.ref(x)
        del x
        gc.collect()
        assert tensor() is None and len(kept._entries) == 0 and float(payload[0][0]) == 2.0

    def test_what_is_gone_in_part_is_made_anew(self):
        kept, x = KeptOnce(), torch.ones(3)
        first = kept.get_or_make(x, "key", lambda: [torch.zeros(1), torch.zeros(2)])
        del first[0]
        gc.collect()
        second = kept.get_or_make(x, "key", lambda: [torch.ones(1), torch.ones(2)])
        assert [float(tensor.sum()) for tensor in second] == [1.0, 2.0]

    def test_the_list_is_the_callers_own(self):
        kept, make, x = KeptOnce(), Maker(), torch.ones(3)
        (payload,) = first = kept.get_or_make(x, "key", make)
        first.clear()
        assert kept.get_or_make(x, "key", make)[0] is payload and make.calls == 1

    def test_what_fails_is_not_remembered(self):
        kept, x = KeptOnce(), torch.ones(3)

        def fail() -> list[Tensor]:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            kept.get_or_make(x, "key", fail)
        make = Maker()
        kept.get_or_make(x, "key", make)
        assert make.calls == 1


def weights(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(5 + number, CHANNELS) for number in range(count)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, CHANNELS, generator=generator, dtype=torch.float64).add(0.5).to(dtype)


class TestSharedSketch:
    def kept_bytes(self, x: Tensor, configs: list[RMMConfig], shared: KeptOnce | None) -> int:
        layers = weights(len(configs), x.dtype)
        with saved_tensors() as saved:
            outs = [
                rmm_linear(x, weight, config=config, shared=shared)
                for weight, config in zip(layers, configs, strict=True)
            ]
        assert all(torch.equal(out, F.linear(x, weight)) for out, weight in zip(outs, layers, strict=True))
        return sum(kept_storages(saved, besides=[x, *layers]).values())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_one_sketch_serves_all_layers_at_one_rate(self, dtype):
        x, size = features(dtype), CONFIG.saved_bytes(ROWS, CHANNELS, dtype)
        assert self.kept_bytes(x, 3 * [CONFIG], KeptOnce()) == size
        assert self.kept_bytes(x, 3 * [CONFIG], None) == 3 * size

    def test_equal_configs_are_one(self):
        configs = [RMMConfig(rate=0.25), RMMConfig(rate=0.25), RMMConfig(rate=0.25, act_codec="int8")]
        assert self.kept_bytes(features(), configs, KeptOnce()) == CONFIG.saved_bytes(ROWS, CHANNELS, torch.float64)

    @pytest.mark.parametrize(
        "other",
        [RMMConfig(rate=0.5), RMMConfig(rate=0.25, codec="int8"), RMMConfig(rate=0.25, sketch="gaussian")],
        ids=["rate", "codec", "family"],
    )
    def test_another_config_has_its_own(self, other):
        sizes = [config.saved_bytes(ROWS, CHANNELS, torch.float64) for config in (CONFIG, other)]
        assert self.kept_bytes(features(), [CONFIG, other, CONFIG, other], KeptOnce()) == sum(sizes)

    def test_another_tensor_has_its_own(self):
        shared, x = KeptOnce(), features()
        size = CONFIG.saved_bytes(ROWS, CHANNELS, torch.float64)
        tensors = [x, x.clone()]
        assert sum(self.kept_bytes(tensor, [CONFIG], shared) for tensor in tensors) == 2 * size

    def test_gradients_are_those_of_the_shared_sketch(self):
        """Each layer's estimate is the one that it would make itself from the first one's seed; the rest is exact."""
        x, bias = features().requires_grad_(), torch.zeros(5, dtype=torch.float64, requires_grad=True)
        first, second = weights(2)
        shared = KeptOnce()
        total = rmm_linear(x, first, bias, config=CONFIG, seed=7, shared=shared).square().sum()
        total = total + rmm_linear(x, second, config=CONFIG, seed=8, shared=shared).square().sum()
        leaves = x, first, bias, second
        ours = torch.autograd.grad(total, leaves)
        total = rmm_linear(x, first, bias, config=CONFIG, seed=7).square().sum()
        total = total + rmm_linear(x, second, config=CONFIG, seed=7).square().sum()
        torch.testing.assert_close(ours, torch.autograd.grad(total, leaves))
        total = F.linear(x, first, bias).square().sum() + F.linear(x, second).square().sum()
        exact = torch.autograd.grad(total, leaves)
        torch.testing.assert_close((ours[0], ours[2]), (exact[0], exact[2]))

    def test_each_estimate_is_unbiased(self):
        config = RMMConfig(rate=0.5)
        x, (first, second) = features(), weights(2)
        exact = torch.autograd.grad(F.linear(x, second).square().sum(), second)[0]

        def draw() -> Tensor:
            shared = KeptOnce()
            rmm_linear(x, first, config=config, shared=shared)
            return torch.autograd.grad(rmm_linear(x, second, config=config, shared=shared).square().sum(), second)[0]

        assert_unbiased(draw, exact, draws=600)

    def test_every_memory_draws_afresh(self):
        x, (weight,) = features(), weights(1)
        grads = [
            torch.autograd.grad(rmm_linear(x, weight, config=CONFIG, shared=KeptOnce()).square().sum(), weight)[0]
            for _ in range(2)
        ]
        assert not torch.equal(*grads)

    def test_a_change_in_place_makes_a_fresh_sketch(self):
        """And leaves the gradient of the layer that came before it right."""
        x, (first, second), shared = features(), weights(2), KeptOnce()
        whole = RMMConfig(rate=1.0, sketch="row_sampling")
        early = rmm_linear(x, first, config=whole, shared=shared)
        exact = torch.autograd.grad(F.linear(x.clone(), first).sum(), first)
        x.mul_(-3).add_(1)
        late = rmm_linear(x, second, config=whole, shared=shared)
        torch.testing.assert_close(torch.autograd.grad(early.sum(), first), exact)
        torch.testing.assert_close(
            torch.autograd.grad(late.sum(), second), torch.autograd.grad(F.linear(x, second).sum(), second)
        )

    def test_leading_dimensions(self):
        x, (first, second) = features().view(5, 8, CHANNELS), weights(2)
        shared, whole = KeptOnce(), RMMConfig(rate=1.0, sketch="row_sampling")
        for weight in (first, second):
            out = rmm_linear(x, weight, config=whole, shared=shared)
            expected = F.linear(x, weight)
            assert torch.equal(out, expected)
            grads = (torch.autograd.grad(result.square().sum(), weight) for result in (out, expected))
            torch.testing.assert_close(*grads)

    def test_autocast_shares_by_the_tensor_that_was_given(self):
        """Not by the converted copy, of which every call has its own."""
        x, layers = features(torch.float32), weights(2, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
            shared = KeptOnce()
            for weight in layers:
                rmm_linear(x, weight, config=CONFIG, shared=shared)
        assert sum(kept_storages(saved, besides=layers).values()) == CONFIG.saved_bytes(ROWS, CHANNELS, torch.bfloat16)

    def test_a_frozen_layer_makes_nothing_for_the_others(self):
        x, (first, second), shared = features(), weights(2), KeptOnce()
        rmm_linear(x, first.detach(), config=CONFIG, shared=shared)
        with torch.no_grad():
            rmm_linear(x, first, config=CONFIG, shared=shared)
        with saved_tensors() as saved:
            rmm_linear(x, second, config=CONFIG, shared=shared)
        assert sum(kept_storages(saved, besides=[second]).values()) == CONFIG.saved_bytes(ROWS, CHANNELS, torch.float64)


class TestSharedInputLinear:
    @pytest.mark.parametrize("codec", ["int2", "int8", "int4:group_size=4"])
    @pytest.mark.parametrize("shape", [(ROWS, CHANNELS), (5, 8, CHANNELS)], ids=str)
    def test_all_but_the_weight_gradient_is_exact(self, codec, shape):
        x, (weight,) = features().view(shape).requires_grad_(), weights(1)
        out, expected = shared_input_linear(x, weight, codec=codec), F.linear(x, weight)
        assert torch.equal(out, expected)
        grads = (torch.autograd.grad(result.square().sum(), x)[0] for result in (out, expected))
        torch.testing.assert_close(*grads)

    @pytest.mark.parametrize("codec", ["fp32", "int4"])
    def test_a_scale_is_a_factor_and_no_scaled_weight_is_kept(self, codec):
        x, (weight,) = features().requires_grad_(), weights(1)
        with saved_tensors() as saved:
            out = shared_input_linear(x, weight.t().t(), scale=0.3, codec=codec, seed=5)
        plain = shared_input_linear(x, weight, codec=codec, seed=5)
        torch.testing.assert_close(out, 0.3 * plain)
        grad_output = torch.randn(out.shape, dtype=torch.float64)
        for found, expected in zip(
            torch.autograd.grad(out, (x, weight), grad_output),
            torch.autograd.grad(plain, (x, weight), 0.3 * grad_output),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)
        kept = kept_storages(saved, besides=[weight, x])
        assert sum(kept.values()) == (0 if codec == "fp32" else get_codec(codec).num_bytes(ROWS, CHANNELS, x.dtype))

    def test_the_weight_gradient_is_that_of_the_code(self):
        x, (weight,) = features(), weights(1)
        codec, seed = get_codec("int4"), torch.tensor(5)
        coded = codec.decode(codec.encode_matrix(x, seed), 0, ROWS, CHANNELS, torch.float64)
        out = shared_input_linear(x, weight, codec="int4", seed=5)
        grad_output = torch.randn(out.shape, dtype=torch.float64)
        torch.testing.assert_close(torch.autograd.grad(out, weight, grad_output)[0], grad_output.T @ coded)

    @pytest.mark.parametrize("codec", ["int2", "int8"])
    def test_the_weight_gradient_is_unbiased(self, codec):
        x, (weight,) = features(), weights(1)
        exact = torch.autograd.grad(F.linear(x, weight).square().sum(), weight)[0]

        def draw() -> Tensor:
            return torch.autograd.grad(shared_input_linear(x, weight, codec=codec).square().sum(), weight)[0]

        assert_unbiased(draw, exact, draws=300)

    @pytest.mark.parametrize("codec", ["bf16", "fp16"])
    def test_cast_codecs(self, codec):
        x, (weight,) = features(torch.float32), weights(1, torch.float32)
        with saved_tensors() as saved:
            out = shared_input_linear(x, weight, codec=codec)
        assert sum(kept_storages(saved, besides=[weight]).values()) == 2 * x.numel()
        exact = torch.autograd.grad(F.linear(x, weight).sum(), weight)[0]
        torch.testing.assert_close(torch.autograd.grad(out.sum(), weight)[0], exact, rtol=1e-2, atol=1e-2)

    def test_every_call_draws_whether_or_not_there_is_a_code(self):
        x, (first, second) = features(), weights(2)
        for weight, enabled in ((first, True), (second, True), (second, False)):
            state = torch.get_rng_state()
            with torch.set_grad_enabled(enabled):
                shared_input_linear(x, weight, codec="int8")
            assert not torch.equal(torch.get_rng_state(), state)

    def test_no_code_outlives_its_tensor(self):
        """Neither the memory of a tensor that is gone, nor, as its address is taken over, that of another one."""
        (weight,) = weights(1)
        before = len(shared_input_module._SHARED_CODES._entries)
        for number in range(3):
            x = features() + number
            out = shared_input_linear(x, weight, codec="int8")
            gradient = torch.autograd.grad(out.sum(), weight)[0]
            torch.testing.assert_close(gradient[0], x.sum(0), rtol=0.05, atol=0.5)
        del x, out
        gc.collect()
        assert len(shared_input_module._SHARED_CODES._entries) == before

    def test_a_seed_makes_a_code_of_its_own(self):
        x, layers = features(), weights(3)
        with saved_tensors() as saved:
            for weight, seed in zip(layers, (None, 3, None), strict=True):
                shared_input_linear(x, weight, codec="int8", seed=seed)
        codes = {tensor.data_ptr() for tensor in saved if tensor.dtype == torch.uint8}
        assert len(codes) == 2

    def test_an_input_from_inference_mode(self):
        (weight,) = weights(1)
        with torch.inference_mode():
            x = features()
        out = shared_input_linear(x, weight, codec="int8")
        exact = torch.autograd.grad(F.linear(features(), weight).sum(), weight)[0]
        torch.testing.assert_close(torch.autograd.grad(out.sum(), weight)[0], exact, rtol=0.05, atol=0.5)

    def test_double_backward_raises(self):
        x, (weight,) = features(), weights(1)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(shared_input_linear(x, weight, codec="int8").square().sum(), weight, create_graph=True)

    @pytest.mark.parametrize("codec", ["fp32", "int8"])
    def test_types_that_torch_refuses(self, codec):
        x, (weight,) = features(torch.float64), weights(1, torch.float32)
        with pytest.raises((RuntimeError, TypeError)):
            shared_input_linear(x, weight, codec=codec)

    def test_an_unknown_codec_raises(self):
        with pytest.raises(ValueError, match="'codec' must be a known name"):
            shared_input_linear(features(), weights(1)[0], codec="int3")


def ring() -> Tensor:
    nodes = torch.arange(ROWS)
    return torch.stack([nodes, (nodes + 1) % ROWS])


class Stack(torch.nn.Module):
    """Several layers of GCNII* on one x_0."""

    def __init__(self, kind: type, depth: int = 3, **arguments) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(
            kind(CHANNELS, 0.4, theta=0.5, layer=number + 1, shared_weights=False, **arguments)
            for number in range(depth)
        )

    def forward(self, x_0: Tensor, *, between=lambda x_0: None) -> Tensor:
        x = x_0.clone()
        for number, conv in enumerate(self.convs):
            if number:
                between(x_0)
            x = conv(x, x_0, ring())
        return x


def stacks(x0_codec: str, dtype: torch.dtype = torch.float64, depth: int = 3) -> tuple[Stack, Stack]:
    torch.manual_seed(0)
    reference = Stack(GCN2Conv, depth).to(dtype)
    # With row sampling at the whole rate nothing but x_0 is estimated.
    config = RMMConfig(rate=1.0, sketch="row_sampling", x0_codec=x0_codec)
    ours = Stack(RMMGCN2Conv, depth, config=config).to(dtype)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


class TestSharedX0:
    @pytest.mark.parametrize("codec", ["int8", "int2", "bf16"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_code_serves_all_layers(self, codec, dtype):
        """What layers 2, 3, ... keep is no more than with layers of one weight, but for a matrix of weights each."""
        sizes, codes = [], get_codec(codec).num_bytes(ROWS, CHANNELS, dtype)
        for depth in (1, 2, 4):
            model, _ = stacks(codec, dtype, depth)
            x_0 = features(dtype).requires_grad_()
            with saved_tensors() as saved:
                model(x_0)
            kept = kept_storages(saved, besides=[])
            assert x_0.untyped_storage().data_ptr() not in kept
            sizes.append(sum(kept.values()))
        one_layer = (sizes[2] - sizes[1]) / 2
        assert one_layer == sizes[1] - sizes[0]  # the code is in the first term alone
        assert sizes[0] == one_layer + codes

    def test_the_code_is_kept_once(self):
        """By storage: of all that is saved, the code's two tensors, and every layer refers to them."""
        model, _ = stacks("int8", torch.float32, 3)
        x_0 = features(torch.float32)
        with saved_tensors() as saved:
            model(x_0)
        codes = [tensor for tensor in saved if tensor.dtype == torch.uint8]
        assert len(codes) == 3 and len({tensor.data_ptr() for tensor in codes}) == 1
        assert codes[0].untyped_storage().nbytes() == ROWS * CHANNELS
        (entry,) = shared_input_module._SHARED_CODES._entries[x_0].values()
        assert entry[1][0]().data_ptr() == codes[0].data_ptr()

    def test_with_fp32_x_0_itself_is_kept(self):
        model, _ = stacks("fp32", torch.float32, 3)
        x_0 = features(torch.float32)
        with saved_tensors() as saved:
            model(x_0)
        assert sum(tensor.data_ptr() == x_0.data_ptr() for tensor in saved) == 3
        assert x_0 not in shared_input_module._SHARED_CODES._entries

    @pytest.mark.parametrize("codec", ["fp32", "int8", "int2"])
    def test_output_and_other_gradients_are_pygs(self, codec):
        ours, reference = stacks(codec)
        results = []
        for model in (ours, reference):
            x_0 = features().requires_grad_()
            out = model(x_0)
            leaves = [x_0, *(conv.weight1 for conv in model.convs)]
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
        torch.testing.assert_close(*results)

    def test_the_gradient_of_weight2_is_unbiased(self):
        ours, reference = stacks("int2")
        grads = torch.autograd.grad(reference(features()).square().sum(), [conv.weight2 for conv in reference.convs])
        exact = torch.cat([grad.flatten() for grad in grads])

        def draw() -> Tensor:
            out = ours(features()).square().sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(out, [conv.weight2 for conv in ours.convs])])

        assert_unbiased(draw, exact, draws=250)

    def test_every_step_rounds_afresh_where_x_0_is_computed_afresh(self):
        model, _ = stacks("int2")
        grads = [torch.autograd.grad(model(features()).square().sum(), model.convs[0].weight2)[0] for _ in range(2)]
        assert not torch.equal(*grads)

    def test_a_change_of_x_0_between_layers_makes_a_fresh_code(self):
        model, reference = stacks("int8:scale=fp32")
        results, codes = [], []

        def change(x_0: Tensor) -> None:
            codes.extend(entry[1][0]() for entry in shared_input_module._SHARED_CODES._entries.get(x_0, {}).values())
            with torch.no_grad():
                x_0.mul_(-2).add_(0.3)

        for stack in (model, reference):
            x_0 = features()
            out = stack(x_0, between=change)
            results.append((out.detach(), torch.autograd.grad(out.square().sum(), [c.weight2 for c in stack.convs])))
        torch.testing.assert_close(results[0][0], results[1][0])
        for mine, exact in zip(results[0][1], results[1][1], strict=True):  # a stale code would be far off
            assert (mine - exact).norm() < 0.02 * exact.norm()
        assert len(codes) == 2 and codes[0].data_ptr() != codes[1].data_ptr()

    def test_a_changed_x_0_raises_where_it_is_kept_itself(self):
        model, _ = stacks("fp32")
        x_0 = features()
        out = model(x_0)
        x_0.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()

    def test_a_changed_x_0_leaves_the_gradients_of_a_code_alone(self):
        model, _ = stacks("int8")
        gradients = []
        for spoil in (False, True):
            torch.manual_seed(3)
            x_0 = features()
            out = model(x_0)
            if spoil:
                x_0.fill_(torch.nan)
            gradients.append(torch.autograd.grad(out.sum(), list(model.parameters())))
        torch.testing.assert_close(*gradients, rtol=0, atol=0)

    @pytest.mark.parametrize("gone", ["x_0", "graph"])
    def test_the_code_dies_with_the_graph_and_the_entry_with_x_0(self, gone):
        model, _ = stacks("int8")
        x_0 = features()
        out = model(x_0)
        gc.collect()
        before = len(shared_input_module._SHARED_CODES._entries)
        ((_, (code, scales)),) = shared_input_module._SHARED_CODES._entries[x_0].values()
        if gone == "x_0":
            del x_0
            gc.collect()
            assert len(shared_input_module._SHARED_CODES._entries) == before - 1
            assert code() is not None  # backward needs it
        out.sum().backward()
        del out
        gc.collect()
        assert code() is None and scales() is None

    def test_the_same_x_0_is_rounded_afresh_in_every_step(self):
        """Else the noise of one step would be a persistent error where x_0 is the data itself."""
        model, reference = stacks("int2")
        x_0 = features()
        grads = [torch.autograd.grad(model(x_0).square().sum(), model.convs[0].weight2)[0] for _ in range(3)]
        assert not torch.equal(grads[0], grads[1]) and not torch.equal(grads[1], grads[2])
        exact = torch.autograd.grad(reference(x_0).square().sum(), reference.convs[0].weight2)[0]
        assert_unbiased(
            lambda: torch.autograd.grad(model(x_0).square().sum(), model.convs[0].weight2)[0], exact, draws=60
        )

    def test_a_graph_that_is_held_does_not_hold_the_rounding(self):
        """Once backward has read a code, the next step makes another, though the graph lives on."""
        model, _ = stacks("int2")
        x_0, graphs, grads = features(), [], []
        for _ in range(3):
            graphs.append(model(x_0).square().sum())
            grads.append(torch.autograd.grad(graphs[-1], model.convs[0].weight2, retain_graph=True)[0])
        assert not torch.equal(grads[0], grads[1]) and not torch.equal(grads[1], grads[2])
        again = [torch.autograd.grad(graph, model.convs[0].weight2)[0] for graph in graphs]
        assert all(torch.equal(*pair) for pair in zip(grads, again, strict=True))

    @pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
    @pytest.mark.parametrize("each", [True, False], ids=["every layer", "all of them"])
    def test_checkpointing(self, use_reentrant, each):
        """Layers share a code in one pass and may not in the other: the gradients are right all the same."""
        ours, reference = stacks("int8:scale=fp32")
        results = []
        for model in (ours, reference):
            x_0 = features().requires_grad_()
            if each:
                out = 1 * x_0
                for conv in model.convs:
                    out = checkpoint(conv, out, x_0, ring(), use_reentrant=use_reentrant)
            else:
                out = checkpoint(model, x_0, use_reentrant=use_reentrant)
            out.square().sum().backward()
            results.append([x_0.grad, *(conv.weight1.grad for conv in model.convs)])
            results.append([conv.weight2.grad for conv in model.convs])
        torch.testing.assert_close(results[0], results[2])
        for mine, exact in zip(results[1], results[3], strict=True):
            assert (mine - exact).norm() < 0.01 * exact.norm()

    def test_autocast(self):
        model, reference = stacks("int8", torch.float32)
        results = []
        for stack in (model, reference):
            x_0 = features(torch.float32)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = stack(x_0)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), list(stack.parameters()))])
        for mine, theirs in zip(*results, strict=True):
            assert (mine.float() - theirs.float()).norm() < 0.05 * theirs.float().norm()

    def test_eval_keeps_no_code(self):
        model, reference = stacks("int8")
        x_0, state = features(), torch.get_rng_state()
        assert torch.equal(model.eval()(x_0), reference.eval()(x_0))
        assert x_0 not in shared_input_module._SHARED_CODES._entries and torch.equal(torch.get_rng_state(), state)

    def test_the_config_says_so(self):
        assert "x0_codec='int8'" in repr(RMMGCN2Conv(8, 0.1, config=RMMConfig(x0_codec="int8")))
