"""Which layers are meant, and what is said where none is, or one that cannot be converted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear, Module, ModuleDict, Sequential

pytest.importorskip("transformers")

from torch_geometric.nn import GCNConv

from rmm_gnn import RMMConfig
from rmm_gnn.hf import RMMConv1D, apply_rmm
from rmm_gnn.nn import LeanDropout, RMMLinear, RMMTorchLinear
from tests.hf.models import build

CONFIG = RMMConfig(rate=0.25)
BLOCK = "bert.encoder.layer.0"


def chosen(target_modules="all-linear", exclude=None, name: str = "bert", **settings) -> set[str]:
    model = apply_rmm(build(name), CONFIG, target_modules, exclude, **settings)
    return {name for name, module in model.named_modules() if type(module) in (RMMTorchLinear, RMMConv1D)}


class TestSelection:
    def test_a_list_matches_ends_of_names_as_peft_does(self):
        ends = {f"bert.encoder.layer.{i}.attention.self.{end}" for i in (0, 1) for end in ("query", "value")}
        assert chosen(["query", "value"]) == ends == chosen(("query", "value")) == chosen({"query", "value"})
        assert chosen(["self.query"]) == {name for name in ends if name.endswith("query")}
        assert chosen([f"{BLOCK}.output.dense"]) == {f"{BLOCK}.output.dense"}
        assert chosen(["c_attn"], name="gpt2") == {f"transformer.h.{i}.attn.c_attn" for i in (0, 1)}

    def test_ends_are_whole_parts_of_names(self):
        with pytest.raises(ValueError, match=r"must match a layer \(got 'uery'\)"):
            chosen(["uery"])

    def test_a_string_is_a_regular_expression_for_whole_names(self):
        assert chosen(r".*layer\.0\.attention\.self\.(query|value)") == {
            f"{BLOCK}.attention.self.query",
            f"{BLOCK}.attention.self.value",
        }

    def test_what_holds_layers_stands_for_them(self):
        expected = {f"{BLOCK}.attention.self.{end}" for end in ("query", "key", "value")}
        expected |= {f"{BLOCK}.attention.output.dense"}
        assert chosen([f"{BLOCK}.attention"]) == expected == chosen(r"bert\.encoder\.layer\.0\.attention")

    def test_exclude_takes_the_same_words(self):
        everything = chosen()
        assert chosen(exclude=["query"]) == {name for name in everything if not name.endswith("query")}
        assert chosen(exclude=r"bert\..*") == {"classifier"}
        assert chosen(exclude=["layer.0"]) == {name for name in everything if not name.startswith(BLOCK)}
        assert chosen(exclude=["output-head", "pooler"]) == everything - {"classifier", "bert.pooler.dense"}

    def test_no_names_exclude_nothing_and_all_linear_may_stand_in_a_list(self):
        assert chosen() == chosen(exclude=[]) == chosen(exclude=iter(())) == chosen(["all-linear"])
        assert chosen(["all-linear"], ["query"]) == chosen(exclude=["query"])
        with pytest.raises(TypeError, match=r"'target_modules' must be a string or a list of strings \(got \[\]\)"):
            chosen([])

    def test_exclude_is_stronger_than_target_modules(self):
        assert chosen(["query", "classifier"], "output-head") == chosen(["query"])

    def test_exclude_reaches_what_a_whole_block_has_besides(self):
        model = apply_rmm(build("bert"), CONFIG, exclude="output-head", whole_block=True)
        assert type(model.dropout) is torch.nn.Dropout
        assert type(model.bert.embeddings.dropout) is LeanDropout

    def test_a_model_of_other_origin(self):
        model = ModuleDict({"lin": Linear(4, 4), "conv": GCNConv(4, 4)})
        apply_rmm(model, CONFIG)
        assert type(model["lin"]) is RMMTorchLinear and type(model["conv"].lin) is RMMLinear
        assert type(apply_rmm(Linear(4, 4), CONFIG)) is RMMTorchLinear

    def test_applying_twice_is_applying_once_with_the_later_config(self):
        model = apply_rmm(apply_rmm(build("gpt2"), CONFIG, whole_block=True), {"rate": 0.5}, whole_block=True)
        assert {m.config.rate for m in model.modules() if isinstance(getattr(m, "config", None), RMMConfig)} == {0.5}


class TestConfigOfEachLayer:
    def test_clamps_work_for_each_layer(self):
        model = apply_rmm(
            build("bert"),
            {
                r".*attention\.self\..*": {"rate": 0.1, "min_size": 20, "max_size": 30},
                r".*\.output\.dense": {"rate": 0.9, "max_size": 25},
                "classifier": None,
                ".*": RMMConfig(rate=0.1),
            },
        )
        layer = model.bert.encoder.layer[1]
        assert type(model.classifier) is Linear
        for rows, attention, output, other in ((48, 20, 25, 5), (16, 16, 14, 2), (1000, 30, 25, 100)):
            assert layer.attention.self.key.config.sketch_size(rows) == attention
            assert layer.output.dense.config.sketch_size(rows) == output
            assert layer.intermediate.dense.config.sketch_size(rows) == other

    def test_layers_without_a_pattern_stay(self):
        model = apply_rmm(build("bert"), {r".*query": {"rate": 0.5}})
        assert type(model.classifier) is Linear and model.bert.encoder.layer[0].attention.self.query.config.rate == 0.5

    def test_a_pattern_for_nothing_raises(self):
        with pytest.raises(ValueError, match=r"patterns that match a selected layer \(got '.\*decoder.\*'\). Selected"):
            apply_rmm(build("bert"), {".*decoder.*": CONFIG, ".*": CONFIG})
        with pytest.raises(ValueError, match=r"match a selected layer \(got '.\*key'\)"):
            apply_rmm(build("bert"), {".*key": CONFIG}, ["query"])

    def test_patterns_must_be_regular_expressions(self):
        with pytest.raises(ValueError, match=r"'config' must have regular expressions as keys \(got '\*'"):
            apply_rmm(build("bert"), {"*": CONFIG})

    def test_a_mapping_of_none_alone_raises(self):
        with pytest.raises(ValueError, match="'config' must give a layer a config"):
            apply_rmm(build("bert"), {".*": None})


class Int8Linear(Linear):
    """As bitsandbytes has it: a subclass whose frozen weight is one of codes."""

    def __init__(self, linear: Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.detach().abs().max() / 127
        codes = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def with_int8(model: Module) -> Module:
    for layer in model.bert.encoder.layer:
        layer.attention.self.query = Int8Linear(layer.attention.self.query)
    return model


class TestWhatCannotBeConverted:
    def test_subclasses_are_left_alone_and_named_when_asked_for(self):
        model = apply_rmm(with_int8(build("bert")), CONFIG)
        assert type(model.bert.encoder.layer[0].attention.self.query) is Int8Linear
        assert type(model.bert.encoder.layer[0].attention.self.key) is RMMTorchLinear
        model = with_int8(build("bert"))
        for asked in (["query"], r".*\.query", ".*"):
            with pytest.raises(
                ValueError, match=rf"selects '{BLOCK}.attention.self.query', a .*Int8Linear\). .*exclude"
            ):
                apply_rmm(model, CONFIG, asked)
        assert type(model.classifier) is Linear, "nothing may be swapped when the call fails"
        apply_rmm(model, CONFIG, ".*", exclude=["query"])
        assert type(model.classifier) is RMMTorchLinear

    def test_int8_bases_under_lora_are_left_alone_and_the_adapters_converted(self):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(with_int8(build("bert")), peft.LoraConfig(r=4, target_modules=["query"]))
        apply_rmm(model, CONFIG, ["query"])
        query = model.base_model.model.bert.encoder.layer[0].attention.self.query
        assert type(query.base_layer) is Int8Linear and type(query.lora_A["default"]) is RMMTorchLinear
        model(torch.ones(2, 3, dtype=torch.long)).logits.sum().backward()
        assert query.lora_B["default"].weight.grad is not None

    def test_a_weight_of_codes_in_a_plain_layer_is_left_alone(self):
        model = Sequential(Linear(4, 4), Linear(4, 4))
        model[0].weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
        apply_rmm(model, CONFIG)
        assert [type(layer) for layer in model] == [Linear, RMMTorchLinear]
        with pytest.raises(ValueError, match=r"selects '0', a torch.nn.modules.linear.Linear\). Only weights"):
            apply_rmm(model, CONFIG, ["0"])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
    def test_quantised_layers_of_torch_are_left_alone_and_named_when_asked_for(self):
        model = Sequential(Linear(4, 4), torch.nn.ReLU(), Linear(4, 4))
        quantised = torch.ao.quantization.quantize_dynamic(model[0:1], {Linear}, dtype=torch.qint8)
        model[0] = quantised[0]
        before = type(model[0])
        assert before is not Linear
        apply_rmm(model, CONFIG)
        assert type(model[0]) is before and type(model[2]) is RMMTorchLinear
        with pytest.raises(ValueError, match=rf"selects '0', a {before.__module__}.Linear\)"):
            apply_rmm(model, CONFIG, ["0"])

    def test_embeddings_and_norms_are_no_linear_layers(self):
        with pytest.raises(ValueError, match=r"must select linear layers \(got 'wte', which selects 'transformer.wte'"):
            apply_rmm(build("gpt2"), CONFIG, ["wte"])
        with pytest.raises(ValueError, match=r"a torch\.nn\.modules\.normalization\.LayerNorm"):
            apply_rmm(build("bert"), CONFIG, r".*LayerNorm")

    def test_a_layer_with_a_forward_of_its_own(self):
        model = build("bert")
        model.classifier.forward = lambda x: x
        with pytest.raises(ValueError, match=r"'classifier' must run its class's forward"):
            apply_rmm(model, CONFIG)
        apply_rmm(model, CONFIG, exclude="output-head")

    @pytest.mark.parametrize("how", ["function", "method"])
    def test_compiled_models(self, how):
        model = build("bert")
        if how == "function":
            model = torch.compile(model, backend="eager")
        else:
            model.compile(backend="eager")
        with pytest.raises(TypeError, match=r"'model' must not be compiled .* Call apply_rmm first, then compile"):
            apply_rmm(model, CONFIG)

    def test_no_model(self):
        with pytest.raises(TypeError, match=r"'model' must be a torch.nn.Module \(got str\)"):
            apply_rmm("bert-base-uncased", CONFIG)


class TestPatternsThatDoNotFit:
    def test_the_model_has_no_linear_layer(self):
        with pytest.raises(ValueError, match=r"'model' must have a linear layer to convert \(got 0 candidates"):
            apply_rmm(Sequential(torch.nn.ReLU()), CONFIG)

    def test_everything_is_excluded(self):
        with pytest.raises(ValueError, match=r"must have a linear layer to convert \(got 14 candidates, none sel"):
            chosen(exclude=".*")
        with pytest.raises(ValueError, match="none selected"):
            chosen(["query"], exclude=r".*query")

    def test_near_names_are_named(self):
        with pytest.raises(
            ValueError, match=r"\(got 'querry'\). Did you mean 'query'\? Names .* end in: 'query', 'key'"
        ):
            chosen(["querry", "value"])
        with pytest.raises(ValueError, match=r"\(got 'q_proj'\). .*'query', 'key', 'value'"):
            chosen(["q_proj"])

    def test_an_end_given_as_a_string_is_explained(self):
        with pytest.raises(ValueError, match=r"\(got 'query'\). A string is a regular .* Write \['query'\] for"):
            chosen("query")

    def test_invalid_patterns(self):
        with pytest.raises(ValueError, match=r"'target_modules' must be a valid regular expression \(got '\*query'"):
            chosen("*query")
        with pytest.raises(ValueError, match=r"'exclude' must be a valid regular expression \(got '\('"):
            chosen(exclude="(")

    def test_exclude_must_match(self):
        with pytest.raises(
            ValueError, match=r"'exclude' must match a layer .* \(got 'clasifier'\). Did you mean 'clas"
        ):
            chosen(exclude=["clasifier"])
        with pytest.raises(ValueError, match=r"got 'LayerNorm'"):
            chosen(exclude=["LayerNorm"])
        chosen(exclude=["LayerNorm"], whole_block=True)

    def test_a_model_without_a_head(self):
        with pytest.raises(ValueError, match=r"'exclude' must be about what the model has \(got 'output-head' for"):
            apply_rmm(Sequential(Linear(4, 4)), CONFIG, exclude="output-head")

    @pytest.mark.parametrize("given", [3, [], [3], None])
    def test_kinds(self, given):
        with pytest.raises(TypeError, match=r"'target_modules' must be a string or a list of strings"):
            chosen(given)
        if given:
            with pytest.raises(TypeError, match=r"'exclude' must be a string or a list of strings"):
                chosen(exclude=given)

    def test_flags(self):
        for name in ("share", "whole_block"):
            with pytest.raises(TypeError, match=f"'{name}' must be True or False"):
                chosen(**{name: 1})
