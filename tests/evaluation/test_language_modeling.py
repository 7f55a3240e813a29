# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Sliding windows give the loss of one long forward, for any model that returns logits or log-probabilities."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from leanformers.arguments import LanguageModelingDataArguments
from leanformers.data.language_modeling import EvaluationWindows
from leanformers.data.tokenizers import train_language_tokenizer
from leanformers.evaluation import perplexity
from leanformers.evaluation.language_modeling import (
    evaluate_text_splits,
    evaluate_windows,
    language_model_perplexity,
    window_losses,
)
from leanformers.evaluation.perplexity import row_losses

VOCABULARY = 50


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.5,
        initializer_range=0.5,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tokens():
    return torch.randint(3, VOCABULARY, (61,)).tolist()


def token_losses(model, tokens):
    """Of every token but the first, each predicted from all that are before it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none").double()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_full_context_equals_one_forward(model, tokens, batch_size):
    expected = token_losses(model, tokens)
    whole = language_model_perplexity(model, tokens, block_size=60, batch_size=batch_size)
    sliding = language_model_perplexity(model, tokens, block_size=60, context_window=59, batch_size=batch_size)
    for results in (whole, sliding):
        assert results["loss"] == pytest.approx(expected.mean().item(), rel=1e-6)
        assert results["perplexity"] == pytest.approx(expected.mean().exp().item(), rel=1e-6)
        assert results["num_tokens"] == 60


@pytest.mark.parametrize(("block_size", "context_window"), [(8, 0), (8, 5), (16, 15), (7, 3), (512, 400)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_token_is_scored_in_its_window(model, tokens, block_size, context_window, batch_size):
    """Against windows written out: the first scores all of it, the next what is new in them."""
    total, num_scored, end = 0.0, 0, min(block_size, 60)
    while num_scored < 60:
        window = tokens[max(0, end - block_size) : end + 1]
        total += token_losses(model, window)[-(end - num_scored) :].sum().item()
        num_scored, end = end, min(end + block_size - context_window, 60)
    results = language_model_perplexity(
        model, tokens, block_size=block_size, context_window=context_window, batch_size=batch_size
    )
    assert results["loss"] == pytest.approx(total / 60, rel=1e-6)


def test_words_and_bytes_share_the_loss_out(model, tokens):
    results = language_model_perplexity(model, tokens, block_size=16, num_words=20, num_bytes=100)
    assert results["perplexity_per_word"] == pytest.approx(math.exp(60 * results["loss"] / 20))
    assert results["bits_per_byte"] == pytest.approx(60 * results["loss"] / math.log(2) / 100)
    assert (results["num_tokens"], results["num_words"]) == (60, 20)
    bare = language_model_perplexity(model, tokens, block_size=16)
    assert bare.keys() == {"loss", "perplexity", "num_tokens"}


def test_a_perplexity_too_large_to_write_is_infinite(model, tokens):
    results = language_model_perplexity(model, tokens, block_size=16, num_words=1, num_bytes=1)
    assert math.isinf(language_model_perplexity(model, tokens * 20, block_size=16, num_words=1)["perplexity_per_word"])
    assert math.isfinite(results["bits_per_byte"])


def test_a_uniform_model_has_the_vocabulary_as_perplexity(model, tokens):
    uniform = LlamaForCausalLM(model.config)
    with torch.no_grad():
        uniform.lm_head.weight.zero_()
    assert language_model_perplexity(uniform, tokens, block_size=9)["perplexity"] == pytest.approx(VOCABULARY)


def test_the_model_is_left_as_it_was_and_evaluated_without_dropout(model, tokens):
    expected = language_model_perplexity(model, tokens, block_size=16)
    model.train()
    assert language_model_perplexity(model, tokens, block_size=16) == expected
    assert model.training
    model.eval()


def test_separate_documents_equal_single_documents(model):
    rows = [torch.randint(3, VOCABULARY, (length,)).tolist() for length in (5, 30, 2, 17)]
    begins = [0, 5, 35, 37]
    windows = EvaluationWindows(sum(rows, []), begins, block_size=12, context_window=4)
    apart = [language_model_perplexity(model, row, block_size=12, context_window=4) for row in rows]
    total = sum(results["loss"] * results["num_tokens"] for results in apart)
    for batch_size in (1, 3, 50):
        together = evaluate_windows(model, windows, batch_size=batch_size)
        assert together["num_tokens"] == 4 + 29 + 1 + 16
        assert together["loss"] * together["num_tokens"] == pytest.approx(total, rel=1e-6)


class AllLogits(torch.nn.Module):
    """A model that cannot leave logits out, and gives log-probabilities, as an adaptive softmax does."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, use_cache=None):
        return CausalLMOutput(logits=self.model(input_ids=input_ids, use_cache=use_cache).logits.log_softmax(-1))


def test_log_probabilities_of_all_positions_do_as_well(model):
    input_ids = torch.randint(3, VOCABULARY, (3, 9))
    labels = torch.randint(3, VOCABULARY, (3, 9))
    labels[:, :4] = labels[1, 6:] = -100
    with torch.no_grad():
        some, every = (window_losses(each, input_ids, labels) for each in (model, AllLogits(model)))
    torch.testing.assert_close(some, every)
    assert some[:, 1].tolist() == [5, 2, 5]


def test_slices_change_nothing(monkeypatch):
    logits, labels = torch.randn(3, 17, 11).bfloat16(), torch.randint(0, 11, (3, 17))
    labels[1, 5:] = -100
    whole = row_losses(logits, labels)
    by_hand = -logits.float().log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(whole[:, 0], by_hand.masked_fill(labels < 0, 0).sum(1).double(), rtol=1e-5, atol=1e-5)
    for elements in (1, 3 * 11 * 4, 3 * 11 * 16):
        monkeypatch.setattr(perplexity, "SLICE_ELEMENTS", elements)
        torch.testing.assert_close(row_losses(logits, labels), whole)


def test_texts_are_measured_by_their_arguments(model, tmp_path):
    (tmp_path / "a.txt").write_text("one two\nthree\n" * 5)
    (tmp_path / "b.txt").write_text("two\n")
    named = [f"long={tmp_path}/a.txt", f"short={tmp_path}/b.txt"]
    arguments = LanguageModelingDataArguments(test_files=named, block_size=8, context_window=3)
    tokenizer = train_language_tokenizer(["one two\nthree\n"], "word", VOCABULARY)
    results = evaluate_text_splits(model, tokenizer, arguments)
    assert {name: each["num_words"] for name, each in results.items()} == {"test_long": 25, "test_short": 2}
    tokens = tokenizer("one two\nthree\n" * 5).input_ids + [tokenizer.eos_token_id]
    alone = language_model_perplexity(model, tokens, block_size=8, context_window=3, num_words=25, num_bytes=70)
    assert results["test_long"] == pytest.approx(alone)
    assert evaluate_text_splits(model, tokenizer, arguments, names=["test_short"]).keys() == {"test_short"}
    with pytest.raises(ValueError, match=r"no split \['validation'\]"):
        evaluate_text_splits(model, tokenizer, arguments, names=["validation"])


def test_a_text_without_tokens_is_refused(model):
    with pytest.raises(ValueError, match="none to score"):
        language_model_perplexity(model, [2], block_size=8)


def test_columns_of_a_data_set_are_summed():
    rows = Dataset.from_dict({"input_ids": [[2, 5, 2], [2, 6, 7, 2]], "num_words": [1, 2], "num_bytes": [3, 4]})
    windows = EvaluationWindows.of_texts(rows, block_size=8)
    assert (windows.num_words, windows.num_bytes, windows.tokens.tolist()) == (3, 7, [2, 5, 2, 6, 7, 2])
