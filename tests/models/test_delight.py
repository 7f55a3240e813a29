# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""DeLighT: the equivalences of encoder-decoders and of language models, in its forms, and what only DeLighT has."""

import copy
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models.causal_lm_suite import CausalLMSuite
from models.seq2seq_suite import Seq2SeqSuite
from models.suite import FIRST_WORD, perturb
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from leanformers.modeling.delight import (
    DeLighTConfig,
    DeLighTForCausalLM,
    DeLighTForConditionalGeneration,
    DeLighTModel,
)
from leanformers.modeling.delight.dextra import GroupLinear
from leanformers.modeling.delight.embeddings import DeLighTEmbeddings, sinusoidal_positions
from leanformers.modeling.delight.modeling_delight import positions_of
from numerics import assert_close

VOCAB_SIZE = 60
DROPOUTS = [name for name in DeLighTConfig.__annotations__ if name.endswith("dropout")]
LANGUAGE_MODEL = {"is_encoder_decoder": False}
UNTIED = {"share_embeddings": False, "tie_word_embeddings": False}
PRE_NORM = {"normalize_before": True}
LEARNED = {"position_embedding_type": "learned", "max_position_embeddings": 32}
UNIFORM = {"max_depth": None}
ADAPTIVE = {"adaptive_cutoffs": [20, 40], "adaptive_factor": 2}


def small_config(**fields) -> DeLighTConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "embedding_size": 16, "max_groups": 4}
    sizes |= {"num_encoder_layers": 2, "num_decoder_layers": 2, "min_depth": 2, "max_depth": 3}
    sizes |= {"embedding_depth": 3, "embedding_max_groups": 4}
    return DeLighTConfig(**{**sizes, **dict.fromkeys(DROPOUTS, 0.0), **fields})


def small_model(**fields) -> DeLighTForConditionalGeneration | DeLighTForCausalLM:
    config = small_config(**fields)
    set_seed(0)
    model = (DeLighTForConditionalGeneration if config.is_encoder_decoder else DeLighTForCausalLM)(config)
    perturb(model)
    return model.eval()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCAB_SIZE, shape)


ENCODER_FIELDS = {
    "encoder_min_depth": ({}, 3),
    "encoder_max_depth": ({}, 5),
    "encoder_width_multiplier": ({}, 3.0),
    "encoder_max_groups": ({}, 2),
    "encoder_ffn_reduction": ({}, 2),
    "encoder_normalize_before": ({}, True),
    "encoder_position_embedding_type": ({}, "none"),
    "encoder_max_position_embeddings": (LEARNED, 64),
    "num_encoder_layers": ({}, 3),
    "source_vocab_size": ({"share_embeddings": False}, 48),
    "share_embeddings": ({}, False),
    "decoder_start_token_id": ({}, 3),
}
ADAPTIVE_FIELDS = {
    "adaptive_cutoffs": ({}, [20, 40]),
    "adaptive_factor": (ADAPTIVE, 4),
    "tie_adaptive_projections": (ADAPTIVE, False),
    "adaptive_softmax_dropout": (ADAPTIVE, 0.3),
}
FIELDS = {
    "vocab_size": ({}, 64),
    "hidden_size": ({}, 64),
    "embedding_size": ({}, 32),
    "num_decoder_layers": ({}, 3),
    "min_depth": ({}, 3),
    "max_depth": ({}, 5),
    "width_multiplier": ({}, 3.0),
    "max_groups": ({}, 2),
    "ffn_reduction": ({}, 2),
    "normalize_before": ({}, True),
    "final_norm": (PRE_NORM, False),
    "position_embedding_type": ({}, "none"),
    "max_position_embeddings": (LEARNED, 64),
    "embedding_depth": ({}, 2),
    "embedding_width_multiplier": ({}, 3.0),
    "embedding_max_groups": ({}, 2),
    "dextra_layout": ({}, "define"),
    "feature_shuffle": ({}, False),
    "hidden_act": ({}, "relu"),
    "scale_embedding": ({}, False),
    "tie_word_embeddings": ({"share_embeddings": False}, False),
    "dropout": ({}, 0.3),
    "attention_dropout": ({}, 0.3),
    "activation_dropout": ({}, 0.3),
    "ffn_dropout": ({}, 0.3),
    "embedding_dropout": ({}, 0.3),
    "position_dropout": ({}, 0.3),
    "dextra_dropout": ({}, 0.3),
    "layer_norm_eps": ({}, 1e-2),
    "use_cache": ({}, False),
    "pad_token_id": ({}, 0),
    "eos_token_id": ({}, list(range(VOCAB_SIZE))),
}
IS_A_KIND = "tells which stacks there are, and with that which head takes the config"


class TestDeLighTForConditionalGeneration(Seq2SeqSuite):
    config_class, base_model_class = DeLighTConfig, DeLighTModel
    model_class = DeLighTForConditionalGeneration
    single_layer = {"num_encoder_layers": 1, "num_decoder_layers": 1, **UNIFORM}
    metadata_fields = {
        **dict.fromkeys(ADAPTIVE_FIELDS, "of language models"),
        "bos_token_id": "generation starts with decoder_start_token_id",
        "is_encoder_decoder": IS_A_KIND,
    }
    field_changes = FIELDS | ENCODER_FIELDS
    configs = {
        "shared": {},
        "uniform_learned_untied": {**UNTIED, **PRE_NORM, **UNIFORM, **LEARNED, "source_vocab_size": 48},
        "define_as_wide_as_the_table": {
            "dextra_layout": "define",
            "embedding_size": 32,
            "share_embeddings": False,
            "position_embedding_type": "none",
            "encoder_position_embedding_type": "sinusoidal",
            "encoder_normalize_before": True,
            "encoder_min_depth": 3,
        },
    }

    @pytest.fixture(params=configs.values(), ids=configs)
    def config(self, request) -> DeLighTConfig:
        return small_config(**request.param)

    def small_config(self, **fields) -> DeLighTConfig:
        return small_config(**fields)

    def resize_problem(self, config) -> str | None:
        differ = config.source_vocab_size is not None
        return "source vocabulary .48. and the target vocabulary .60. differ" if differ else None


class TestDeLighTForCausalLM(CausalLMSuite):
    config_class, base_model_class, model_class = DeLighTConfig, DeLighTModel, DeLighTForCausalLM
    single_layer = {"num_decoder_layers": 1, **UNIFORM}
    metadata_fields = {
        **dict.fromkeys(ENCODER_FIELDS, "of encoder-decoders"),
        "bos_token_id": "what `generate` starts with when it is given no prompt",
        "is_encoder_decoder": IS_A_KIND,
    }
    field_changes = FIELDS | ADAPTIVE_FIELDS
    configs = {
        "plain": {},
        "learned_without_final_norm": {**UNTIED, **PRE_NORM, **LEARNED, "final_norm": False},
        "adaptive": {**PRE_NORM, **ADAPTIVE},
        "adaptive_untied": {**UNTIED, **PRE_NORM, **ADAPTIVE, "adaptive_factor": 4},
    }

    @pytest.fixture(params=configs.values(), ids=configs)
    def config(self, request) -> DeLighTConfig:
        return self.small_config(**request.param)

    def small_config(self, **fields) -> DeLighTConfig:
        return small_config(**LANGUAGE_MODEL, **fields)

    def has_tied_tables(self, config) -> bool:
        """An adaptive softmax has no table of its own to tie: it reads that of the input."""
        return config.tie_word_embeddings and config.adaptive_cutoffs is None

    def resize_problem(self, config) -> str | None:
        return "Adaptive tables" if config.adaptive_cutoffs is not None else None


# Errors


@pytest.mark.parametrize(
    ("fields", "phrases"),
    [
        *(
            ({name: 0}, [f"`{name}`", "at least 1", "got 0"])
            for name in (
                "vocab_size",
                "source_vocab_size",
                "hidden_size",
                "embedding_size",
                "num_encoder_layers",
                "num_decoder_layers",
                "ffn_reduction",
                "encoder_ffn_reduction",
                "max_position_embeddings",
                "encoder_max_position_embeddings",
                "max_groups",
                "encoder_max_groups",
                "embedding_max_groups",
            )
        ),
        ({"hidden_size": 30}, ["`hidden_size`", "multiple of 4", "got 30"]),
        ({"ffn_reduction": 3}, ["`ffn_reduction` (3)", "`hidden_size` (32)"]),
        ({"encoder_ffn_reduction": 5}, ["`encoder_ffn_reduction` (5)", "`hidden_size` (32)"]),
        *(({name: 1}, [f"`{name}`", "got 1"]) for name in DROPOUTS),
        *(({name: -0.1}, [f"`{name}`", "got -0.1"]) for name in DROPOUTS),
        ({"layer_norm_eps": 0.0}, ["`layer_norm_eps`", "got 0.0"]),
        ({"width_multiplier": 0}, ["`width_multiplier`", "got 0"]),
        ({"encoder_width_multiplier": -1.0}, ["`encoder_width_multiplier`", "got -1.0"]),
        ({"embedding_width_multiplier": 0.0}, ["`embedding_width_multiplier`", "got 0.0"]),
        ({"max_groups": 3}, ["`max_groups`", "power of two", "divides 32", "got 3"]),
        ({"max_groups": 1}, ["`max_groups`", "at least 2", "got 1"]),
        ({"encoder_max_groups": 64}, ["`encoder_max_groups`", "divides 32", "got 64"]),
        ({"embedding_max_groups": 32}, ["`embedding_max_groups`", "divides 16", "got 32"]),
        ({"hidden_size": 48, "max_groups": None}, ["`max_groups` must be set", "`hidden_size` (48)"]),
        ({"hidden_size": 48, "embedding_max_groups": None}, ["`embedding_max_groups` must be set", "(48)"]),
        ({"embedding_depth": 1}, ["`embedding_depth`", "at least 2", "got 1"]),
        ({"min_depth": 1}, ["`min_depth`", "at least 2", "got 1"]),
        ({"max_depth": 1}, ["`max_depth` (1)", "below `min_depth` (2)"]),
        ({"encoder_min_depth": 1}, ["`encoder_min_depth`", "at least 2", "got 1"]),
        ({"encoder_min_depth": 4, "encoder_max_depth": 3}, ["`encoder_max_depth` (3)", "(4)"]),
        ({"num_decoder_layers": 1}, ["2 to 3", "2 blocks", "`num_decoder_layers` is 1", "`max_depth` to 2"]),
        ({"num_encoder_layers": 1}, ["`num_encoder_layers` is 1", "`encoder_max_depth` to 2"]),
        ({"position_embedding_type": "rope"}, ["`position_embedding_type`", "'sinusoidal'", "'rope'"]),
        ({"encoder_position_embedding_type": "rope"}, ["`encoder_position_embedding_type`", "'rope'"]),
        ({"dextra_layout": "deep"}, ["`dextra_layout`", "'dextra' or 'define'", "'deep'"]),
        ({"hidden_act": "swoosh"}, ["`hidden_act`", "silu", "'swoosh'"]),
        ({"source_vocab_size": 48}, ["`share_embeddings`", "48", "60"]),
        ({"tie_word_embeddings": False}, ["`share_embeddings` needs `tie_word_embeddings`"]),
        (ADAPTIVE, ["`adaptive_cutoffs`", "`is_encoder_decoder=False`"]),
        ({**LANGUAGE_MODEL, "adaptive_cutoffs": []}, ["`adaptive_cutoffs` must rise", "got []"]),
        ({**LANGUAGE_MODEL, "adaptive_cutoffs": [0, 20]}, ["`adaptive_cutoffs`", "got [0, 20]"]),
        ({**LANGUAGE_MODEL, "adaptive_cutoffs": [40, 20]}, ["`adaptive_cutoffs` must rise", "got [40, 20]"]),
        ({**LANGUAGE_MODEL, "adaptive_cutoffs": [20, 60]}, ["`vocab_size` (60)", "got [20, 60]"]),
        ({**LANGUAGE_MODEL, **ADAPTIVE, "adaptive_factor": 0}, ["`adaptive_factor` (0)"]),
        ({**LANGUAGE_MODEL, **ADAPTIVE, "adaptive_factor": 5}, ["`adaptive_factor` (5)", "last of 3 bands", "16"]),
        ({"hidden_size": "32"}, ["hidden_size", "int", "'32'"]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_config_errors_name_field_and_value(fields, phrases):
    with pytest.raises(StrictDataclassError) as error:
        small_config(**fields)
    for phrase in phrases:
        assert phrase in str(error.value)


def test_encoder_fields_follow_the_unprefixed_ones():
    config = small_config(min_depth=3, max_depth=5, max_groups=2)
    assert config.depth_bounds(is_encoder=True) == (3, 5)
    assert config.of_stack("max_groups", is_encoder=True) == 2
    assert small_config(encoder_min_depth=4).depth_bounds(is_encoder=True) == (4, 4)
    assert small_config(encoder_max_depth=4).depth_bounds(is_encoder=True) == (2, 4)
    assert small_config(encoder_normalize_before=False, **PRE_NORM).of_stack("normalize_before", True) is False


def test_widths_that_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="cannot have 4 groups, which must divide both widths"):
        DeLighTModel(small_config(hidden_size=36))


def test_a_head_refuses_a_config_of_the_other_kind():
    with pytest.raises(ValueError, match="load it with DeLighTForCausalLM"):
        DeLighTForConditionalGeneration(small_config(**LANGUAGE_MODEL))
    with pytest.raises(ValueError, match="load it with DeLighTForConditionalGeneration"):
        DeLighTForCausalLM(small_config())


def test_position_ids_are_refused_by_an_encoder_decoder():
    ids = words(1, 4)
    with pytest.raises(ValueError, match="takes no `position_ids`"):
        small_model()(input_ids=ids, decoder_input_ids=ids, position_ids=torch.arange(4)[None])


def test_decoder_refuses_what_its_kind_has_no_use_for():
    ids = words(2, 5)
    with pytest.raises(ValueError, match="is_encoder_decoder=True needs `encoder_hidden_states`"):
        small_model().get_decoder()(input_ids=ids)
    with pytest.raises(ValueError, match="is_encoder_decoder=False takes no `encoder_hidden_states`"):
        small_model(**LANGUAGE_MODEL).model.decoder(input_ids=ids, encoder_hidden_states=torch.zeros(2, 5, 32))


@pytest.mark.parametrize("field", ["decoder_start_token_id", "pad_token_id"])
def test_labels_alone_need_special_tokens(field):
    model, source = small_model(**{field: None}), words(2, 5)
    with pytest.raises(ValueError, match=f"`{field}` \\(now None\\)"):
        model(input_ids=source, labels=source)


@torch.no_grad()
def test_more_tokens_than_learned_positions_are_refused():
    refused = pytest.raises(ValueError, match="33 tokens are more than the 32 positions that were learned")
    model, ids = small_model(**LEARNED), words(1, 33)
    with refused:
        model(input_ids=ids, decoder_input_ids=ids[:, :4])
    with refused:
        model(input_ids=ids[:, :4], decoder_input_ids=ids)
    model = small_model(**LANGUAGE_MODEL, **LEARNED)
    cache = model(input_ids=ids[:, :32]).past_key_values
    with refused:
        model(input_ids=ids[:, 32:], past_key_values=cache)
    small_model(**LANGUAGE_MODEL, max_position_embeddings=32)(input_ids=ids)


# Initialisation


@pytest.mark.parametrize(
    "fields", [{**UNTIED, **LEARNED}, {**LANGUAGE_MODEL, **PRE_NORM, **ADAPTIVE, "adaptive_cutoffs": [100, 250]}]
)
def test_initialisation_is_the_originals(fields):
    """Glorot's bound of whole tensors, packed and grouped ones included; tables as wide as their rows are long."""
    config = small_config(vocab_size=400, hidden_size=128, embedding_size=64, **fields)
    set_seed(0)
    model = (DeLighTForConditionalGeneration if config.is_encoder_decoder else DeLighTForCausalLM)(config)
    kinds = {torch.nn.Linear, GroupLinear, torch.nn.Embedding, torch.nn.LayerNorm}
    seen = {type(module) for module in model.modules() if next(module.parameters(recurse=False), None) is not None}
    assert seen == kinds
    for name, module in model.named_modules():
        weight, bias = (getattr(module, key, None) for key in ("weight", "bias"))
        if isinstance(module, (torch.nn.Linear, GroupLinear)):
            fans = sum(weight.shape)
            if isinstance(module, GroupLinear):
                num_groups, group_in, group_out = weight.shape
                fans = group_out * (group_in + num_groups)
            bound = math.sqrt(6 / fans)
            assert 0.95 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        elif isinstance(module, torch.nn.Embedding):
            real = torch.arange(len(weight)) != (-1 if module.padding_idx is None else module.padding_idx)
            assert weight[real].std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05), name
            assert not weight[~real].any(), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert weight.eq(1).all(), name
        assert bias is None or not bias.any(), name


# Embeddings and padding


def test_positions_count_the_tokens_that_are_no_padding():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    expected = torch.tensor([[-1, 0, -1, 1, 2], [0, 1, 2, -1, -1]])
    assert torch.equal(positions_of(mask, mask), expected)
    assert torch.equal(positions_of(mask, mask[:, 3:]), expected[:, 3:])
    assert positions_of(None, mask[:, :2], past_length=3).tolist() == [[3, 4]]
    rows = sinusoidal_positions(expected, offset=2, width=8)
    assert not rows[expected == -1].any()
    assert_close("first", rows[0, 1, :4], torch.tensor([2 * 10000 ** (-k / 3) for k in range(4)]).sin())
    assert_close("first", rows[0, 1, 4:], torch.tensor([2 * 10000 ** (-k / 3) for k in range(4)]).cos())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_empty_source_disturbs_nothing(attention):
    set_seed(0)
    model = DeLighTForConditionalGeneration._from_config(small_config(), attn_implementation=attention).eval()
    source, mask = words(2, 5), torch.tensor([[0] * 5, [1] * 5])
    output = model(input_ids=source, attention_mask=mask, labels=source)
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    alone = model(input_ids=source[1:], labels=source[1:]).logits
    assert_close("other row", output.logits[1:], alone)


def test_embedding_dropout_drops_a_feature_at_all_positions_of_a_row():
    """The masks of the token rows, before DExTra, and of what leaves the embeddings."""
    embeddings = small_model(embedding_dropout=0.5, position_dropout=0.5).get_encoder().embeddings.train()
    seen = []
    embeddings.dextra.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    seen.append(embeddings(words(3, 5), None, torch.arange(5)[None]))
    for states in seen:
        dropped = states == 0
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
        assert dropped.any() and not dropped.all()
        assert not torch.equal(dropped[0], dropped[1])
    kept = seen[0] != 0
    rows = embeddings.embed_tokens.weight * embeddings.scale
    assert {round(value, 3) for value in (seen[0][kept].abs() / 2).tolist()} <= {
        round(value, 3) for value in rows.abs().flatten().tolist()
    }


def test_without_positions_dropout_is_element_by_element():
    fields = {"position_embedding_type": "none", "position_dropout": 0.9, "dropout": 0.5}
    embeddings = small_model(**fields).get_encoder().embeddings.train()
    dropped = embeddings(words(3, 50), None, torch.arange(50)[None]) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert not (dropped == dropped[:, :1]).all(1).any()


def test_shared_tables_have_dextra_units_of_their_own():
    model = small_model()
    encoder, decoder = model.get_encoder().embeddings, model.get_decoder().embeddings
    assert encoder.embed_tokens.weight is decoder.embed_tokens.weight is model.lm_head.weight
    assert not torch.equal(encoder.dextra.in_proj.weight, decoder.dextra.in_proj.weight)
    other = copy.deepcopy(model)
    shared = other.get_encoder().embeddings.embed_tokens.weight
    assert shared is other.get_decoder().embeddings.embed_tokens.weight is other.lm_head.weight
    assert shared is not encoder.embed_tokens.weight
    model.set_input_embeddings(torch.nn.Embedding(VOCAB_SIZE, 16))
    assert encoder.embed_tokens is decoder.embed_tokens is model.get_input_embeddings()


def test_separate_tables_are_separate():
    model = small_model(source_vocab_size=48, share_embeddings=False)
    encoder, decoder = model.get_encoder().embeddings, model.get_decoder().embeddings
    assert encoder.embed_tokens.num_embeddings == 48
    assert decoder.embed_tokens.weight is model.lm_head.weight
    replaced = torch.nn.Embedding(48, 16)
    model.set_input_embeddings(replaced)
    assert encoder.embed_tokens is replaced and decoder.embed_tokens is not replaced


def test_adaptive_logits_are_log_probabilities_and_its_loss_makes_none():
    model, ids = small_model(**LANGUAGE_MODEL, **ADAPTIVE), words(2, 9)
    logits = model(input_ids=ids).logits
    assert_close("sum", logits.exp().sum(-1), torch.ones(2, 9))
    output = model(input_ids=ids, labels=ids)
    assert output.logits is None
    assert_close("loss", output.loss, -logits[:, :-1].gather(-1, ids[:, 1:, None]).mean())
    shifted = model(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:])
    assert_close("loss of shifted labels", shifted.loss, output.loss)


# The table of all embeddings


ALL_WORDS = torch.arange(VOCAB_SIZE)[None]
KINDS = {
    "encoder_decoder": {},
    "language_model": LANGUAGE_MODEL,
    "adaptive": {**LANGUAGE_MODEL, **ADAPTIVE},
}


LORA = LoraConfig(r=4, target_modules=["in_proj", "out_proj"], init_lora_weights=False)


def logits_of(model, ids: torch.Tensor = ALL_WORDS) -> torch.Tensor:
    """All inputs that the model has are `ids`."""
    names = ("input_ids", "decoder_input_ids") if model.config.is_encoder_decoder else ("input_ids",)
    return model(**dict.fromkeys(names, ids), use_cache=False).logits


def embeddings_of(model) -> list[DeLighTEmbeddings]:
    return [module for module in model.modules() if isinstance(module, DeLighTEmbeddings)]


def keeps_table(model) -> bool:
    kept = {embeddings._kept_table is not None for embeddings in embeddings_of(model)}
    assert len(kept) == 1
    return kept.pop()


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def warm_model(request):
    """One that has its table."""
    model = small_model(**request.param)
    with torch.no_grad():
        logits_of(model)
    assert keeps_table(model)
    return model


def assert_as_without_table(model) -> None:
    expected = logits_of(model).detach()  # with gradients, none is used
    for _ in range(2):
        with torch.no_grad():
            assert_close("logits", logits_of(model), expected, relative=1e-6, absolute=1e-6)


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("length", "calls"), [(59, 1), (20, 2), (1, 3)])
def test_table_is_built_after_as_many_tokens_as_the_vocabulary(fields, length, calls):
    """A call counts at least sixteen."""
    model, ids = small_model(**fields), words(1, length)
    expected = logits_of(model, ids).detach()
    for _ in range(calls):
        with torch.no_grad():
            assert torch.equal(logits_of(model, ids), expected)
        assert not keeps_table(model)
    with torch.no_grad():
        actual = logits_of(model, ids)
    assert keeps_table(model)
    assert all(embeddings._kept_table.shape == (VOCAB_SIZE, 32) for embeddings in embeddings_of(model))
    assert_close("logits", actual, expected, relative=1e-6, absolute=1e-6)
    assert_as_without_table(model)


def test_every_weight_drops_the_table(warm_model):
    for embeddings in embeddings_of(warm_model):
        for parameter in (*embeddings.embed_tokens.parameters(), *embeddings.dextra.parameters()):
            with torch.no_grad():
                before = logits_of(warm_model)
                parameter.add_(torch.randn_like(parameter))
                assert not torch.allclose(logits_of(warm_model), before)
            assert_as_without_table(warm_model)


def step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    logits_of(model).square().mean().backward()
    optimizer.step()


def load(model):
    model.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})


def write_data(model):
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    model.train().eval()


def replace(model):
    for embeddings in embeddings_of(model):
        embeddings.dextra = copy.deepcopy(embeddings.dextra)
        perturb(embeddings.dextra)


@pytest.mark.parametrize("change", [step, load, write_data, replace, torch.nn.Module.double, torch.nn.Module.bfloat16])
def test_changes_of_the_weights_drop_the_table(warm_model, change):
    before = logits_of(warm_model)
    change(warm_model)
    after = logits_of(warm_model)
    assert after.dtype != before.dtype or not torch.allclose(after, before, atol=1e-2)
    with torch.no_grad():
        assert logits_of(warm_model).dtype == after.dtype
    if change is not torch.nn.Module.bfloat16:  # whose roundings differ with the number of rows
        assert_as_without_table(warm_model)


def test_table_is_used_in_plain_evaluation_alone(warm_model):
    def poison():
        with torch.no_grad():
            logits_of(warm_model)
            for embeddings in embeddings_of(warm_model):
                embeddings._kept_table.fill_(float("nan"))

    poison()
    with torch.no_grad():
        assert logits_of(warm_model).isnan().any()
        with torch.autocast("cpu", torch.bfloat16):
            assert logits_of(warm_model).isfinite().all()
        for embeddings in embeddings_of(warm_model):
            torch.compiler.reset()
            compiled = torch.compile(embeddings, backend="eager", fullgraph=True)
            assert compiled(ALL_WORDS, None, ALL_WORDS).isfinite().all()
            assert embeddings(ALL_WORDS, None, ALL_WORDS).isnan().any()
    assert logits_of(warm_model).isfinite().all()
    with torch.no_grad():
        assert logits_of(warm_model.train()).isfinite().all()
        assert logits_of(warm_model.eval()).isfinite().all()


def test_table_belongs_to_no_file_and_no_copy(warm_model, tmp_path):
    fresh = small_model(**{name: getattr(warm_model.config, name) for name in ("is_encoder_decoder", *ADAPTIVE)})
    assert warm_model.state_dict().keys() == fresh.state_dict().keys()
    warm_model.save_pretrained(tmp_path)
    loaded = type(warm_model).from_pretrained(tmp_path).eval()
    assert not keeps_table(loaded)
    assert torch.equal(logits_of(loaded), logits_of(warm_model))
    other = copy.deepcopy(warm_model)
    perturb(other)
    assert_as_without_table(other)
    assert_as_without_table(warm_model)
    assert not torch.allclose(logits_of(other), logits_of(warm_model))


def test_table_follows_adapters(warm_model):
    plain, adapted = logits_of(warm_model).detach(), get_peft_model(warm_model, LORA)
    assert not torch.allclose(logits_of(adapted), plain)
    assert_as_without_table(adapted)
    with adapted.disable_adapter():
        assert_as_without_table(adapted)
        assert_close("disabled", logits_of(adapted), plain)
    adapted.merge_adapter()
    assert_as_without_table(adapted)
    adapted.unmerge_adapter()
    assert_as_without_table(adapted)
    merged = adapted.merge_and_unload()
    assert not torch.allclose(logits_of(merged), plain)
    assert_as_without_table(merged)


def test_table_follows_an_adapter_that_is_merged_at_once(warm_model):
    before = logits_of(warm_model)
    merged = get_peft_model(warm_model, LORA).merge_and_unload()
    assert not torch.allclose(logits_of(merged), before)
    assert_as_without_table(merged)
