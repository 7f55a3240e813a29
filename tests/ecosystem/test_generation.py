# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What `generate` of transformers can do, with each kind of cache there is."""

import copy
from threading import Thread

import pytest
import torch
from models.suite import pad, written
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, TextIteratorStreamer, set_seed
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from numerics import assert_close

PROMPTS = [[70, 71, 72, 73, 74, 75, 76, 77, 78], [80, 81, 82, 83], [90]]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [0]}  # padding could not be told from the rest
STATEFUL = "a memory of the past cannot be taken back"
VOTES = "its cache has a place for votes, which other caches lack; with memory_budgets its size is fixed"
MEMORY = "its cache is a memory of fixed size, and has no keys and values"
ONE_START = "the prompt of a translator is one token, and the source is read at once"


def padded_prompts() -> dict[str, torch.Tensor]:
    ids, mask = pad(PROMPTS, "left", 0)
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(model, sequences: torch.Tensor) -> torch.Tensor:
    """Without the prompt, which a translator does not repeat."""
    return sequences[:, 1 if model.config.is_encoder_decoder else padded_prompts()["input_ids"].shape[1] :]


def check_same(model, **options) -> None:
    """With `options` greedy search writes what it writes without, and for the same reasons."""
    wanted = {**padded_prompts(), **GREEDY, "output_logits": True, "return_dict_in_generate": True}
    expected, actual = (model.generate(**wanted, **kind) for kind in ({}, options))
    assert_close("logits of the first step", actual.logits[0], expected.logits[0])
    assert torch.equal(actual.sequences, expected.sequences)
    assert_close("logits", torch.stack(actual.logits), torch.stack(expected.logits))


def special_cache(subject, verdict) -> bool:
    """Whether the model refuses caches of other kinds, as it has to."""
    reason = special_reason(subject)
    if reason is not None:
        verdict.refused(reason)
    return reason is not None


def special_reason(subject) -> str | None:
    """Why the model has a cache of its own kind, if it has."""
    return MEMORY if subject.has_memory else {"SelectiveAttn": VOTES}.get(subject.name)


@pytest.mark.tool("generation", "greedy search, prompts of different lengths")
def test_padded_batch_equals_single_prompts(subject):
    model = subject.build()
    rows = written(model.generate(**padded_prompts(), **GREEDY), model.config)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert row == written(model.generate(torch.tensor([prompt]), **GREEDY), model.config)[0]
    assert any(len(row) > 10 for row in rows) or model.config.is_encoder_decoder


@pytest.mark.tool("generation", "cache, and continuing from it")
def test_cache_changes_nothing_and_can_be_continued(subject):
    model = subject.build()
    check_same(model, use_cache=False)
    if not subject.is_decoder:
        return
    options = {**GREEDY, "eos_token_id": None, "return_dict_in_generate": True}
    whole, part = (model.generate(**padded_prompts(), **options | {"max_new_tokens": n}) for n in (8, 3))
    name = "cache" if hasattr(part, "cache") else "past_key_values"
    mask = nn.functional.pad(padded_prompts()["attention_mask"], (0, 3), value=1)
    for _ in range(2):  # a copy can be continued, again and again
        cache = {name: copy.deepcopy(getattr(part, name))}
        rest = model.generate(part.sequences, attention_mask=mask, **cache, **options | {"max_new_tokens": 5})
        assert torch.equal(rest.sequences, whole.sequences)


@pytest.mark.tool("generation", "sampling")
def test_sampling_follows_the_seed(subject):
    model, drawn = subject.build(), []
    for seed, use_cache in ((0, True), (0, False), (1, True)):
        set_seed(seed)
        options = {"do_sample": True, "top_p": 0.9, "eos_token_id": None, "max_new_tokens": 6, "use_cache": use_cache}
        drawn.append(model.generate(**padded_prompts(), **options))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.tool("generation", "beam search")
def test_beams_with_a_cache_equal_beams_without(subject):
    model = subject.build()
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    sequences = model.generate(**padded_prompts(), **options)
    assert torch.equal(sequences, model.generate(**padded_prompts(), **options, use_cache=False))
    best = model.generate(**padded_prompts(), **GREEDY, num_beams=3)
    assert written(sequences, model.config)[::2] == written(best, model.config)


@pytest.mark.tool("generation", "assisted decoding")
@pytest.mark.parametrize("kind", ["assistant model", "prompt lookup"])
def test_guessed_tokens_change_nothing(subject, verdict, kind):
    model, prompt = subject.build(), torch.tensor([PROMPTS[0] * 2])
    with torch.no_grad():
        assistant = copy.deepcopy(model)
        for parameter in assistant.parameters():  # some guesses are right, some are not
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    help = {"assistant_model": assistant} if kind == "assistant model" else {"prompt_lookup_num_tokens": 3}
    if model._is_stateful:
        assert subject.is_peer or subject.has_memory
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(prompt, **GREEDY, **help)
        verdict.refused(STATEFUL)
        return
    assert torch.equal(model.generate(prompt, **GREEDY, **help), model.generate(prompt, **GREEDY))


@pytest.mark.tool("generation", "static cache")
def test_static_cache_changes_nothing(subject, verdict):
    model = subject.build()
    if special_cache(subject, verdict):
        with pytest.raises(ValueError, match="cache_implementation='static'"):
            check_same(model, cache_implementation="static")
        return
    check_same(model, cache_implementation="static")


@pytest.mark.slow
@pytest.mark.tool("generation", "static cache, compiled steps")
def test_compiled_steps_change_nothing(subject, verdict):
    model = subject.build()
    if special_cache(subject, verdict):
        with pytest.raises(ValueError, match="cache_implementation='static'"):
            check_same(model, cache_implementation="static")
        return
    expected, graphs = model.generate(**padded_prompts(), **GREEDY), []
    torch.compiler.reset()

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    # What `generate` does by itself on a GPU.
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    static = model.generate(**padded_prompts(), **GREEDY, cache_implementation="static")
    assert torch.equal(static, expected)
    assert 0 < len(graphs) <= 3


@pytest.mark.tool("generation", "quantized cache")
def test_quantized_cache_is_nearly_exact(subject, verdict):
    model, options = subject.build(), {"cache_implementation": "quantized"}
    if special_cache(subject, verdict):
        with pytest.raises(ValueError, match="cache_implementation='quantized'"):
            model.generate(**padded_prompts(), **GREEDY, **options)
        return
    if not subject.is_decoder:
        with pytest.raises(ValueError, match="does not support the quantized cache"):
            model.generate(**padded_prompts(), **GREEDY, **options)
        verdict.refused("transformers quantizes no caches of encoder-decoders")
        return
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    options["cache_config"] = {"nbits": 4, "q_group_size": 8}
    prompt = torch.tensor([PROMPTS[0] * 20])  # what is behind the last 128 tokens is quantized, but for the first step
    first, *later = (
        torch.stack(logits)
        for logits in zip(
            *(
                model.generate(prompt, **GREEDY, **kind, output_logits=True, return_dict_in_generate=True).logits
                for kind in ({}, options)
            ),
            strict=True,
        )
    )
    assert torch.equal(first[0], first[1])
    for exact, quantized in later:
        assert 0 < (quantized - exact).abs().max() < exact.std() / 2


@pytest.mark.tool("generation", "long prompts in chunks")
@pytest.mark.parametrize("size", [1, 4, 16])
def test_chunks_of_a_prompt_change_nothing(subject, verdict, size):
    model = subject.build()
    if not (subject.is_decoder or subject.is_peer):
        with pytest.raises(ValueError, match="`prefill_chunk_size` is for decoder-only models"):
            check_same(model, prefill_chunk_size=size)
        verdict.refused(ONE_START)
        return
    check_same(model, prefill_chunk_size=size)


@pytest.mark.tool("generation", "continuous batching")
def test_continuous_batches_equal_single_prompts(subject, verdict):
    if subject.name == "T5":
        pytest.skip("transformers has it for decoder-only models, and does not say so")
    options = {
        "generation_config": GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1),
        "continuous_batching_config": ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=512),
    }
    model, prompts = subject.build(), [PROMPTS[0] * 12, *PROMPTS, PROMPTS[0] * 11, PROMPTS[0] * 10]
    reason = special_reason(subject) if subject.is_decoder else "for decoder-only models"
    if reason is not None:
        with pytest.raises(ValueError, match=r"Continuous batching \(`generate_batch`\)"):
            model.generate_batch(prompts, **options)
        verdict.refused(reason)
        return
    results = model.generate_batch(prompts, **options)
    for result, prompt in zip(results.values(), prompts, strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert result.error is None and result.generated_tokens == alone[0, len(prompt) :].tolist()


@pytest.mark.tool("generation", "contrastive search, DoLa")
def test_contrastive_search_has_left_transformers(subject, verdict):
    model = subject.build()
    for options in ({"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}):
        with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
            model.generate(**padded_prompts(), **options, max_new_tokens=4)
    verdict.refused("transformers 5 loads them from the Hub, as custom_generate")


@pytest.mark.tool("generation", "a search of one's own (custom_generate)")
def test_custom_generate_gets_cache_and_processors(subject):
    def search(model, input_ids, logits_processor, generation_config, **model_kwargs):
        for _ in range(generation_config.max_new_tokens):
            inputs = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=input_ids.shape[1] if len(lengths) == 0 else 1, **model_kwargs
            )
            lengths.append(inputs.get("decoder_input_ids", inputs.get("input_ids")).shape[1])
            output = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(
                output, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
            )
            scores = logits_processor(input_ids, output.logits[:, -1])
            input_ids = torch.cat([input_ids, scores.argmax(-1, keepdim=True)], dim=1)
        return input_ids

    model, options, lengths = subject.build(), {**GREEDY, "eos_token_id": None}, []
    expected = model.generate(**padded_prompts(), **options)
    assert torch.equal(model.generate(**padded_prompts(), **options, custom_generate=search), expected)
    assert lengths[1:] == [1] * 7


@pytest.mark.tool("generation", "logits_to_keep")
def test_last_logits_alone(subject):
    model, batch = subject.build(), padded_prompts()
    if not subject.is_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        last = model(**batch, logits_to_keep=2).logits
        assert last.shape[1] == 2, "logits_to_keep changes nothing"
        assert_close("last", last, model(**batch).logits[:, -2:])


@pytest.mark.tool("generation", "streaming")
def test_streamed_text_is_what_is_written(subject, tokenizer):
    model, prompt = subject.build(), torch.tensor(PROMPTS[:1])
    readable = [*range(tokenizer.convert_tokens_to_ids("!"), tokenizer.convert_tokens_to_ids("~"))]
    options = GREEDY | {"suppress_tokens": sorted(set(range(260)) - set(readable)), "max_new_tokens": 20}
    expected = model.generate(prompt, **options)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, args=(prompt,), kwargs={**options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    assert text == tokenizer.decode(expected[0, start:]) and len(text) == 20


@pytest.mark.tool("generation", "stopping criteria, stop strings")
def test_generation_stops_where_it_is_told_to(subject, tokenizer):
    model, options = subject.build(), {**GREEDY, "eos_token_id": None}
    prompt = torch.tensor(PROMPTS[:1])
    whole = model.generate(prompt, **options)
    start = whole.shape[1] - 8
    criteria = StoppingCriteriaList([lambda ids, scores, **kwargs: torch.full((len(ids),), ids.shape[1] >= start + 3)])
    assert torch.equal(model.generate(prompt, **options, stopping_criteria=criteria), whole[:, : start + 3])
    readable = [*range(tokenizer.convert_tokens_to_ids("!"), tokenizer.convert_tokens_to_ids("~"))]
    options |= {"suppress_tokens": sorted(set(range(260)) - set(readable)), "no_repeat_ngram_size": 2}
    whole = model.generate(prompt, **options)
    stop = tokenizer.decode(whole[0, start + 3 : start + 5])
    stopped = model.generate(prompt, **options, stop_strings=[stop], tokenizer=tokenizer)
    assert torch.equal(stopped, whole[:, : stopped.shape[1]])
    assert tokenizer.decode(stopped[0]).endswith(stop) and stopped.shape[1] <= start + 5


@pytest.mark.tool("generation", "shortest and longest length")
def test_lengths_are_kept(subject):
    model, prompt = subject.build(), torch.tensor(PROMPTS[:1])
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    end_at_once = {"do_sample": False, "sequence_bias": {(3,): 1000.0}}
    assert model.generate(prompt, **end_at_once, max_new_tokens=8).shape[1] == start + 1
    ended = model.generate(prompt, **end_at_once, min_new_tokens=4, max_new_tokens=8)
    assert ended.shape[1] == start + 5 and ended[0, -1] == 3 and 3 not in ended[0, start:-1]
    never = {"do_sample": False, "sequence_bias": {(3,): -1000.0}}
    assert model.generate(prompt, **never, max_length=start + 6).shape[1] == start + 6


@pytest.mark.tool("generation", "logits processors")
def test_logits_processors_change_the_tokens(subject):
    model, prompt = subject.build(), torch.tensor(PROMPTS[:1])
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    distinct = model.generate(prompt, **options, no_repeat_ngram_size=1)[0, start:]
    assert len(set(distinct.tolist())) == 12

    def odd(input_ids, scores):
        return scores.index_fill(1, torch.arange(0, 260, 2), float("-inf"))

    for kind in (
        {"logits_processor": LogitsProcessorList([odd])},
        {"prefix_allowed_tokens_fn": lambda batch_id, ids: [5, 7, 9]},
    ):
        assert (model.generate(prompt, **options, **kind)[0, start:] % 2 == 1).all()


@pytest.mark.tool("generation", "classifier-free guidance")
def test_guidance_is_the_difference_to_a_negative_prompt(decoder):
    model, ids = decoder.build(), torch.tensor(PROMPTS[:1])
    negative = torch.tensor([PROMPTS[1]])
    options = {"do_sample": False, "guidance_scale": 3.0, "negative_prompt_ids": negative}
    options |= {"output_scores": True, "return_dict_in_generate": True, "eos_token_id": None}
    output = model.generate(ids, **options, max_new_tokens=4)
    for step, scores in enumerate(output.scores):
        written_so_far = output.sequences[:, ids.shape[1] : ids.shape[1] + step]
        with torch.no_grad():
            wanted, unwanted = (
                model(torch.cat([prompt, written_so_far], dim=1), use_cache=False).logits[:, -1].log_softmax(-1)
                for prompt in (ids, negative)
            )
        assert_close(f"step {step}", scores, unwanted + 3.0 * (wanted - unwanted), relative=1e-4, absolute=1e-4)


@pytest.mark.tool("generation", "scores, hidden states and attentions")
def test_outputs_of_generate_are_those_of_the_model(subject, verdict):
    model = subject.build()
    if not subject.has_memory:
        model.set_attn_implementation("eager")
    names = ("scores", "logits", "hidden_states", "attentions")
    options = {**GREEDY, "max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True}
    output = model.generate(**padded_prompts(), **options, **{f"output_{name}": True for name in names})
    transitions = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    prefix = "" if subject.is_decoder else "decoder_"
    batch, tokens = padded_prompts(), new_tokens(model, output.sequences)
    if subject.is_decoder:
        batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, 4), value=1)
        batch["input_ids"] = output.sequences
    else:
        batch["decoder_input_ids"] = output.sequences
    with torch.no_grad():
        forward = model(**batch, output_hidden_states=True, use_cache=False)
    logits = forward.logits[:, -5:-1]
    assert_close("logits", torch.stack(output.logits, dim=1), logits, relative=1e-4, absolute=1e-4)
    banned = logits.index_fill(2, torch.tensor([0]), float("-inf")).log_softmax(-1)
    assert_close("scores", transitions, banned.gather(2, tokens[..., None])[..., 0], relative=1e-4, absolute=1e-4)
    last = [states[-1][:, -1] for states in output[f"{prefix}hidden_states"]]
    expected = forward[f"{prefix}hidden_states"][-1][:, -5:-1]
    assert_close("hidden states", torch.stack(last, dim=1), expected, relative=1e-4, absolute=1e-4)
    if subject.has_memory:
        assert not any(output.attentions or ())
        verdict.limits("there are no attention weights in a memory")
        return
    for step, layers in enumerate(output[f"{prefix}attentions"]):
        length = (batch["input_ids"].shape[1] - 4 if subject.is_decoder else 1) + step
        assert len(layers) == 2 and all(weights.shape[-1] == length for weights in layers)


@pytest.mark.tool("generation", "inputs_embeds as the prompt")
def test_embedded_prompts_are_prompts(subject):
    model, batch = subject.build(), padded_prompts()
    expected = new_tokens(model, model.generate(**batch, **GREEDY))
    embedded = model.get_input_embeddings()(batch["input_ids"])
    sequences = model.generate(inputs_embeds=embedded, attention_mask=batch["attention_mask"], **GREEDY)
    assert torch.equal(sequences[:, -expected.shape[1] :], expected)


@pytest.mark.tool("generation", "offloaded cache")
def test_offloaded_cache_changes_nothing(subject, verdict):
    model = subject.build()
    if subject.has_memory:
        with pytest.raises(ValueError, match="cache_implementation='offloaded'"):
            check_same(model, cache_implementation="offloaded")
        verdict.refused(MEMORY)
        return
    if not torch.cuda.is_available():
        pytest.skip("transformers offloads from a GPU")
    model.to("cuda")
    check_same(model, cache_implementation="offloaded")
