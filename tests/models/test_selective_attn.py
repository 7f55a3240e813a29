# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""SelectiveAttn: the equivalences of language models with and without budgets, and what only votes have."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models.causal_lm_suite import CausalLMSuite
from models.suite import FIRST_WORD, loss_and_gradients, pad, perturb
from packaging.version import Version
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, __version__, set_seed

from leanformers.accounting import cache_bytes
from leanformers.modeling.selective_attn import (
    SelectiveAttnConfig,
    SelectiveAttnForCausalLM,
    SelectiveAttnForSequenceClassification,
    SelectiveAttnModel,
    attention_layer,
)
from numerics import assert_close

VOCAB_SIZE = 60
PLAIN = {"use_selective_attention": False}
GROUPED = {
    "num_key_value_heads": 2,
    "qk_norm": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "selection_head": 3,
    "tie_word_embeddings": False,
}
LEARNED = {"position_embedding_type": "learned", "max_position_embeddings": 64, "protect_self": False}
WINDOW = {"sliding_window": 4}
CONFIGS = {
    "default": {},
    "grouped": GROUPED,
    "learned": LEARNED,
    "mixed": {"use_selective_attention": [True, False], "protect_start": False},
    "window": WINDOW,
    "mixed_window": {"use_selective_attention": [False, True], "sliding_window": 5},
    "plain": PLAIN,
}
BUDGETS = {
    "small": {"memory_budgets": 3},
    "of_each_layer": {"memory_budgets": [2, 5], **GROUPED},
    "window": {"memory_budgets": [3, 4], "sliding_window": 5, "protect_start": False},
    "learned": {"memory_budgets": 4, **LEARNED},
}


def small_config(**fields) -> SelectiveAttnConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return SelectiveAttnConfig(**{**sizes, "intermediate_size": 48, **fields})


def small_model(model_class: type = SelectiveAttnForCausalLM, implementation: str = "sdpa", **fields):
    set_seed(0)
    model = model_class._from_config(small_config(**fields), attn_implementation=implementation)
    perturb(model, 0.3)  # so that votes weigh
    return model.eval()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCAB_SIZE, shape)


def cache_of(model, ids: torch.Tensor, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, **inputs).past_key_values


class TestSelectiveAttnForCausalLM(CausalLMSuite):
    config_class, base_model_class = SelectiveAttnConfig, SelectiveAttnModel
    model_class = SelectiveAttnForCausalLM
    metadata_fields = {"bos_token_id": "what `generate` starts with when it is given no prompt"}
    field_changes = {
        "vocab_size": ({}, 64),
        "hidden_size": ({}, 64),
        "intermediate_size": ({}, 32),
        "num_hidden_layers": ({}, 3),
        "num_attention_heads": ({}, 2),
        "num_key_value_heads": ({}, 2),
        "head_dim": ({}, 4),
        "hidden_act": ({}, "gelu"),
        "use_selective_attention": ({}, [True, False]),
        "selection_head": ({}, 1),
        "protect_start": ({}, False),
        "protect_self": ({}, False),
        "selection_strength": ({}, 0.5),
        "memory_budgets": ({}, [3, 4]),
        "prune_prompt": ({"memory_budgets": 3}, "lazy"),
        "memory_loss_coef": ({}, 0.1),
        "memory_loss_tau": ({"memory_loss_coef": 0.1}, 0.5),
        "position_embedding_type": ({}, "learned"),
        "rope_parameters": ({}, {"rope_type": "default", "rope_theta": 100.0}),
        "max_position_embeddings": ({"position_embedding_type": "learned"}, 64),
        "sliding_window": ({}, 3),
        "qk_norm": ({}, True),
        "attention_bias": ({}, True),
        "attention_output_bias": ({}, True),
        "mlp_bias": ({}, True),
        "attention_dropout": ({}, 0.3),
        "rms_norm_eps": ({}, 1e-2),
        "initializer_range": ({}, 0.1),
        "tie_word_embeddings": ({}, False),
        "use_cache": ({}, False),
        "pad_token_id": ({}, 5),
        "eos_token_id": ({}, list(range(VOCAB_SIZE))),
    }
    fixed_buffers = ("inv_freq",)
    padding_has_weights = False  # it reads nothing
    configs = CONFIGS

    def pytest_generate_tests(self, metafunc):
        super().pytest_generate_tests(metafunc)
        if "config" in metafunc.fixturenames:
            metafunc.parametrize("config", self.configs.values(), ids=self.configs, indirect=True)

    @pytest.fixture
    def config(self, request) -> SelectiveAttnConfig:
        return small_config(**request.param)

    def small_config(self, **fields) -> SelectiveAttnConfig:
        return small_config(**fields)

    def visible(self, config, mask):
        seen = super().visible(config, mask)
        return seen if config.sliding_window is None else seen.triu(1 - config.sliding_window)

    def test_gradient_checkpointing_leaves_the_cache_alone(self, model, config, rows):
        with pytest.raises(ValueError, match="cannot carry `past_key_values`"):
            super().test_gradient_checkpointing_leaves_the_cache_alone(model, config, rows)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("chunks", [[1] * 10, [7, 1, 1, 1], [3, 2, 5], [1, 9]], ids=str)
    def test_cached_chunks_equal_the_whole(self, model, config, rows, chunks, side):
        if config.sliding_window is not None and not all(config.selective_layers) and side == "right":
            pytest.skip("the window of transformers' own attention counts padding in the middle as tokens")
        super().test_cached_chunks_equal_the_whole(model, config, rows, chunks, side)


class TestUnderBudgets(TestSelectiveAttnForCausalLM):
    """Layers that hold less than the text: with a cache, in any chunks, and in one pass without."""

    configs = BUDGETS
    test_every_config_field_is_accounted_for = test_config_field_changes_something = None
    test_torch_compile_for_training = None  # nothing is pruned in training
    test_torch_export = None  # token by token, which an exporter unrolls for one length

    def visible(self, config, mask):
        return None

    def test_hidden_states_and_attention_outputs(self, config, rows):
        model, batch = self.build(config, attn_implementation="eager"), self.batch(config, rows)
        with torch.no_grad():
            weights = model(**batch, output_attentions=True).attentions
        for layer, layer_weights in enumerate(weights):
            read = (layer_weights > 0).any(dim=1)
            assert torch.equal(read, (layer_weights > 0).all(dim=1))  # what is held is held for all heads
            assert read.sum(-1).max() == config.memory_budget(layer)

    @pytest.mark.parametrize("kind", ["assistant", "prompt_lookup"])
    def test_assisted_decoding_matches_greedy_search(self, model, config, rows, kind):
        """Refused beforehand; older transformers find out at the first candidate that is rejected."""
        try:
            super().test_assisted_decoding_matches_greedy_search(model, config, rows, kind)
        except ValueError as error:
            assert any(reason in str(error) for reason in ("a cache that can be cropped", "memory budget"))
        else:
            assert Version(__version__) < Version("5.23")


# Votes and what is held


def held_positions(cache, row: int = 0) -> list[list[int]]:
    """The positions that each layer holds, in order."""
    return [sorted(each for each in layer.positions[row].tolist() if each >= 0) for layer in cache.layers]


@pytest.mark.parametrize("fields", [*BUDGETS.values(), {"memory_budgets": 6, "prune_prompt": "lazy"}], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_long_texts_fill_as_many_slots_as_the_budget(fields, implementation):
    model, ids = small_model(implementation=implementation, **fields), words(2, 40)
    config = model.config
    for chunks in ([1] * 40, [20, 1, 1, 18], [40]):
        cache = DynamicCache(config=config)
        for chunk in ids.split(chunks, dim=1):
            model(input_ids=chunk, past_key_values=cache)
        assert cache.get_seq_length() == 40
        slots = [config.memory_budget(layer) for layer in range(2)]
        assert [layer.keys.shape[2] for layer in cache.layers] == slots
        for layer, positions in enumerate(held_positions(cache)):
            assert len(positions) == slots[layer] and positions[-1] == 39
            assert positions[0] == 0 or config.sliding_window is not None
        # Keys and values; votes (4 bytes), positions (8) and first tokens (1); and a count of 8 bytes for each row.
        per_slot = 2 * config.num_key_value_heads * config.head_dim * 4 + 13
        assert cache_bytes(cache) == sum(2 * (budget * per_slot + 8) for budget in slots)


@torch.no_grad()
def test_slots_of_bfloat16_have_votes_in_float32():
    model, ids = small_model(memory_budgets=5).bfloat16(), words(3, 12)
    cache = cache_of(model, ids)
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
    assert {layer.votes.dtype for layer in cache.layers} == {torch.float32}
    assert cache_bytes(cache) == 2 * 3 * (5 * (2 * 4 * 8 * 2 + 13) + 8)


@pytest.mark.parametrize("fields", [{"memory_budgets": 4}, {"memory_budgets": [3, 6], **GROUPED}], ids=str)
@pytest.mark.parametrize("chunks", [[40], [5, 35], [4, 1, 33, 2], [1] * 40], ids=len)
@torch.no_grad()
def test_long_prompts_in_pieces_are_the_whole(fields, chunks, monkeypatch):
    monkeypatch.setattr(attention_layer, "PROMPT_PIECE", 7)
    model, ids = small_model(**fields), words(2, 40)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :9] = 0
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert_close(
        "eager", small_model(implementation="eager", **fields)(ids, mask).logits[mask > 0], expected[mask > 0]
    )
    cache, logits, end = DynamicCache(config=model.config), [], 0
    for chunk in ids.split(chunks, dim=1):
        end += chunk.shape[1]
        logits.append(model(input_ids=chunk, attention_mask=mask[:, :end], past_key_values=cache).logits)
    assert_close("logits", torch.cat(logits, dim=1)[mask > 0], expected[mask > 0])


@pytest.mark.parametrize("fields", [{}, GROUPED, LEARNED, WINDOW], ids=lambda fields: ",".join(fields))
@torch.no_grad()
def test_lazy_prompts_are_read_in_full_and_pruned_behind(fields):
    model = small_model(memory_budgets=[4, 6], prune_prompt="lazy", **fields)
    free = small_model(**fields)
    ids, mask = pad([words(12).tolist(), words(7).tolist()], "left", 0)
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
    whole = free(input_ids=ids, attention_mask=mask, use_cache=True)
    assert_close("logits", logits[mask > 0], whole.logits[mask > 0])
    for layer, budget in enumerate((4, 6)):
        full = whole.past_key_values.layers[layer]
        for row, length in enumerate((12, 7)):
            votes = full.votes[row, 12 - length :].tolist()
            rest = sorted(range(1, length), key=lambda place: (votes[place], -place))
            assert held_positions(cache, row)[layer] == sorted([0, *rest[: budget - 1]])
    assert [layer.keys.shape[2] for layer in cache.layers] == [4, 6]


@torch.no_grad()
def test_a_cache_without_budget_is_pruned_when_one_is_set():
    """The same as a lazy prompt, and as strict as any from then on."""
    model, ids, rest = small_model(), words(2, 12), words(2, 9)
    cache = cache_of(model, ids)
    lazy = small_model(memory_budgets=5, prune_prompt="lazy")
    other = cache_of(lazy, ids)
    model.config.memory_budgets = 5
    for step in rest.split(1, dim=1):
        expected = lazy(input_ids=step, past_key_values=other).logits
        assert_close("step", model(input_ids=step, past_key_values=cache).logits, expected)
        assert [layer.keys.shape[2] for layer in cache.layers] == [5, 5]
    chunk = words(2, 4)
    after, steps = model(chunk, past_key_values=cache).logits, []
    for step in chunk.split(1, dim=1):
        steps.append(lazy(step, past_key_values=other).logits)
    assert_close("chunk", after, torch.cat(steps, dim=1))
    assert held_positions(cache) == held_positions(other)


def test_nothing_is_pruned_in_training():
    model, ids = small_model(memory_budgets=2), words(2, 9)
    free = small_model()
    batch = {"input_ids": ids, "labels": ids}
    expected = loss_and_gradients(free.train(), batch)
    for name, tensor in loss_and_gradients(model.train(), batch).items():
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, free(ids).logits)
        assert not torch.allclose(model.eval()(ids).logits, free.eval()(ids).logits)


@pytest.mark.parametrize("fields", [{}, WINDOW, {"memory_budgets": 4}], ids=str)
@torch.no_grad()
def test_a_strength_of_zero_is_attention_without_votes(fields):
    model, ids = small_model(**fields), words(2, 9)
    plain = small_model(**{**PLAIN, **{name: value for name, value in fields.items() if name != "memory_budgets"}})
    assert not torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-3)
    model.config.selection_strength = 0.0  # read at every call
    if "memory_budgets" in fields:
        model.config.memory_budgets = 9
    assert_close("logits", model(ids).logits, plain(ids).logits)


# Outputs


@pytest.mark.parametrize("fields", [{}, GROUPED, {"use_selective_attention": [True, False]}], ids=str)
@torch.no_grad()
def test_selections_are_the_votes_that_each_token_finds(fields):
    model, ids = small_model(implementation="eager", **fields), words(2, 9)
    output = model(ids, output_selections=True, output_memories=True)
    num_selective = sum(model.config.selective_layers)
    selections = [each for each in output.selections if each is not None]
    memories = [each for each in output.memories if each is not None]
    assert len(selections) == len(memories) == num_selective
    for layer, (selection, memory) in enumerate(zip(selections, memories, strict=True)):
        assert selection.shape == (2, 9, 9) and memory.shape == (2, 9)
        assert selection.any() and not selection.triu().any() and not selection[..., 0].any()
        kept = 1 - selection.clamp(max=1.0)
        assert_close("M", memory, kept.tril(-1).sum(-1))
        votes = output.past_key_values.layers[layer].votes
        assert (votes >= selection[:, -1] - 1e-6).all()
    assert torch.equal(model(ids).logits, output.logits)
    fast = small_model(**fields)(ids, output_memories=True)
    for memory, expected in zip((each for each in fast.memories if each is not None), memories, strict=True):
        assert_close("M", memory, expected)
    assert model(ids).selections is None and model(ids).memories is None


@torch.no_grad()
def test_selections_of_steps_are_those_of_the_whole():
    model, ids = small_model(implementation="eager"), words(2, 6)
    whole = model(ids, output_selections=True, output_memories=True, output_attentions=True)
    cache = cache_of(model, ids[:, :5])
    step = model(
        ids[:, 5:], past_key_values=cache, output_selections=True, output_memories=True, output_attentions=True
    )
    for name in ("selections", "memories", "attentions"):
        for one, all_of_it in zip(step[name], whole[name], strict=True):
            expected = all_of_it[:, -1:] if name != "attentions" else all_of_it[:, :, -1:]
            assert_close(name, one, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"memory_budgets": 3}, WINDOW], ids=str)
@torch.no_grad()
def test_memories_of_steps_are_those_of_the_whole(fields, implementation):
    model = small_model(implementation=implementation, **fields)
    ids, mask = pad([words(9).tolist(), words(6).tolist()], "left", 0)
    whole = model(ids, attention_mask=mask, use_cache=False, output_memories=True).memories
    cache, steps = DynamicCache(config=model.config), []
    for place in range(9):
        step = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, : place + 1]}
        steps.append(model(**step, past_key_values=cache, output_memories=True).memories)
    for layer, expected in enumerate(whole):
        assert_close("M", torch.cat([step[layer] for step in steps], dim=1), expected)


def test_selections_need_the_form_that_has_them():
    with pytest.raises(ValueError, match=r"load the model with attn_implementation='eager' \(now 'sdpa'\)"):
        small_model()(words(1, 4), output_selections=True)
    assert small_model()(words(1, 4), output_memories=True).memories[0].shape == (1, 4)


# The cache


@pytest.mark.parametrize("fields", [{}, GROUPED, WINDOW, {"protect_self": False, "protect_start": False}], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("chunks", "removed"), [([9], 3), ([5, 1, 1, 2], 3), ([2, 7], 9), ([1] * 9, 1), ([6, 3], 0)])
@torch.no_grad()
def test_tokens_taken_back_leave_no_trace(fields, implementation, chunks, removed):
    model = small_model(implementation=implementation, **fields)
    ids, mask = pad([words(9).tolist(), words(6).tolist()], "left", 0)
    cache, end = DynamicCache(config=model.config), 0
    cache.activate_past_recording()
    for chunk in ids.split(chunks, dim=1):
        end += chunk.shape[1]
        model(input_ids=chunk, attention_mask=mask[:, :end], past_key_values=cache)
    cache.crop(-removed)
    left = 9 - removed
    assert cache.get_seq_length() == left
    rest = words(2, 4)
    whole = {
        "input_ids": torch.cat([ids[:, :left], rest], dim=1),
        "attention_mask": torch.cat([mask[:, :left], torch.ones_like(rest)], dim=1),
    }
    for chunk in (rest[:, :1], rest[:, 1:]):  # and taken back again
        left += chunk.shape[1]
        step = model(input_ids=chunk, attention_mask=whole["attention_mask"][:, :left], past_key_values=cache)
    assert_close("logits", step.logits, model(**whole, use_cache=False).logits[:, -3:])
    cache.crop(-2)
    again = model(rest[:, 2:], attention_mask=whole["attention_mask"], past_key_values=cache)
    assert_close("logits", again.logits, step.logits[:, 1:])


@pytest.mark.parametrize("fields", [{}, GROUPED, {"memory_budgets": [3, 5], "sliding_window": 6}], ids=str)
@pytest.mark.parametrize("chunks", [[5, 7], [4, 1, 1, 6], [1] * 12], ids=len)
def test_gradients_flow_through_the_cache(fields, chunks):
    """Slots are overwritten, but not where the backward pass needs what was there."""
    model, ids = small_model(**fields), words(2, 12)
    model(ids, use_cache=False).logits.square().mean().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    cache = DynamicCache(config=model.config)
    logits = [model(chunk, past_key_values=cache).logits for chunk in ids.split(chunks, dim=1)]
    torch.cat(logits, dim=1).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert_close(name, parameter.grad, expected[name])


@torch.no_grad()
def test_what_cannot_be_taken_back_is_told():
    model, ids = small_model(), words(1, 6)
    cache = cache_of(model, ids)
    with pytest.raises(
        ValueError, match=r"The votes of the last 0 tokens are recorded, not of 2: call .*activate_past"
    ):
        cache.crop(-2)
    assert cache.get_seq_length() == 6
    cache.activate_past_recording()
    model(words(1, 3), past_key_values=cache)
    with pytest.raises(ValueError, match="last 3 tokens are recorded, not of 4"):
        cache.crop(-4)
    with pytest.raises(ValueError, match="minus the number of tokens to remove, got 2"):
        cache.layers[0].crop(2)
    cache = cache_of(small_model(memory_budgets=4), ids)
    assert not cache.is_croppable
    with pytest.raises(ValueError, match=r"memory budget \(4\) has dropped tokens .* keep a copy of the cache"):
        cache.crop(-1)
    long = DynamicCache(config=model.config)
    long.activate_past_recording()
    model(words(1, 200), past_key_values=long)
    with pytest.raises(ValueError, match="not of 129: .* crop at most 128"):
        long.crop(-129)


@torch.no_grad()
def test_copies_and_empty_caches():
    model, ids = small_model(memory_budgets=5), words(2, 9)
    cache = cache_of(model, ids)
    other, step = copy.deepcopy(cache), words(2, 1)
    expected = model(step, past_key_values=cache).logits
    assert torch.equal(model(step, past_key_values=other).logits, expected)
    assert cache.get_max_length() == -1 and not cache.is_compileable
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache_bytes(cache)
    assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


def test_caches_of_another_kind_are_refused():
    model, plain, ids = small_model(), small_model(**PLAIN), words(1, 4)
    with pytest.raises(ValueError, match="DynamicCache. keeps votes for 0 layers, 2 select: make it as `DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="keeps votes for 2 layers, 0 select"):
        plain(ids, past_key_values=DynamicCache(config=model.config))
    for kind in ("static", "offloaded_static", "quantized"):
        with pytest.raises(ValueError, match=f"cache_implementation='{kind}' has no place for votes"):
            model.generate(ids, cache_implementation=kind, max_new_tokens=2)


@torch.no_grad()
def test_packed_documents_are_continued_by_what_follows_the_last():
    for fields in ({}, {"memory_budgets": 3}, GROUPED):
        model = small_model(**fields)
        first, second, rest = words(1, 5), words(1, 6), words(1, 3)
        position_ids = torch.cat([torch.arange(5), torch.arange(6)])[None]
        cache = cache_of(model, torch.cat([first, second], dim=1), position_ids=position_ids)
        places = {"position_ids": torch.arange(6, 9)[None]}
        logits = model(rest, past_key_values=cache, **places).logits
        expected = model(torch.cat([second, rest], dim=1), use_cache=False).logits[:, 6:]
        assert_close("logits", logits, expected)


@pytest.mark.parametrize("fields", [{}, {"memory_budgets": 5}, {"use_selective_attention": [True, False]}], ids=str)
@torch.no_grad()
def test_chunked_prefill_generates_the_same(fields):
    model = small_model(**fields)
    ids, mask = pad([words(9).tolist(), words(4).tolist()], "left", 0)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert torch.equal(expected, model.generate(ids, **options, use_cache=False))
    for size in (1, 4, 9):
        assert torch.equal(model.generate(ids, **options, prefill_chunk_size=size), expected)


# Attention backends


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash-attn2"]
)
def test_backends_without_logits_are_refused(name, tmp_path):
    reason = f"attn_implementation='{name}' keeps its logits to itself, .* use 'sdpa' or 'eager', or"
    model = small_model()
    with pytest.raises(ValueError, match=reason):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        SelectiveAttnForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(ValueError, match=reason):
        SelectiveAttnForCausalLM._from_config(small_config(), attn_implementation=name)
    with pytest.raises(ValueError, match='"no_attention"` is not supported'):
        model.set_attn_implementation("no_attention")


@torch.no_grad()
def test_layers_that_do_not_select_take_other_backends():
    model, ids = small_model(**PLAIN), words(2, 9)
    expected = model(ids).logits
    model.set_attn_implementation("flex_attention")
    assert_close("logits", model(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_key_value_heads": 2, "attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "head_dim": 16,
            "tie_word_embeddings": False,
        },
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "hidden_act": "gelu"},
    ],
    ids=["plain", "grouped_biases", "llama3", "linear"],
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_layers_that_do_not_select_are_those_of_llama(fields, implementation):
    """Bit for bit, in logits, loss and gradients."""
    ours = small_model(implementation=implementation, **PLAIN, **fields)
    config = ours.config.to_dict()
    config.pop("attention_output_bias")
    theirs = LlamaForCausalLM._from_config(
        LlamaConfig(**{name: value for name, value in config.items() if name not in ("model_type", "architectures")}),
        attn_implementation=implementation,
    )
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and not unexpected
    theirs.eval()
    ids, mask = pad([words(9).tolist(), words(6).tolist()], "left", 0)
    # Llama counts padding among the positions, if it is not told them.
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        assert torch.equal(ours(ids, mask).logits, theirs(**inputs).logits)
        packed = {
            "input_ids": ids[:1],
            "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
            "use_cache": False,
        }
        assert torch.equal(ours(**packed).logits, theirs(**packed).logits)
    batch = {**inputs, "labels": ids.masked_fill(mask == 0, -100)}
    expected = loss_and_gradients(theirs, batch)
    for name, tensor in loss_and_gradients(ours, batch).items():
        assert torch.equal(tensor, expected[name]), name
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


# The memory loss


def by_definition(selections, mask: torch.Tensor, tau: float) -> torch.Tensor:
    """(sum_l max_i M^l_i) / (L n), a mean over rows, with loops."""
    total = 0.0
    for row, is_real in enumerate(mask.bool()):
        real = is_real.nonzero()[:, 0].tolist()
        for selection in selections:
            kept = [sum(1 - min(selection[row, i, j].item(), tau) / tau for j in real if j < i) for i in real]
            total += max(kept) / len(selections) / len(real)
    return total / len(mask)


@pytest.mark.parametrize("tau", [1.0, 0.4])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"use_selective_attention": [False, True]}], ids=["all", "one_layer"])
def test_memory_loss_is_its_formula(tau, side, implementation, fields):
    fields = {**fields, "memory_loss_tau": tau}
    ids, mask = pad([words(9).tolist(), words(6).tolist(), words(2).tolist()], side, 0)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    model = small_model(implementation=implementation, memory_loss_coef=0.3, **fields)
    shown = small_model(implementation="eager", **fields)(ids, mask, output_selections=True).selections
    expected = by_definition([each for each in shown if each is not None], mask, tau)
    output = model.train()(**batch)
    assert output.memory_loss.item() == pytest.approx(expected, rel=1e-5)
    without = small_model(implementation=implementation, **fields).train()(**batch)
    assert without.memory_loss is None
    assert output.loss.item() == pytest.approx(without.loss.item() + 0.3 * expected, rel=1e-5)
    assert model.eval()(**batch).loss.item() == pytest.approx(without.loss.item(), rel=1e-6)
    assert model(**batch).memory_loss is None and model.train()(ids, mask).memory_loss is None


def test_memory_loss_has_a_gradient():
    ids = words(2, 9)
    model = small_model(memory_loss_coef=0.5, memory_loss_tau=50.0).train()
    with_it = loss_and_gradients(model, {"input_ids": ids, "labels": ids})
    model.config.memory_loss_coef = 0.0
    without = loss_and_gradients(model, {"input_ids": ids, "labels": ids})
    model.zero_grad()
    model.config.memory_loss_coef = 0.5
    (0.5 * model(ids, labels=ids).memory_loss).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(name, with_it[name], without[name] + parameter.grad)
    # The votes of head 0 alone are asked for.
    assert model.model.layers[1].self_attn.q_proj.weight.grad[:8].any()
    assert not model.model.layers[1].self_attn.q_proj.weight.grad[8:].any()


def test_memory_losses_of_accumulated_gradients_are_that_of_one_batch():
    """Rows of equal length, as packed texts are; each has the same share in the mean."""
    model, ids = small_model(memory_loss_coef=0.7).train(), words(4, 9)
    whole = loss_and_gradients(model, {"input_ids": ids, "labels": ids})
    parts = [
        loss_and_gradients(model, {"input_ids": part, "labels": part, "num_items_in_batch": torch.tensor(4 * 8)})
        for part in ids.split([1, 3])
    ]
    for name, expected in whole.items():
        assert_close(name, sum(part[name] for part in parts), expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_texts_of_one_token_have_a_memory_loss_of_zero(use_cache):
    model, ids = small_model(memory_loss_coef=0.5).train(), words(2, 1)
    output = model(ids, labels=ids, shift_labels=ids, use_cache=use_cache)
    assert output.memory_loss.item() == 0 and output.loss.isfinite()


# Training


@pytest.mark.parametrize("fields", [{}, PLAIN], ids=["selective", "plain"])
def test_attention_dropout_drops_in_training_alone(fields):
    ids = words(2, 12)
    model, without = small_model(attention_dropout=0.5, **fields), small_model(**fields)
    assert torch.equal(model(ids).logits, without(ids).logits)
    logits = []
    for seed in (0, 0, 1):
        set_seed(seed)
        logits.append(model.train()(ids).logits)
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])
    losses, optimizer = [], torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_votes_are_learnt():
    """Without a detour: gradients reach the head that votes through the votes alone."""
    model, ids = small_model(), words(2, 12)
    expected = loss_and_gradients(model, {"input_ids": ids, "labels": ids})
    model.config.selection_strength = 0.0
    plain = loss_and_gradients(model, {"input_ids": ids, "labels": ids})
    name = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.allclose(expected[name][:8], plain[name][:8], rtol=1e-2)


# Limits and errors


def test_texts_longer_than_learned_positions_are_refused():
    model = small_model(**{**LEARNED, "max_position_embeddings": 8})
    model(words(1, 8))
    with pytest.raises(ValueError, match=r"The text has 9 tokens, the model has learned positions for 8 .*shorten it"):
        model(words(1, 9))
    cache = cache_of(model, words(1, 8))
    with pytest.raises(ValueError, match="has 9 tokens"):
        model(words(1, 1), past_key_values=cache)
    assert small_model(max_position_embeddings=8)(words(1, 20)).logits.shape == (1, 20, VOCAB_SIZE)


def test_masks_that_do_not_fit_are_refused():
    model, ids = small_model(), words(2, 4)
    for mask in (torch.ones(2, 3), torch.ones(2, 1, 4, 4), torch.ones(4)):
        with pytest.raises(ValueError, match=r"must be \[batch, past_length \+ length\] and cover all 4 tokens"):
            model(ids, attention_mask=mask)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    plain = small_model(**PLAIN)
    assert_close("logits", plain(ids, attention_mask=mask).logits, plain(ids).logits)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`labels` \[2, 3\] must have the shape of the input \[2, 4\]"):
        small_model()(words(2, 4), labels=words(2, 3))


@pytest.mark.parametrize("fields", [{}, {"memory_budgets": 3}, LEARNED], ids=lambda fields: ",".join(fields))
@torch.no_grad()
def test_no_tokens_change_nothing(fields):
    model, ids = small_model(**fields), words(2, 5)
    assert model(ids[:, :0], use_cache=False).logits.shape == (2, 0, VOCAB_SIZE)
    cache, mask = cache_of(model, ids), torch.ones(2, 5, dtype=torch.long)
    before = copy.deepcopy(cache)
    assert model(ids[:, :0], attention_mask=mask, past_key_values=cache).logits.shape == (2, 0, VOCAB_SIZE)
    assert cache.get_seq_length() == 5
    after = [model(ids, past_key_values=each).logits for each in (before, cache)]
    assert torch.equal(*after)


BAD_CONFIGS = [
    *(
        ({name: 0}, [f"`{name}`", "at least 1", "got 0"])
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "max_position_embeddings")
    ),
    ({"intermediate_size": 0}, ["`intermediate_size`", "at least 1", "got 0"]),
    ({"num_attention_heads": 0}, ["`num_attention_heads` (0)", "`hidden_size` (32)"]),
    ({"num_attention_heads": 0, "head_dim": 8}, ["`num_attention_heads`", "at least 1", "got 0"]),
    ({"num_attention_heads": 5}, ["`num_attention_heads` (5) must divide `hidden_size` (32)", "`head_dim`"]),
    ({"num_key_value_heads": 0}, ["`num_key_value_heads`", "at least 1", "got 0"]),
    ({"num_key_value_heads": 3}, ["`num_key_value_heads` (3) must divide `num_attention_heads` (4)"]),
    ({"head_dim": 7}, ["even `head_dim`", "got 7"]),
    ({"sliding_window": 1}, ["`sliding_window`", "at least 2", "got 1"]),
    ({"attention_dropout": 1.0}, ["`attention_dropout`", "[0, 1)", "got 1.0"]),
    ({"attention_dropout": -0.1}, ["`attention_dropout`", "got -0.1"]),
    ({"rms_norm_eps": 0.0}, ["`rms_norm_eps`", "positive", "got 0.0"]),
    ({"position_embedding_type": "other"}, ["`position_embedding_type` must be one of", "'learned'", "got 'other'"]),
    ({"prune_prompt": "other"}, ["`prune_prompt` must be one of", "'lazy'", "got 'other'"]),
    ({"hidden_act": "other"}, ["`hidden_act` must be one of", "silu", "got 'other'"]),
    ({"use_selective_attention": [True]}, ["`use_selective_attention` must have 2 entries", "got [True]"]),
    ({"selection_head": 4}, ["`selection_head`", "4 heads", "got 4"]),
    ({"selection_head": -1}, ["`selection_head`", "got -1"]),
    *(
        ({name: -1.0}, [f"`{name}`", "not be negative", "got -1.0"])
        for name in ("selection_strength", "memory_loss_coef", "initializer_range")
    ),
    ({"memory_loss_tau": 0.0}, ["`memory_loss_tau`", "positive", "got 0.0"]),
    ({"memory_loss_coef": 0.1, **PLAIN}, ["`memory_loss_coef` (0.1)", "`use_selective_attention`"]),
    ({"memory_budgets": 1}, ["`memory_budgets` must be at least 2", "got 1"]),
    ({"memory_budgets": [4, 1]}, ["`memory_budgets` must be at least 2", "got [4, 1]"]),
    ({"memory_budgets": [4]}, ["`memory_budgets` must be one number, or 2", "got [4]"]),
    ({"memory_budgets": 4, **PLAIN}, ["`memory_budgets` prunes by the votes", "use_selective_attention=False"]),
    ({"memory_budgets": 4, "use_selective_attention": [True, False]}, ["`memory_budgets`", "[True, False]"]),
    ({"hidden_size": "32"}, ["hidden_size", "int", "'32'"]),
    ({"memory_budgets": "many"}, ["memory_budgets", "'many'"]),
]


@pytest.mark.parametrize(("fields", "phrases"), BAD_CONFIGS, ids=str)
def test_config_errors_name_field_and_value(fields, phrases):
    with pytest.raises((StrictDataclassError, ValueError)) as error:
        small_config(**fields)
    for phrase in phrases:
        assert phrase in str(error.value)


@pytest.mark.parametrize("fields", [*CONFIGS.values(), *BUDGETS.values()], ids=[*CONFIGS, *BUDGETS])
def test_configs_survive_a_file(fields, tmp_path):
    config = small_config(**fields)
    config.save_pretrained(tmp_path)
    loaded = SelectiveAttnConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.layer_types == config.layer_types and loaded.selective_layers == config.selective_layers


# Classification


@pytest.mark.parametrize("fields", [{}, GROUPED, PLAIN, {"memory_budgets": 3}], ids=lambda fields: ",".join(fields))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("has_mask", [True, False], ids=["mask", "padding_id"])
@torch.no_grad()
def test_classifier_ignores_padding(fields, side, has_mask):
    model = small_model(SelectiveAttnForSequenceClassification, num_labels=3, **fields)
    rows = [words(length).tolist() for length in (7, 3, 1)]
    ids, mask = pad(rows, side, model.config.pad_token_id)
    logits = model(input_ids=ids, **({"attention_mask": mask} if has_mask else {})).logits
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    assert logits.shape == (3, 3)
    assert_close("logits", logits, alone)
    if has_mask:
        embedded = model.get_input_embeddings()(ids)
        assert_close("embedded", model(inputs_embeds=embedded, attention_mask=mask).logits, alone)
    for row, expected in zip(rows, alone, strict=True):
        last = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        assert_close("last token", model.score(last), expected)


@pytest.mark.parametrize(
    ("fields", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([2, 0]), nn.functional.cross_entropy),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0]), lambda x, y: (x[:, 0] - y).square().mean()),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
            nn.functional.binary_cross_entropy_with_logits,
        ),
    ],
    ids=["single_label", "regression", "multi_label"],
)
def test_classifier_losses(fields, labels, loss):
    model, ids = small_model(SelectiveAttnForSequenceClassification, **fields), words(2, 5)
    output = model(input_ids=ids, labels=labels)
    assert_close("loss", output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_classifier_saves_and_loads(tmp_path):
    model, ids = small_model(SelectiveAttnForSequenceClassification, num_labels=5), words(2, 5)
    model.save_pretrained(tmp_path)
    loaded, info = SelectiveAttnForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_classifier_needs_to_know_the_padding():
    model, ids = small_model(SelectiveAttnForSequenceClassification, pad_token_id=None), words(2, 5)
    model(input_ids=ids[:1])
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="pass an `attention_mask`, or set `pad_token_id`"):
        model(input_ids=ids)


# Compilation


@pytest.mark.slow
@torch.no_grad()
def test_steps_of_a_full_memory_compile_once():
    model, ids = small_model(memory_budgets=6), words(2, 30)
    expected, cache = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for each in (expected, cache):
        model(ids[:, :10], past_key_values=each)
    torch.compiler.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled, seen = torch.compile(model, backend=backend, fullgraph=True), []
    for place in range(10, 30):
        step = {"input_ids": ids[:, place : place + 1]}
        logits = compiled(**step, past_key_values=cache).logits
        assert_close("logits", logits, model(**step, past_key_values=expected).logits)
        seen.append(len(graphs))
    assert seen[-1] <= 3 and seen[-1] == seen[5]
