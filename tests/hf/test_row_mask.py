"""With ``row_mask``, layers that read one row for each token sketch no padding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleDict

pytest.importorskip("transformers")

from rmm_gnn import RMMConfig, memory_report, revert_rmm
from rmm_gnn.diagnostics import check_row_masks
from rmm_gnn.hf import RMMArguments, apply_rmm
from rmm_gnn.nn import RMMTorchLinear
from tests.hf.models import BATCH, FAMILIES, HIDDEN, LENGTH, batch, build, checkpointed, gradients
from tests.nn.recording import assert_unbiased

CONFIG = RMMConfig(rate=0.25)
ROWS = BATCH * LENGTH
SHORT = [LENGTH, 3, 7, 2]
TOKENS = sum(SHORT)
# In each a loss that does not read padding, and layers that read one row for each token.
MASKED = ["bert", "bert-mlm", "roberta", "distilbert", "albert", "deberta", "deberta-v2", "gpt2", "llama"]


def padded(name: str) -> dict[str, Tensor]:
    """Sequences of several lengths; padding is not among the labels."""
    inputs = batch(name)
    mask = (torch.arange(LENGTH) < torch.tensor(SHORT).unsqueeze(1)).long()
    inputs["attention_mask"] = mask
    inputs["input_ids"] = inputs["input_ids"] * mask
    if FAMILIES[name].generates:
        inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
    return inputs


def kept_by_linear(model: Module, inputs: dict[str, Tensor]) -> int:
    report = memory_report(model, **inputs, loss_fn=lambda out: out.loss)
    return sum(entry.saved_bytes for entry in report.entries if entry.operator.startswith("rmm_gnn.linear"))


def size(*shapes: tuple[int, int]) -> int:
    return sum(CONFIG.saved_bytes(*shape) for shape in shapes)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("bert", [(BATCH, HIDDEN), (BATCH, HIDDEN)]),
        ("llama", [(TOKENS, HIDDEN)]),
        ("distilbert", [(BATCH, HIDDEN), (BATCH, HIDDEN)]),
    ],
)
def test_sketches_are_those_of_the_tokens(name, rest):
    model = apply_rmm(build(name), CONFIG, row_mask=True)
    blocks = [(TOKENS, HIDDEN), (TOKENS, HIDDEN), (TOKENS, 64)] * 2
    assert kept_by_linear(model, padded(name)) == size(*blocks, *rest) + ROWS  # the mask, a byte a row, once


@pytest.mark.parametrize("name", MASKED)
def test_padding_has_no_gradient_and_at_rate_1_all_gradients_are_exact(name):
    """The rule that the mask needs, checked in every layer of every model, and the gradients it leads to."""
    model = apply_rmm(build(name), {"rate": 1.0, "sketch": "row_sampling"}, row_mask=True)
    expected = gradients(build(name), padded(name))
    with check_row_masks():
        found = gradients(model, padded(name))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_estimates_are_unbiased(name):
    model, inputs = apply_rmm(build(name), {"rate": 0.7}, exclude="output-head", row_mask=True), padded(name)
    inputs.pop("labels")
    weights = [f"{name}.weight" for name, module in model.named_modules() if hasattr(type(module), "row_masks")]
    weights = [weight for weight in weights if model.get_submodule(weight.rsplit(".", 1)[0]).row_masks is not None]
    marks = inputs["attention_mask"].unsqueeze(-1)

    def draw(model=model) -> Tensor:
        out = model(**inputs).logits
        out = (out * marks).sum() if out.dim() == 3 else out.sum()
        found = torch.autograd.grad(out, [model.get_parameter(weight) for weight in weights])
        return torch.cat([gradient.flatten() for gradient in found])

    assert_unbiased(draw, draw(build(name)), draws=100)


def test_a_loss_that_reads_padding_is_found():
    model, inputs = apply_rmm(build("llama"), CONFIG, row_mask=True), padded("llama")
    inputs["labels"] = inputs["input_ids"]
    with check_row_masks(), pytest.raises(RuntimeError, match="'row_mask' must mark every row whose output has a grad"):
        gradients(model, inputs)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_recomputed_blocks_find_the_same_mask(name, use_reentrant):
    results = []
    for again in (False, True):
        model = apply_rmm(build(name), CONFIG, row_mask=True)
        if again:
            checkpointed(model, use_reentrant)
        torch.manual_seed(4)
        results.append(gradients(model, padded(name)))
    assert all(torch.equal(results[0][parameter], results[1][parameter]) for parameter in results[0])


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_two_passes_before_a_recomputation_go_with_one_mask_alone(use_reentrant):
    """The layers of a recomputed block cannot tell which pass it is of."""
    model = checkpointed(
        apply_rmm(build("bert"), {"rate": 1.0, "sketch": "row_sampling"}, row_mask=True), use_reentrant
    )
    first, second = padded("bert"), {**padded("bert"), "input_ids": batch("bert", seed=2)["input_ids"]}
    expected, plain = None, build("bert")
    for one in (plain, model):
        one.zero_grad()
        (one(**first).loss + one(**second).loss).backward()
        found = {name: parameter.grad for name, parameter in one.named_parameters()}
        expected = expected or found
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5)
    for _ in range(2):  # a step with one pass after another is right after the error, too
        gradients(model, first)
        gradients(model, batch("bert"))
        loss = model(**first).loss + model(**batch("bert")).loss
        with pytest.raises(RuntimeError, match="row_mask needs one backward pass after each forward pass"):
            loss.backward()


VARIANTS = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
EARLIER = pytest.raises(RuntimeError, match="row_mask needs one backward pass after each forward pass")


class TestPassesUnderCheckpointing:
    """Masks A and B differ, and mark as many rows, so that no number of rows gives the difference away."""

    @pytest.fixture(params=["bert", "llama"])
    def name(self, request) -> str:
        return request.param

    def build(self, name: str, use_reentrant: bool) -> tuple[Module, dict[str, dict[str, Tensor]]]:
        model = apply_rmm(build(name), {"rate": 1.0, "sketch": "row_sampling"}, row_mask=True)
        first = padded(name)
        second = {key: value.flip(0) for key, value in first.items()}
        return checkpointed(model, use_reentrant), {"A": first, "B": second}

    @VARIANTS
    @pytest.mark.parametrize("order", ["AB", "ABA", "AAB", "ABB", "ABBB"])
    def test_a_sum_over_different_masks_raises_wherever_they_stand(self, name, order, use_reentrant):
        model, inputs = self.build(name, use_reentrant)
        loss = sum(model(**inputs[one]).loss for one in order)
        with EARLIER:
            loss.backward()

    @VARIANTS
    def test_a_pass_that_waits_behind_a_later_one_raises(self, name, use_reentrant):
        model, inputs = self.build(name, use_reentrant)
        first, _second = model(**inputs["A"]).loss, model(**inputs["B"]).loss
        with EARLIER:
            first.backward()
        first, again = model(**inputs["A"]).loss, model(**inputs["A"]).loss
        first.backward()
        third = model(**inputs["B"]).loss
        with EARLIER:
            again.backward()
        third.backward()

    @VARIANTS
    def test_a_second_backward_through_a_retained_graph_raises_after_another_pass(self, name, use_reentrant):
        model, inputs = self.build(name, use_reentrant)
        first = model(**inputs["A"]).loss
        first.backward(retain_graph=True)
        model(**inputs["B"]).loss.backward()
        with EARLIER:
            first.backward()

    def test_a_loss_of_what_is_no_output_raises(self, name):
        model, inputs = self.build(name, False)
        taken = []
        block = model.bert.encoder.layer[1] if name == "bert" else model.model.layers[1]
        block.register_forward_hook(lambda module, args, out: taken.append(out if isinstance(out, Tensor) else out[0]))
        for one in "ABB":
            model(**inputs[one])
        with EARLIER:
            sum(out.square().sum() for out in taken).backward()

    @VARIANTS
    def test_a_pass_whose_loss_is_thrown_away_does_not(self, name, use_reentrant):
        model, inputs = self.build(name, use_reentrant)
        for one in "ABAAB":
            out = model(**inputs[one])
        expected = gradients(build(name), inputs["B"])
        out.loss.backward()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(parameter).grad, gradient, rtol=1e-3, atol=1e-5)

    @VARIANTS
    def test_losses_that_are_kept_after_their_backward_do_not(self, name, use_reentrant):
        model, inputs = self.build(name, use_reentrant)
        kept = []
        for one in "ABBA":
            expected = gradients(build(name), inputs[one])
            model.zero_grad()
            kept.append(model(**inputs[one]).loss)
            kept[-1].backward()
            for parameter, gradient in expected.items():
                torch.testing.assert_close(model.get_parameter(parameter).grad, gradient, rtol=1e-3, atol=1e-5)


def test_of_an_encoder_with_a_decoder_the_encoders_layers_sketch_tokens():
    """The decoder reads as many rows as the encoder here, and others of them are padding."""
    model, inputs = apply_rmm(build("t5"), {"rate": 1.0, "sketch": "row_sampling"}, row_mask=True), padded("t5")
    inputs["labels"] = batch("t5")["labels"]  # nothing of the decoder's input is padding
    masked = {name for name, module in model.named_modules() if getattr(module, "row_masks", None) is not None}
    assert len(masked) == 14 and all(name.startswith("encoder.") for name in masked)
    expected = gradients(build("t5"), inputs)
    with check_row_masks():
        found = gradients(model, inputs)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5)


class Pooled(Module):
    """A model of other origin that takes a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(8, 8)
        self.training_masks: list[Tensor | None] = []

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        rows = getattr(self.layer, "row_masks", None)
        self.training_masks.append(None if rows is None else rows.of(x))
        out = scale * self.layer(x)
        return out if attention_mask is None else out * attention_mask.unsqueeze(-1)


class Plain(Module):
    """Reads padding, and shows by its gradient whether its layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(8, 8)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.layer(x)


class TestHook:
    x, mask = torch.randn(4, 12, 8), torch.arange(12) < torch.tensor(SHORT).unsqueeze(1)

    def masks(self, model: Pooled, *calls) -> list[Tensor | None]:
        model.training_masks.clear()
        for args, kwargs in calls:
            model(*args, **kwargs)
        return list(model.training_masks)

    @pytest.fixture
    def model(self) -> Pooled:
        return apply_rmm(Pooled(), CONFIG, row_mask=True)

    def test_it_takes_the_mask_by_keyword_and_by_position(self, model):
        calls = [((self.x,), {"attention_mask": self.mask.long()}), ((self.x, self.mask.float(), 2.0), {})]
        assert all(torch.equal(found, self.mask) for found in self.masks(model, *calls))

    def test_every_pass_has_its_own(self, model):
        seen = self.masks(model, ((self.x, self.mask), {}), ((self.x,), {}), ((self.x, ~self.mask), {}))
        assert torch.equal(seen[0], self.mask) and seen[1] is None and torch.equal(seen[2], ~self.mask)

    def test_other_masks_and_shapes_are_passed_over(self, model):
        wide = torch.ones(4, 1, 12, 12)
        assert model.layer.row_masks.of(self.x) is None
        model._forward_pre_hooks[next(iter(model._forward_pre_hooks))](model, (), {"attention_mask": wide})
        assert model.layer.row_masks.mask is None
        model(self.x, self.mask)
        assert model.layer.row_masks.of(self.x[:, :5]) is None and model.layer.row_masks.of(self.x[0]) is None

    def test_shapes_that_others_could_have_by_chance_are_passed_over(self, model):
        one, square = torch.ones(1, 12), torch.ones(12, 12)
        calls = [((self.x[:1], one), {}), ((torch.randn(12, 12, 8), square), {})]
        assert self.masks(model, *calls) == [None, None]

    def test_passes_that_keep_nothing_leave_it_alone(self, model):
        """A block of the pass before may still wait for its recomputation."""
        model(self.x, self.mask)
        with torch.no_grad():
            model(self.x, ~self.mask)
        model.eval()
        model(self.x, ~self.mask)
        assert torch.equal(model.layer.row_masks.mask, self.mask)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
    def test_a_copy_has_masks_of_its_own(self, model, way):
        model(self.x, self.mask)
        other = way(model)
        assert other.layer.row_masks is not model.layer.row_masks and other.layer.row_masks.mask is None
        assert [hook.__self__ for hook in other._forward_hooks.values()] == [other.layer.row_masks]
        other(self.x, ~self.mask)
        assert torch.equal(other.layer.row_masks.mask, ~self.mask)
        assert torch.equal(model.layer.row_masks.mask, self.mask)

    def test_revert_takes_it_off(self, model):
        plain = Pooled()
        revert_rmm(model)
        assert set(vars(model.layer)) == set(vars(plain.layer)) and not model._forward_pre_hooks
        assert not model._forward_pre_hooks_with_kwargs and not model._forward_hooks

    def test_applying_again_keeps_one_hook_or_none(self, model):
        apply_rmm(model, CONFIG, row_mask=True)
        assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1
        apply_rmm(model, CONFIG)
        assert not model._forward_pre_hooks and not model._forward_hooks and "row_masks" not in vars(model.layer)

    def test_it_stays_while_a_layer_uses_it(self):
        model = apply_rmm(build("bert"), CONFIG, row_mask=True)
        apply_rmm(model, CONFIG, ["query"])
        assert len(model._forward_pre_hooks) == 1
        assert model.bert.encoder.layer[0].attention.self.query.row_masks is None
        assert model.bert.encoder.layer[0].attention.self.key.row_masks is not None

    def test_replicas_in_threads_have_none(self, model):
        replica = model._replicate_for_data_parallel()
        replica._modules["layer"] = model.layer
        assert self.masks(replica, ((self.x, self.mask), {})) == [None]

    @pytest.mark.parametrize("fullgraph", [True, False])
    def test_compiled(self, fullgraph):
        """Traced, too, every pass has its own mask; with gradients in padding, which only marked rows are to show."""
        model = apply_rmm(Plain(), {"rate": 1.0, "sketch": "row_sampling"}, row_mask=True)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        for mask in (self.mask, ~self.mask):
            grad = torch.autograd.grad(compiled(self.x, attention_mask=mask.long()).sum(), model.layer.weight)[0]
            torch.testing.assert_close(grad, self.x[mask].sum(0).expand(8, 8), rtol=1e-4, atol=1e-4)


def test_lora_sketches_tokens():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("bert"), peft.LoraConfig(r=4, target_modules=["query"]))
    apply_rmm(model, CONFIG, row_mask=True)
    expected = [(TOKENS, HIDDEN), (TOKENS, 4)] * 2
    assert kept_by_linear(model, padded("bert")) == size(*expected) + ROWS


def test_the_command_line_has_it():
    model = RMMArguments(rmm_config='{"rate": 0.25}', rmm_row_mask=True).apply(build("bert"))
    assert model.bert.pooler.dense.row_masks is not None


def test_a_model_without_attention_mask_raises_and_stays():
    model = ModuleDict({"layer": Linear(4, 4)})
    with pytest.raises(ValueError, match=r"'row_mask' must be False for a model that takes no 'attention_mask'"):
        apply_rmm(model, CONFIG, row_mask=True)
    assert type(model["layer"]) is not RMMTorchLinear
    with pytest.raises(TypeError, match="'row_mask' must be True or False"):
        apply_rmm(model, CONFIG, row_mask=torch.ones(3))


@pytest.mark.parametrize(
    "config",
    [{"sketch": "kronecker"}, {".*query": {"sketch": "kronecker"}, ".*": {"rate": 0.1}}],
    ids=["all", "pattern"],
)
def test_families_that_need_all_rows_raise_and_the_model_stays(config):
    model = build("bert")
    query = "bert.encoder.layer.0.attention.self.query"
    with pytest.raises(ValueError, match=rf"'row_mask' must come with families .* \(got 'kronecker' for '{query}'\)"):
        apply_rmm(model, config, row_mask=True)
    assert not any(isinstance(module, RMMTorchLinear) for module in model.modules()) and not model._forward_pre_hooks
    apply_rmm(model, config)


def test_such_a_family_may_sketch_what_is_not_masked():
    model = apply_rmm(build("t5"), {"encoder.*": CONFIG, ".*": {"sketch": "kronecker"}}, row_mask=True)
    assert gradients(model, padded("t5"))
