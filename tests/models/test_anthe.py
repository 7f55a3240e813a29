# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Anthe: the equivalences of every encoder-decoder, in each of its forms, and what only Anthe has."""

import copy
import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from models.seq2seq_suite import Seq2SeqSuite
from models.suite import FIRST_WORD, perturb
from torch import nn
from transformers import BartConfig, DynamicCache, EncoderDecoderCache, StaticCache, set_seed

from leanformers.accounting import cache_bytes
from leanformers.modeling.anthe import AntheConfig, AntheForSeq2SeqLM, AntheModel
from leanformers.modeling.anthe.configuration_anthe import ATTENTION_GATES, CROSS_ATTENTION_GATES
from leanformers.modeling.anthe.tensor_chain import TensorChain, TensorChainLinear
from numerics import assert_close

DENSE = {"tc_attn_ratio": None, "tc_ffn_ratio": None}
CHAINS = {"tc_attn_ratio": 0.4, "tc_ffn_ratio": 0.3}
SOFTPOS = {"position_embedding_type": "softpos"}
SINUSOIDAL = {"position_embedding_type": "sinusoidal"}
MIXED_GATES = {"attention_gate": "QgV", "cross_attention_gate": "KgV"}
ALL_CHAINS = {**CHAINS, "tc_embedding_ratio": 0.5, "tc_conv_ratio": 0.6, "tc_output_ratio": 0.4}

CONFIGS = {
    "anthe": {**CHAINS, "source_vocab_size": 48},
    "three_levels": {**DENSE, "hidden_size": 48, "soft_position_levels": 3, "attention_gate": "VgK"},
    "softpos": {**DENSE, **SOFTPOS, "cross_attention_gate": "none"},
    "transformer": {**DENSE, **SINUSOIDAL, "attention_gate": "none", "ffn_type": "relu", "source_vocab_size": 48},
    "tied_projection": {**CHAINS, "share_embeddings": True, "tie_word_embeddings": True},
    "tied_table": {**DENSE, **SINUSOIDAL, "tie_word_embeddings": True, "share_embeddings": True},
    "tied_decoder": {**DENSE, **SINUSOIDAL, "tie_word_embeddings": True, "source_vocab_size": 48},
    "all_chains": {**ALL_CHAINS, "tc_embedding_length": 3, "share_embeddings": True},
    "long_chains": {**CHAINS, "tc_length": 4, "tc_forward": "chain", **MIXED_GATES},
}


def small_config(**fields) -> AntheConfig:
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "dropout": 0.0}
    return AntheConfig(**{**sizes, **fields})


def small_model(**fields) -> AntheForSeq2SeqLM:
    set_seed(0)
    model = AntheForSeq2SeqLM(small_config(**fields))
    perturb(model)
    return model.eval()


class TestAnthe(Seq2SeqSuite):
    config_class, base_model_class, model_class = AntheConfig, AntheModel, AntheForSeq2SeqLM
    metadata_fields = {
        "allow_noncausal_gate": "permits values of other fields",
        "bos_token_id": "generation starts with decoder_start_token_id",
        "is_encoder_decoder": "tells transformers what kind of model it is",
    }
    field_changes = {
        "vocab_size": ({}, 64),
        "source_vocab_size": ({}, 64),
        "hidden_size": ({}, 48),
        "num_encoder_layers": ({}, 1),
        "num_decoder_layers": ({}, 1),
        "num_attention_heads": ({}, 8),
        "intermediate_size": ({}, 96),
        "ffn_type": ({}, "relu"),
        "attention_gate": ({}, "VgK"),
        "cross_attention_gate": ({}, "none"),
        "position_embedding_type": ({}, "softpos"),
        "soft_position_levels": ({}, 1),
        "softpos_num_subpositions": (SOFTPOS, 5),
        "softpos_units": (SOFTPOS, 6),
        "softpos_repeats": (SOFTPOS, 1),
        "tc_attn_ratio": (DENSE, 0.4),
        "tc_ffn_ratio": (DENSE, 0.3),
        "tc_embedding_ratio": (DENSE, 0.5),
        "tc_conv_ratio": ({**DENSE, "tc_embedding_length": 3}, 0.6),
        "tc_output_ratio": (DENSE, 0.4),
        "tc_length": (CHAINS, 3),
        "tc_embedding_length": ({**DENSE, "tc_embedding_ratio": 0.5}, 3),
        "tc_embedding_positions": ({**DENSE, "tc_embedding_ratio": 0.5}, False),
        "tc_reference_bond": ({"tc_attn_ratio": 0.9, "tc_length": 4}, True),
        "tc_init": (CHAINS, "reference"),
        "tc_forward": ({**CHAINS, "tc_forward": "materialize"}, "chain"),
        "share_embeddings": ({}, True),
        "tie_word_embeddings": ({}, True),
        "dropout": ({}, 0.3),
        "layer_norm_eps": ({}, 1e-2),
        "initializer_range": ({}, 0.1),
        "use_cache": ({}, False),
        "pad_token_id": ({}, 1),
        "eos_token_id": ({}, list(range(60))),
        "decoder_start_token_id": ({}, 1),
    }

    @pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
    def config(self, request) -> AntheConfig:
        return small_config(**request.param)

    def small_config(self, **fields) -> AntheConfig:
        return small_config(**fields)

    def resize_problem(self, config) -> str | None:
        if config.source_vocab_size is not None:
            return "source vocabulary .48. and the target vocabulary .60. differ"
        return "Tensor-chain tables and output layers" if config.tc_embedding_ratio is not None else None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 0}, ["`vocab_size`", "at least 1", "got 0"]),
        ({"source_vocab_size": 0}, ["`source_vocab_size`", "got 0"]),
        ({"hidden_size": -32}, ["`hidden_size`", "got -32"]),
        ({"num_encoder_layers": 0}, ["`num_encoder_layers`", "got 0"]),
        ({"num_decoder_layers": 0}, ["`num_decoder_layers`", "got 0"]),
        ({"num_attention_heads": 0}, ["`num_attention_heads`", "got 0"]),
        ({"intermediate_size": 0}, ["`intermediate_size`", "got 0"]),
        ({"intermediate_size": 1}, ["`intermediate_size`", "got 1"]),
        ({"num_attention_heads": 5}, ["`hidden_size` (32)", "multiple of `num_attention_heads`", "(5)"]),
        ({"layer_norm_eps": 0.0}, ["`layer_norm_eps`", "got 0.0"]),
        ({"initializer_range": -0.1}, ["`initializer_range`", "got -0.1"]),
        ({"dropout": 1}, ["`dropout`", "got 1"]),
        ({"dropout": -0.1}, ["`dropout`", "got -0.1"]),
        ({"ffn_type": "gelu"}, ["`ffn_type`", "'swiglu' or 'relu'", "'gelu'"]),
        ({"attention_gate": "VgV"}, ["`attention_gate`", "KgV", "'VgV'"]),
        ({"cross_attention_gate": "kgv"}, ["`cross_attention_gate`", "KgV", "'kgv'"]),
        ({"position_embedding_type": "rope"}, ["`position_embedding_type`", "'h_softpos'", "'rope'"]),
        ({"soft_position_levels": 0}, ["`soft_position_levels`", "got 0"]),
        ({"soft_position_levels": 17}, ["`soft_position_levels`", "(16)", "got 17"]),
        ({"soft_position_levels": 3}, ["7 wide", "hidden_size=32", "soft_position_levels=3", "even width"]),
        ({**SINUSOIDAL, "hidden_size": 33, "num_attention_heads": 3}, ["33 wide", "hidden_size=33", "even width"]),
        ({**SOFTPOS, "softpos_units": 5, "softpos_repeats": 1}, ["27 wide", "even width"]),
        ({**SOFTPOS, "softpos_units": 0}, ["`softpos_units`", "got 0"]),
        ({**SOFTPOS, "softpos_repeats": 0}, ["`softpos_repeats` (0)"]),
        ({**SOFTPOS, "softpos_num_subpositions": 9}, ["`softpos_num_subpositions` (9)", "= 16"]),
        ({"share_embeddings": True, "source_vocab_size": 48}, ["`share_embeddings`", "48", "60"]),
        (
            {"tie_word_embeddings": True, "tc_embedding_ratio": 0.5},
            ["`tie_word_embeddings`", "`tc_embedding_ratio`", "0.5"],
        ),
        ({"tie_word_embeddings": True, "tc_output_ratio": 0.5}, ["`tie_word_embeddings`", "`tc_output_ratio` (0.5)"]),
        ({"tc_length": 5}, ["`tc_length`", "2, 3 or 4", "got 5"]),
        ({"tc_embedding_length": 1}, ["`tc_embedding_length`", "2, 3, 4", "got 1"]),
        ({"tc_init": "zeros"}, ["`tc_init`", "'variance_preserving' or 'reference'", "'zeros'"]),
        ({"tc_forward": "fast"}, ["`tc_forward`", "'auto'", "'fast'"]),
        ({"hidden_size": "32"}, ["hidden_size", "int", "'32'"]),
        *(
            ({f"tc_{name}_ratio": ratio}, [f"`tc_{name}_ratio`", "between 0 and 1", f"got {ratio}"])
            for name, ratio in itertools.product(("attn", "ffn", "embedding", "conv", "output"), (0, 1, 1.5, -0.1))
        ),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_config_errors_name_field_and_value(fields, words):
    with pytest.raises(StrictDataclassError) as error:
        small_config(**fields)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"tc_conv_ratio": 0.5}, 3),
        ({"vocab_size": 61, "tc_embedding_ratio": 0.5}, 61),
        ({"vocab_size": 61, "tc_output_ratio": 0.5}, 61),
        ({"intermediate_size": 47, "tc_ffn_ratio": 0.3}, 31),
    ],
)
def test_prime_sizes_are_refused_by_chains_of_two(fields, size):
    with pytest.raises(ValueError, match=f"A size of {size} does not factor into a tensor chain of length 2"):
        AntheForSeq2SeqLM(small_config(**fields))
    AntheForSeq2SeqLM(small_config(**fields, tc_length=3))


NONCAUSAL_GATES = sorted(set(ATTENTION_GATES) - set(CROSS_ATTENTION_GATES))


@pytest.mark.parametrize("gate", NONCAUSAL_GATES)
@pytest.mark.parametrize("field", ["attention_gate", "cross_attention_gate"])
def test_noncausal_gates_are_refused_in_cross_attention(gate, field):
    reason = "later target tokens reach earlier ones" if gate[0] == "Q" else "target position t read the gate"
    message = f"gate '{gate}' .*{reason}.*`cross_attention_gate`.*`allow_noncausal_gate=True`"
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        small_config(**{field: gate})
    small_config(**{field: gate}, allow_noncausal_gate=True)


@pytest.mark.parametrize("gate", NONCAUSAL_GATES)
def test_noncausal_gates_need_equal_lengths_and_no_cache(gate):
    model = small_model(attention_gate=gate, allow_noncausal_gate=True)
    source, target = torch.randint(FIRST_WORD, 60, (2, 7)), torch.randint(FIRST_WORD, 60, (2, 5))
    with pytest.raises(ValueError, match=f"gate {gate} needs sources and targets of equal length, got 7 and 5"):
        model(input_ids=source, decoder_input_ids=target, use_cache=False)
    with pytest.raises(ValueError, match=f"gate {gate} .* cannot be cached: pass `use_cache=False`"):
        model(input_ids=source, decoder_input_ids=source)
    with pytest.raises(ValueError, match="`use_cache=False`"):
        model.generate(source, max_new_tokens=2)
    assert model(input_ids=source, labels=source).logits.isfinite().all()


@torch.no_grad()
def movement_of_earlier_logits(**fields) -> float:
    """How far a change of target token 8 of 12 moves the logits before it, at most."""
    model = small_model(**DENSE, **fields)
    source, target = torch.randint(FIRST_WORD, 60, (2, 12)), torch.randint(FIRST_WORD, 59, (2, 12))
    changed = target.clone()
    changed[:, 8] += 1
    before, after = (
        model(input_ids=source, decoder_input_ids=ids, use_cache=False).logits for ids in (target, changed)
    )
    assert not torch.equal(before[:, 8:], after[:, 8:])
    return (before[:, :8] - after[:, :8]).abs().max().item()


@pytest.mark.parametrize("self_gate", ATTENTION_GATES)
@pytest.mark.parametrize("cross_gate", CROSS_ATTENTION_GATES)
def test_no_allowed_gate_leaks(self_gate, cross_gate):
    assert movement_of_earlier_logits(attention_gate=self_gate, cross_attention_gate=cross_gate) < 1e-6


@pytest.mark.parametrize(("gate", "leaks"), [("QgV", True), ("QgK", True), ("KgQ", False), ("VgQ", False)])
def test_gates_of_queries_leak_later_tokens(gate, leaks):
    """The evidence against the original's default, QgV."""
    movement = movement_of_earlier_logits(cross_attention_gate=gate, allow_noncausal_gate=True)
    assert movement > 1e-2 if leaks else movement < 1e-6


def test_keys_of_a_gate_are_the_raw_inputs():
    config = small_config(**DENSE)
    attention = AntheForSeq2SeqLM(config).model.decoder.layers[0].cross_attn
    assert not hasattr(attention, "k_proj")
    names = {name.split(".")[0] for name, _ in attention.named_parameters()}
    assert names == {"gate_proj", "q_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(("gate", "stored"), [("none", 8 + 8), ("KgV", 1 + 8), ("VgK", 8 + 1)])
def test_raw_stream_of_a_gate_is_not_stored(gate, stored):
    """Each of 4 heads of 2 layers holds 8 numbers a position in keys and in values, but 1 of what is raw."""
    model = small_model(cross_attention_gate=gate)
    source = torch.randint(FIRST_WORD, 60, (3, 9))
    with torch.no_grad():
        cache = model(input_ids=source, decoder_input_ids=source[:, :5]).past_key_values
    assert cache_bytes(cache.cross_attention_cache) == 2 * 3 * 4 * 9 * stored * 4


def test_soft_positions_cost_the_cache_little():
    model, baseline = small_model(soft_position_levels=2), small_model(**SINUSOIDAL)
    source = torch.randint(FIRST_WORD, 60, (3, 9))
    with torch.no_grad():
        ours, plain = (m(input_ids=source, decoder_input_ids=source).past_key_values for m in (model, baseline))
    # The convolution of level 0 reads 2 earlier inputs of width 8.
    assert cache_bytes(ours) - cache_bytes(plain) == 3 * 2 * 8 * 4


def test_caches_without_the_config_are_completed_or_refused():
    model, source = small_model(), torch.randint(FIRST_WORD, 60, (2, 5))
    inputs = {"input_ids": source, "decoder_input_ids": source}
    with torch.no_grad():
        whole = model(**inputs).logits
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        first = model(input_ids=source, decoder_input_ids=source[:, :2], past_key_values=cache).logits
        rest = model(input_ids=source, decoder_input_ids=source[:, 2:], past_key_values=cache).logits
    assert_close("logits", torch.cat([first, rest], dim=1), whole)
    static = StaticCache(config=BartConfig(decoder_layers=2), max_cache_len=8)
    for wrong, name in ((DynamicCache(config=BartConfig()), "DynamicLayer"), (static, "StaticLayer")):
        with pytest.raises(ValueError, match=f"is a {name}, .* build the cache with `config=model.config`"):
            model(**inputs, past_key_values=EncoderDecoderCache(wrong, DynamicCache()))


def test_decoder_alone_needs_an_encoder():
    source = torch.randint(FIRST_WORD, 60, (2, 5))
    with pytest.raises(ValueError, match="needs `encoder_hidden_states`"):
        small_model().get_decoder()(input_ids=source)


@pytest.mark.parametrize("field", ["decoder_start_token_id", "pad_token_id"])
def test_labels_alone_need_special_tokens(field):
    model, source = small_model(**{field: None}), torch.randint(FIRST_WORD, 60, (2, 5))
    with pytest.raises(ValueError, match=f"`{field}` \\(now None\\)"):
        model(input_ids=source, labels=source)


def test_static_cache_of_a_loop_of_ones_own():
    model, source = small_model(soft_position_levels=4), torch.randint(FIRST_WORD, 60, (2, 6))
    cache = EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=10), StaticCache(config=model.config, max_cache_len=6)
    )
    target = torch.randint(FIRST_WORD, 60, (2, 9))
    with torch.no_grad():
        whole = model(input_ids=source, decoder_input_ids=target, use_cache=False).logits
        for _ in range(2):
            chunks = [
                model(input_ids=source, decoder_input_ids=chunk, past_key_values=cache).logits
                for chunk in target.split([4, 1, 3, 1], dim=1)
            ]
            assert_close("logits", torch.cat(chunks, dim=1), whole)
            cache.reset()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_empty_source_disturbs_nothing(attention):
    set_seed(0)
    model = AntheForSeq2SeqLM._from_config(small_config(), attn_implementation=attention).eval()
    source, mask = torch.randint(FIRST_WORD, 60, (2, 5)), torch.tensor([[0] * 5, [1] * 5])
    output = model(input_ids=source, attention_mask=mask, labels=source)
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    alone = model(input_ids=source[1:], labels=source[1:]).logits
    assert_close("other row", output.logits[1:], alone)


def test_shared_embeddings_are_one_module_everywhere():
    model = small_model(share_embeddings=True)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    assert encoder.embeddings is decoder.embeddings
    other = copy.deepcopy(model)
    assert other.get_encoder().embeddings is other.get_decoder().embeddings is not encoder.embeddings
    assert not any(name.startswith("model.decoder.embeddings") for name in model.state_dict())
    table = nn.Embedding(60, 8)
    model.set_input_embeddings(table)
    assert decoder.get_input_embeddings() is model.get_input_embeddings() is table
    model.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    source = torch.randint(FIRST_WORD, 60, (1, 4))
    assert model(input_ids=source, labels=source).logits.dtype == torch.float64


def test_separate_embeddings_are_separate():
    model = small_model(source_vocab_size=48)
    assert model.get_encoder().get_input_embeddings().num_embeddings == 48
    assert model.get_decoder().get_input_embeddings().num_embeddings == 60


def test_chains_stand_where_the_config_says():
    def chains(**fields) -> set[str]:
        model = small_model(**{**DENSE, **fields})
        return {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, TensorChain)}

    assert chains() == set()
    assert chains(tc_attn_ratio=0.4) == {"gate_proj", "q_proj", "v_proj"}  # never the output projection
    assert chains(tc_attn_ratio=0.4, attention_gate="none") == {"q_proj", "k_proj", "v_proj"}
    assert chains(tc_ffn_ratio=0.3) == {"gate_proj", "up_proj", "down_proj"}
    assert chains(tc_ffn_ratio=0.3, ffn_type="relu") == {"up_proj", "down_proj"}
    assert chains(tc_embedding_ratio=0.5) == {"embed_tokens"}
    assert chains(tc_conv_ratio=0.5, tc_embedding_length=3) == {"0"}
    assert chains(tc_output_ratio=0.5) == {"lm_head"}


def test_generation_builds_every_kernel_once(monkeypatch):
    built = []
    materialize = TensorChainLinear.materialize
    monkeypatch.setattr(TensorChainLinear, "materialize", lambda self: built.append(self) or materialize(self))
    model = small_model(**CHAINS, tc_forward="materialize")
    source = torch.randint(FIRST_WORD, 60, (2, 5))
    first = model.generate(source, max_new_tokens=6, do_sample=False)
    layers = [module for module in model.modules() if isinstance(module, TensorChainLinear)]
    assert len(built) == len(set(built)) == len(layers)
    assert torch.equal(model.generate(source, max_new_tokens=6, do_sample=False), first)
    assert len(built) == len(layers)
    with torch.no_grad():
        for layer in layers:
            layer.core_0.neg_()
        changed = model(input_ids=source, decoder_input_ids=source).logits
        fresh = copy.deepcopy(model).train()(input_ids=source, decoder_input_ids=source, use_cache=False).logits
    assert_close("logits", changed, fresh)
