# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""FastWeight: the equivalences of language models under each of its rules, and what only a memory has."""

import copy
import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models.causal_lm_suite import CausalLMSuite
from models.suite import FIRST_WORD, enable_checkpointing, loss_and_gradients, pad, perturb
from safetensors.torch import load_file
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, set_seed

from leanformers.accounting import cache_bytes
from leanformers.modeling.fast_weight import (
    FastWeightConfig,
    FastWeightForCausalLM,
    FastWeightForSequenceClassification,
    FastWeightModel,
)
from numerics import assert_close

VOCAB_SIZE = 60
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")
SUM = {"update_rule": "sum", "attention_norm": "output"}
FULL_NORM = {"feature_map": "elu_plus_one", "attention_norm": "full", "output_bias": True}
FAVOR = {"feature_map": "favor", "favor_features": 6, "favor_redraw": False, "norm_position": "post"}
SOFTMAX = {"update_rule": "softmax", "position_embedding_type": "sinusoidal"}
REVERSED = {"position_embedding_type": "sinusoidal_reversed", "norm_position": "pre_quirk"}
ADAPTIVE = {"adaptive_cutoffs": [20, 40], "output_bias": True}
RULES = {
    "delta": {},
    "sum": SUM,
    "full_norm": FULL_NORM,
    "output_norm": {"attention_norm": "output", "feature_map": "relu", "key_norm_eps": 1e-5},
    "favor": FAVOR,
    "tanh": {"feature_map": "tanh", "key_norm": "none"},
}


def small_config(**fields) -> FastWeightConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FastWeightConfig(**{**sizes, "intermediate_size": 48, **dict.fromkeys(DROPOUTS, 0.0), **fields})


def small_model(model_class: type = FastWeightForCausalLM, **fields):
    set_seed(0)
    model = model_class(small_config(**fields))
    perturb(model)
    return model.eval()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCAB_SIZE, shape)


@pytest.fixture(params=RULES.values(), ids=RULES)
def memory_model(request) -> FastWeightForCausalLM:
    return small_model(**request.param)


class TestFastWeightForCausalLM(CausalLMSuite):
    config_class, base_model_class, model_class = FastWeightConfig, FastWeightModel, FastWeightForCausalLM
    metadata_fields = {
        "bos_token_id": "what `generate` starts with when it is given no prompt",
        "max_position_embeddings": "training scripts read it, nothing limits the length",
    }
    field_changes = {
        "vocab_size": ({}, 64),
        "hidden_size": ({}, 64),
        "num_hidden_layers": ({}, 3),
        "num_attention_heads": ({}, 2),
        "head_dim": ({}, 4),
        "intermediate_size": ({}, 32),
        "hidden_act": ({}, "gelu"),
        "update_rule": ({}, "sum"),
        "feature_map": ({}, "elu_plus_one"),
        "dpfp_nu": ({}, 2),
        "favor_features": (FAVOR, 5),
        "favor_layout": (FAVOR, "rows"),
        "favor_redraw": (FAVOR, True),
        "favor_eps": (FAVOR, 0.1),
        "key_norm": ({}, "none"),
        "key_norm_eps": ({}, 0.1),
        "attention_norm": ({}, "output"),
        "attention_norm_eps": (FULL_NORM, 0.1),
        "output_scale": ({}, 1.0),
        "position_embedding_type": ({}, "sinusoidal_reversed"),
        "norm_position": ({}, "pre_quirk"),
        "final_norm": ({}, False),
        "scale_embedding": ({}, False),
        "output_bias": ({}, True),
        "adaptive_cutoffs": ({}, [20, 40]),
        "tie_word_embeddings": ({}, False),
        "dropout": ({}, 0.3),
        "activation_dropout": ({}, 0.3),
        "attention_dropout": (SOFTMAX, 0.3),
        "layer_norm_eps": ({}, 1e-2),
        "initializer_range": ({}, 0.1),
        "norm_initializer_range": ({}, 0.02),
        "use_cache": ({}, False),
        "pad_token_id": ({}, 5),
        "eos_token_id": ({}, list(range(VOCAB_SIZE))),
    }
    configs = {
        "delta": {},
        "sum": SUM,
        "full_norm": FULL_NORM,
        "favor": FAVOR,
        "softmax": SOFTMAX,
        "adaptive": {**ADAPTIVE, "tie_word_embeddings": False, "final_norm": False, "dpfp_nu": 2},
    }

    @pytest.fixture(params=configs.values(), ids=configs)
    def config(self, request) -> FastWeightConfig:
        return small_config(**request.param)

    def small_config(self, **fields) -> FastWeightConfig:
        return small_config(**fields)

    def visible(self, config, mask):
        return super().visible(config, mask) if config.update_rule == "softmax" else None

    def resize_problem(self, config) -> str | None:
        return None if config.adaptive_cutoffs is None else "cannot be resized"

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_generate_with_static_cache(self, model, config, rows, num_beams):
        if config.update_rule == "softmax":
            super().test_generate_with_static_cache(model, config, rows, num_beams)
            return
        for kind in ("static", "quantized"):
            with pytest.raises(ValueError, match=f"cache_implementation='{kind}' .* has a fixed size anyway"):
                model.generate(words(1, 4), cache_implementation=kind, max_new_tokens=2)

    def test_gradient_checkpointing_leaves_the_cache_alone(self, model, config, rows):
        with pytest.raises(ValueError, match="cannot carry `past_key_values`"):
            super().test_gradient_checkpointing_leaves_the_cache_alone(model, config, rows)


class TestReversedPositions(TestFastWeightForCausalLM):
    """As in the original, appending a token changes all before it: there is no decoding with a cache."""

    configs = {"reversed": {**ADAPTIVE, **REVERSED}}
    test_every_config_field_is_accounted_for = test_config_field_changes_something = None

    @pytest.fixture(params=configs.values(), ids=configs)
    def config(self, request) -> FastWeightConfig:
        return small_config(**request.param)

    test_cached_chunks_equal_the_whole = test_position_ids_default_to_those_of_the_mask = None
    test_batch_changes_move_all_state = test_generate_with_static_cache = None

    def test_generate_continue_from_past_key_values(self, model, config, rows):
        cache = model(**self.batch(config, rows), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="computes all tokens anew: pass `input_ids`"):
            model.generate(words(3, 2), past_key_values=cache, max_new_tokens=2)
        with pytest.raises(ValueError, match="nor `inputs_embeds`"):
            model.generate(inputs_embeds=torch.zeros(1, 2, 32), max_new_tokens=2)


# The cache


def states_of(cache) -> list[torch.Tensor]:
    """All memories and sums of keys, copied."""
    return [state.clone() for layer in cache.layers for state in layer.read() if state is not None]


def cache_of(model, ids: torch.Tensor, **inputs):
    return model(input_ids=ids, use_cache=True, **inputs).past_key_values


@torch.no_grad()
def test_cache_does_not_grow(memory_model):
    ids = words(2, 500)
    cache = cache_of(memory_model, ids[:, :1])
    held = cache_bytes(cache)
    assert held == sum(state.nbytes for state in states_of(cache)) > 0
    for chunk in (ids[:, 1:2], ids[:, 2:]):
        cache_of(memory_model, chunk, past_key_values=cache)
        assert cache_bytes(cache) == held
    assert cache.get_seq_length() == cache.get_seq_length(1) == 500
    assert cache.get_max_length() == -1


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({}, 16),
        ({"dpfp_nu": 3}, 48),
        ({"feature_map": "elu_plus_one"}, 8),
        ({"feature_map": "relu", "head_dim": 5}, 5),
        ({"feature_map": "tanh", "key_norm": "none"}, 8),
        (FAVOR, 12),
    ],
    ids=str,
)
@torch.no_grad()
def test_memory_is_as_wide_as_the_feature_map(fields, width):
    fields = {"attention_norm": "none" if fields.get("feature_map") == "tanh" else "output", **fields}
    model = small_model(**fields)
    cache, head_dim = cache_of(model, words(3, 5)), model.config.head_dim
    for layer in cache.layers:
        memory, normalizer = layer.read()
        assert memory.shape == (3, 4, width, head_dim) and memory.dtype == torch.float32
        assert normalizer is None if fields["attention_norm"] == "none" else normalizer.shape == (3, 4, width)


@torch.no_grad()
def test_chunked_prefill_generates_the_same(memory_model):
    prompts, mask = pad([row.tolist() for row in (words(9), words(4))], "left", 0)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = memory_model.generate(prompts, **options)
    assert expected.shape == (2, 14)
    for size in (1, 4, 9):
        assert torch.equal(memory_model.generate(prompts, **options, prefill_chunk_size=size), expected)


@torch.no_grad()
def test_reset_cache_is_empty(memory_model):
    ids = words(2, 6)
    cache = cache_of(memory_model, ids)
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache_bytes(cache)
    logits = memory_model(input_ids=ids, past_key_values=cache).logits
    assert torch.equal(logits, memory_model(input_ids=ids).logits)


@torch.no_grad()
def test_copies_of_a_cache_branch_off(memory_model):
    ids, first, second = words(2, 6), words(2, 3), words(2, 4)
    cache = cache_of(memory_model, ids)
    other = copy.deepcopy(cache)
    for branch, rest in ((cache, first), (other, second)):
        logits = memory_model(input_ids=rest, past_key_values=branch).logits
        whole = memory_model(input_ids=torch.cat([ids, rest], dim=1)).logits
        assert_close("branch", logits, whole[:, 6:])
    assert (cache.get_seq_length(), other.get_seq_length()) == (9, 10)


@torch.no_grad()
def test_cache_cannot_be_cropped_or_fed_keys_and_values():
    cache = cache_of(small_model(), words(2, 6))
    before = states_of(cache)
    assert not cache.is_croppable and not cache.is_compileable
    with pytest.raises(NotImplementedError, match="cannot take back tokens: keep a copy"):
        cache.crop(-1)
    with pytest.raises(NotImplementedError, match="holds no keys and values"):
        cache.update(torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8), 0)
    assert all(torch.equal(*pair) for pair in zip(before, states_of(cache), strict=True))


@torch.no_grad()
def test_offloaded_states_come_back():
    cache = cache_of(small_model(**SUM), words(2, 6))
    layer = cache.layers[0]
    before = states_of(cache)
    layer.offload()
    layer.prefetch()
    assert all(torch.equal(*pair) for pair in zip(before, states_of(cache), strict=True))
    layer.device = torch.device("meta")  # a second device that every machine has
    layer.prefetch()
    assert [state.device.type for state in layer.read()] == ["meta", "meta"]


def test_caches_of_another_kind_are_refused():
    model, softmax, ids = small_model(), small_model(**SOFTMAX), words(2, 4)
    deeper = DynamicCache(config=small_config(num_hidden_layers=3))
    keys_and_values = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    pair = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    for wrong, num_memories in ((DynamicCache(), 0), (keys_and_values, 0), (pair, 0), (deeper, 3)):
        message = f"{type(wrong).__name__}. holds {num_memories} fast weight memories, update_rule='delta' needs 2"
        with pytest.raises(ValueError, match=message):
            model(input_ids=ids, past_key_values=wrong)
    with pytest.raises(ValueError, match="holds 2 fast weight memories, update_rule='softmax' needs 0"):
        softmax(input_ids=ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="got list"):
        softmax(input_ids=ids, past_key_values=[])
    with pytest.raises(ValueError, match=r"initial_state must be .* \[3, 4, 16, 8\], got .* \[2, 4, 16, 8\]"):
        model(input_ids=words(3, 1), past_key_values=cache_of(model, ids))


@pytest.mark.parametrize("fields", [{}, SOFTMAX], ids=["delta", "softmax"])
@torch.no_grad()
def test_caches_are_taken_under_both_names_that_transformers_has_for_them(fields):
    model, ids = small_model(**fields), words(2, 6)
    classifier = small_model(FastWeightForSequenceClassification, **fields)
    for one in (model, model.model, classifier):
        caches = [cache_of(one, ids[:, :4]) for _ in range(2)]
        rest = {"input_ids": ids[:, 4:], "attention_mask": torch.ones_like(ids)}
        ours = one(**rest, past_key_values=caches[0])[0]
        assert torch.equal(one(**rest, cache=caches[1])[0], ours)
        assert not torch.allclose(one(input_ids=ids[:, 4:])[0], ours)
        with pytest.raises(ValueError, match="two names of one argument"):
            one(**rest, past_key_values=caches[0], cache=caches[1])


def test_assisted_decoding_is_for_the_baseline_alone():
    ids, options = words(1, 6), {"max_new_tokens": 8, "do_sample": False, "prompt_lookup_num_tokens": 2}
    with pytest.raises(ValueError, match="stateful"):
        small_model().generate(ids, **options)
    model = small_model(**SOFTMAX)
    assert torch.equal(model.generate(ids, **options), model.generate(ids, max_new_tokens=8, do_sample=False))


# Segments of one document


@torch.no_grad()
def test_segments_with_carried_state_equal_the_whole(memory_model):
    ids = words(2, 150)
    cache, logits = None, []
    for segment in ids.split([70, 1, 64, 15], dim=1):
        output = memory_model(input_ids=segment, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    whole = memory_model(input_ids=ids, use_cache=True)
    assert_close("logits", torch.cat(logits, dim=1), whole.logits)
    for state, expected in zip(states_of(cache), states_of(whole.past_key_values), strict=True):
        assert_close("state", state, expected)


def gradients_over_segments(model, ids, is_detached: bool) -> dict[str, torch.Tensor]:
    """Of a loss over the last segment alone."""
    model.zero_grad()
    cache = cache_of(model, ids[:, :5])
    assert all(state.grad_fn for layer in cache.layers for state in layer.read() if state is not None)
    if is_detached:
        for layer in cache.layers:
            layer.detach_()
        assert not any(state.requires_grad for state in states_of(cache))
    model(input_ids=ids[:, 5:], past_key_values=cache).logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradients_flow_through_segments_until_they_are_cut(memory_model):
    ids = words(2, 9)
    through = gradients_over_segments(memory_model, ids, is_detached=False)
    cut = gradients_over_segments(memory_model, ids, is_detached=True)
    memory_model.zero_grad()
    memory_model(input_ids=ids).logits[:, 5:].square().sum().backward()
    for name, parameter in memory_model.named_parameters():
        assert_close(name, through[name], parameter.grad)
    name = "model.layers.0.attention.v_proj.weight"
    assert cut[name].any() and not torch.allclose(cut[name], through[name], rtol=1e-2)


def test_gradient_checkpointing_refuses_to_drop_a_carried_state():
    model, ids = small_model(), words(2, 4)
    cache = cache_of(model, ids)
    enable_checkpointing(model)
    model(input_ids=ids, past_key_values=cache)
    with pytest.raises(ValueError, match="cannot carry `past_key_values`"):
        model.train()(input_ids=ids, past_key_values=cache)


# Padding and documents


@torch.no_grad()
def test_padding_leaves_the_memory_bit_equal(memory_model):
    cache = cache_of(memory_model, words(2, 6))
    before = states_of(cache)
    for length in (1, 7, 1):
        mask = torch.ones(2, cache.get_seq_length() + length, dtype=torch.long)
        mask[:, -length:] = 0
        cache_of(memory_model, words(2, length), past_key_values=cache, attention_mask=mask)
        assert all(torch.equal(*pair) for pair in zip(before, states_of(cache), strict=True))
    assert cache.get_seq_length() == 15


@torch.no_grad()
def test_padding_in_the_middle_leaves_no_trace(memory_model):
    ids, holes = words(2, 90), torch.ones(2, 90, dtype=torch.long)
    holes[0, 5:40] = holes[1, [0, 20, 62, 63, 64]] = 0
    output = memory_model(input_ids=ids, attention_mask=holes, use_cache=True)
    for row in range(2):
        real = holes[row].bool()
        alone = memory_model(input_ids=ids[row, real][None], use_cache=True)
        assert_close("logits", output.logits[row, real], alone.logits[0])
        for state, expected in zip(states_of(output.past_key_values), states_of(alone.past_key_values), strict=True):
            assert_close("state", state[row], expected[0])


@torch.no_grad()
def test_a_mask_of_this_segment_alone_will_do():
    """A trainer that carries the state knows no masks of earlier segments."""
    model, (first, second) = small_model(), words(2, 8).split(4, dim=1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    whole = torch.cat([torch.ones_like(mask), mask], dim=1)
    short, full = (
        model(input_ids=second, attention_mask=given, past_key_values=cache_of(model, first)).logits
        for given in (mask, whole)
    )
    assert torch.equal(short, full)


def test_masks_that_do_not_fit_are_refused():
    ids = words(2, 4)
    for fields, mask, needed in (
        ({}, torch.ones(2, 3), 4),
        ({}, torch.ones(2, 1, 4, 4), 4),
        ({"position_embedding_type": "sinusoidal"}, torch.ones(2, 4), 8),
        (SOFTMAX, torch.ones(2, 4), 8),
    ):
        model = small_model(**fields)
        cache = cache_of(model, ids)
        with pytest.raises(ValueError, match=f"cover all {needed} tokens, got \\{list(mask.shape)}"):
            model(input_ids=ids, attention_mask=mask, past_key_values=cache)


@torch.no_grad()
def test_baseline_takes_a_prepared_mask():
    model, ids = small_model(**SOFTMAX), words(2, 4)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    assert_close("logits", model(input_ids=ids, attention_mask=mask).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_packed_documents_equal_separate_ones_under_every_rule(memory_model):
    documents = [words(1, length) for length in (70, 1, 64, 20)]
    position_ids = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    packed = memory_model(input_ids=torch.cat(documents, dim=1), position_ids=position_ids)
    separate = [memory_model(input_ids=document) for document in documents]
    assert_close("logits", packed.logits, torch.cat([output.logits for output in separate], dim=1))
    for state, expected in zip(*(states_of(output.past_key_values) for output in (packed, separate[-1])), strict=True):
        assert_close("the last document's state", state, expected)


@torch.no_grad()
def test_reversed_positions_count_down_in_every_segment():
    """As in the original, where they start anew with each segment of a carried document."""
    seen = []
    model = small_model(**REVERSED)
    model.model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    table = model.model.embed_tokens.weight * 32**0.5
    ids, mask = words(1, 5), torch.tensor([[0, 1, 1, 1, 1]])
    packed = torch.tensor([[0, 1, 0, 1, 2]])
    cache = cache_of(model, ids)
    cases = (({}, [4, 3, 2, 1, 0]), ({"attention_mask": mask}, [4, 3, 2, 1, 0]))
    cases += (({"position_ids": packed}, [1, 0, 2, 1, 0]), ({"past_key_values": cache}, [4, 3, 2, 1, 0]))
    for inputs, positions in cases:
        model(input_ids=ids, **inputs)
        angles = torch.tensor(positions)[:, None] * 10000 ** -(torch.arange(0, 32, 2) / 32)
        assert_close("positions", seen[-1][0] - table[ids[0]], torch.cat([angles.sin(), angles.cos()], dim=-1))


# FAVOR+


REDRAWN = {**FAVOR, "favor_redraw": True}


def projections_of(model) -> list[torch.Tensor]:
    return [layer.attention.feature_map.projection.clone() for layer in model.base_model.layers]


@pytest.mark.parametrize(("fields", "is_redrawn"), [(FAVOR, False), (REDRAWN, True)], ids=["kept", "redrawn"])
def test_favor_is_redrawn_in_training_alone(fields, is_redrawn):
    model, ids = small_model(**fields), words(2, 5)
    first = projections_of(model)
    assert not torch.equal(*first)
    model(input_ids=ids)
    assert all(torch.equal(*pair) for pair in zip(first, projections_of(model), strict=True))
    model.train()(input_ids=ids)
    second = projections_of(model)
    assert all(torch.equal(*pair) != is_redrawn for pair in zip(first, second, strict=True))
    model.eval()(input_ids=ids)
    assert all(torch.equal(*pair) for pair in zip(second, projections_of(model), strict=True))


def test_favor_after_training_is_saved_bit_equal(tmp_path):
    model, ids = small_model(**REDRAWN), words(2, 5)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    model.eval().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    loaded = FastWeightForCausalLM.from_pretrained(tmp_path)
    for layer, projection in enumerate(projections_of(model)):
        assert torch.equal(saved[f"model.layers.{layer}.attention.feature_map.projection"], projection)
        assert torch.equal(projections_of(loaded)[layer], projection)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_redrawn_favor_survives_gradient_checkpointing(use_reentrant):
    """The second pass over a block must see the features of the first."""
    model, ids, results = small_model(**REDRAWN, dropout=0.2).train(), words(2, 7), []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            enable_checkpointing(model, use_reentrant)
        set_seed(1)
        results.append(loss_and_gradients(model, {"input_ids": ids, "labels": ids}))
    for name, expected in results[0].items():
        assert_close(name, results[1][name], expected, relative=1e-6, absolute=1e-6)


# Classification


TEXTS = (7, 3, 1)


@pytest.mark.parametrize("fields", [{}, FULL_NORM, FAVOR, SOFTMAX, REVERSED], ids=lambda fields: ",".join(fields))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("has_mask", [True, False], ids=["mask", "padding_id"])
@torch.no_grad()
def test_classifier_ignores_padding(fields, side, has_mask):
    model = small_model(FastWeightForSequenceClassification, num_labels=3, **fields)
    rows = [words(length).tolist() for length in TEXTS]
    ids, mask = pad(rows, side, model.config.pad_token_id)
    logits = model(input_ids=ids, **({"attention_mask": mask} if has_mask else {})).logits
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    assert logits.shape == (3, 3)
    assert_close("logits", logits, alone)
    if has_mask:
        embedded = model.get_input_embeddings()(ids)
        assert_close("embedded", model(inputs_embeds=embedded, attention_mask=mask).logits, alone)
    for row, length in zip(rows, TEXTS, strict=True):
        hidden_states = model.model(input_ids=torch.tensor([row])).last_hidden_state
        assert_close("last token", model.score(hidden_states[0, length - 1]), alone[rows.index(row)])


@torch.no_grad()
def test_classifier_goes_on_from_a_cache():
    model, ids = small_model(FastWeightForSequenceClassification, num_labels=3), words(2, 8)
    first = model(input_ids=ids[:, :5], use_cache=True)
    mask = torch.tensor([[1] * 8, [1] * 7 + [0]])
    rest = model(input_ids=ids[:, 5:], attention_mask=mask, past_key_values=first.past_key_values)
    assert_close("logits", rest.logits, model(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("fields", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([2, 0]), torch.nn.functional.cross_entropy),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0]), lambda x, y: (x[:, 0] - y).square().mean()),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
            torch.nn.functional.binary_cross_entropy_with_logits,
        ),
    ],
    ids=["single_label", "regression", "multi_label"],
)
def test_classifier_losses(fields, labels, loss):
    model, ids = small_model(FastWeightForSequenceClassification, **fields), words(2, 5)
    output = model(input_ids=ids, labels=labels)
    assert_close("loss", output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_classifier_saves_and_loads(tmp_path):
    model, ids = small_model(FastWeightForSequenceClassification, num_labels=5), words(2, 5)
    model.save_pretrained(tmp_path)
    loaded, info = FastWeightForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_classifier_needs_to_know_the_padding():
    model, ids = small_model(FastWeightForSequenceClassification, pad_token_id=None), words(2, 5)
    model(input_ids=ids[:1])
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="pass an `attention_mask`, or set `pad_token_id`"):
        model(input_ids=ids)


@pytest.mark.parametrize("fields", [{}, SOFTMAX], ids=["delta", "softmax"])
def test_classifier_of_no_tokens_is_refused(fields):
    model = small_model(FastWeightForSequenceClassification, **fields)
    with pytest.raises(ValueError, match="classified by its last token, and these 2 have none"):
        model(input_ids=words(2, 0))


# The rest


@pytest.mark.parametrize("fields", [{}, SUM], ids=["delta", "sum"])
def test_the_path_is_told_once(fields, caplog, monkeypatch):
    logging.Logger.info_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.INFO, FastWeightModel.__module__)
    model = small_model(**fields)
    model(input_ids=words(1, 1))
    assert "FastWeight runs" not in caplog.text
    for _ in range(2):
        model(input_ids=words(1, 6))
    assert caplog.text.count("FastWeight runs") == caplog.text.count("in plain PyTorch, in chunks.") == 1


def test_adaptive_logits_are_log_probabilities_and_its_loss_makes_none():
    model, ids = small_model(**ADAPTIVE), words(2, 9)
    logits = model(input_ids=ids).logits
    assert_close("sum", logits.exp().sum(-1), torch.ones(2, 9))
    output = model(input_ids=ids, labels=ids)
    assert output.logits is None
    assert_close("loss", output.loss, -logits[:, :-1].gather(-1, ids[:, 1:, None]).mean())
    shifted = model(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:])
    assert_close("loss of shifted labels", shifted.loss, output.loss)


def test_classes_of_the_adaptive_softmax_stand_in_reversed_order():
    head = small_model(**ADAPTIVE).lm_head
    with torch.no_grad():
        before = head(torch.zeros(32)).exp()
        head.cluster_bias[0] += 3
        after = head(torch.zeros(32)).exp()
    assert (after[40:] > before[40:]).all() and (after[:40] < before[:40]).all()


def test_new_weights_are_drawn_as_configured():
    fields = {"initializer_range": 0.5, "norm_initializer_range": 0.25, **ADAPTIVE}
    model = FastWeightForCausalLM(small_config(hidden_size=128, vocab_size=400, num_hidden_layers=4, **fields))
    gains = torch.cat([tensor for name, tensor in model.named_parameters() if "norm.weight" in name])
    assert gains.mean().item() == pytest.approx(1, abs=0.03) and gains.std().item() == pytest.approx(0.25, rel=0.1)
    table = model.get_input_embeddings().weight
    assert not table[model.config.pad_token_id].any()
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weight = getattr(model.model.layers[0].attention, name).weight
        assert weight.std().item() == pytest.approx(0.5, rel=0.05), name
    assert table[1:].std().item() == pytest.approx(0.5, rel=0.05)
    assert not any(tensor.any() for name, tensor in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("fields", [{}, SUM, FULL_NORM, REVERSED], ids=lambda fields: ",".join(fields))
@torch.no_grad()
def test_no_tokens_change_nothing(fields):
    model, ids = small_model(**fields), words(2, 5)
    assert model(input_ids=ids[:, :0]).logits.shape == (2, 0, VOCAB_SIZE)
    mask = torch.ones(2, 5, dtype=torch.long)
    cache = cache_of(model, ids, attention_mask=mask)
    before, length = copy.deepcopy(cache), cache.get_seq_length()
    assert model(input_ids=ids[:, :0], attention_mask=mask, past_key_values=cache).logits.shape == (2, 0, VOCAB_SIZE)
    assert cache.get_seq_length() == length
    after = [model(input_ids=ids, past_key_values=each).logits for each in (before, cache)]
    assert torch.equal(*after)


@pytest.mark.parametrize("fields", [{}, ADAPTIVE], ids=["plain", "adaptive"])
def test_labels_of_another_shape_are_refused(fields):
    model, ids = small_model(**fields), words(2, 5)
    for labels in (ids[:, :4], torch.cat([ids, ids], dim=1), ids[:1], ids[..., None]):
        with pytest.raises(ValueError, match=r"`labels` .* must have the shape of the input \[2, 5\]"):
            model(input_ids=ids, labels=labels)
        with pytest.raises(ValueError, match="`labels`"):
            model(inputs_embeds=torch.zeros(2, 5, 32), labels=labels)


def test_reads_beyond_float16_are_refused():
    model = small_model(output_scale=1e9).half()
    with pytest.raises(ValueError, match=r"above 65,504, .* `attention_norm='output'` \(now 'none'\)"):
        model(input_ids=words(1, 4))
    assert small_model().half()(input_ids=words(1, 4)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "phrases"),
    [
        *(
            ({name: 0}, [f"`{name}`", "at least 1", "got 0"])
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "head_dim",
                "intermediate_size",
                "max_position_embeddings",
                "dpfp_nu",
                "favor_features",
            )
        ),
        ({"num_attention_heads": 0}, ["`num_attention_heads` (0)", "`hidden_size` (32)"]),
        ({"num_attention_heads": 0, "head_dim": 8}, ["`num_attention_heads`", "at least 1", "got 0"]),
        ({"num_attention_heads": 5}, ["`num_attention_heads` (5) must divide `hidden_size` (32)", "`head_dim`"]),
        ({"dpfp_nu": -1}, ["`dpfp_nu`", "got -1"]),
        *(({name: 1}, [f"`{name}`", "[0, 1)", "got 1"]) for name in DROPOUTS),
        *(({name: -0.1}, [f"`{name}`", "got -0.1"]) for name in DROPOUTS),
        ({"attention_dropout": 0.1}, ["`attention_dropout` (0.1)", "update_rule='softmax'"]),
        ({"layer_norm_eps": 0.0}, ["`layer_norm_eps`", "positive", "got 0.0"]),
        ({"attention_norm_eps": -1.0}, ["`attention_norm_eps`", "positive", "got -1.0"]),
        *(
            ({name: -1}, [f"`{name}`", "not be negative", "got -1"])
            for name in ("favor_eps", "key_norm_eps", "initializer_range", "norm_initializer_range")
        ),
        *(
            ({name: "other"}, [f"`{name}` must be one of", choice, "got 'other'"])
            for name, choice in (
                ("update_rule", "'delta'"),
                ("feature_map", "'dpfp'"),
                ("favor_layout", "'columns'"),
                ("key_norm", "'sum'"),
                ("attention_norm", "'full'"),
                ("position_embedding_type", "'sinusoidal_reversed'"),
                ("norm_position", "'pre_quirk'"),
                ("hidden_act", "relu"),
            )
        ),
        ({"hidden_size": 33, "head_dim": 8, **SOFTMAX}, ["even `hidden_size`", "got 33"]),
        ({"update_rule": "sum", "attention_norm": "full"}, ["`attention_norm='full'`", "Use 'output'"]),
        ({"feature_map": "tanh"}, ["`feature_map='tanh'`", "set `key_norm` and `attention_norm` to 'none'"]),
        (
            {"feature_map": "tanh", "key_norm": "none", "attention_norm": "output"},
            ["`feature_map='tanh'`", "`attention_norm`"],
        ),
        ({"adaptive_cutoffs": []}, ["`adaptive_cutoffs` must rise", "got []"]),
        ({"adaptive_cutoffs": [0, 20]}, ["`adaptive_cutoffs` must rise", "got [0, 20]"]),
        ({"adaptive_cutoffs": [40, 20]}, ["`adaptive_cutoffs` must rise", "got [40, 20]"]),
        ({"adaptive_cutoffs": [20, 60]}, ["`vocab_size` (60)", "got [20, 60]"]),
        ({"hidden_size": "32"}, ["hidden_size", "int", "'32'"]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_config_errors_name_field_and_value(fields, phrases):
    with pytest.raises((StrictDataclassError, ValueError)) as error:
        small_config(**fields)
    for phrase in phrases:
        assert phrase in str(error.value)
