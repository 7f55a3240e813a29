# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The loss that trains is the mean over all real target tokens, however a batch is cut up; smoothed where asked, with
labels shifted once. Perplexity is that of every real token, once."""

import math

import pytest
import torch
from torch.nn import functional
from training.runs import parse

from leanformers.data.collator import TranslationCollator
from leanformers.data.translation import load_translation, tokenize_translation
from leanformers.evaluation.perplexity import row_losses, seq2seq_perplexity, summarize
from leanformers.evaluation.translation import load_translator
from leanformers.training.trainer import TranslationTrainer


@pytest.fixture
def start(trained, recipe, tmp_path):
    """A trainer of the trained model, without dropout, on 16 sentences of different lengths."""
    model, tokenizers = load_translator(str(trained))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.dropout = 0.0

    def trainer(*flags) -> TranslationTrainer:
        _, data, training = parse(*recipe(tmp_path, "--save_strategy=no", "--max_grad_norm=0", *flags))
        split = load_translation(data)["train"].select(range(16))
        dataset = tokenize_translation(split, tokenizers, data)
        return TranslationTrainer(model, training, tokenizers, dataset, eval_dataset=dataset)

    return trainer


def reference_loss(trainer, smoothing=0.0):
    """Cross-entropy of all 16 sentences, each run alone and unpadded, per token."""
    total, tokens = 0.0, 0
    for row in trainer.train_dataset:
        labels = torch.tensor([row["labels"]])
        model = trainer.model.eval()
        decoder_input_ids = torch.cat([torch.tensor([[2]]), labels[:, :-1]], dim=1)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=decoder_input_ids).logits
        loss = functional.cross_entropy(logits[0], labels[0], reduction="sum", label_smoothing=smoothing)
        total, tokens = total + loss.item(), tokens + labels.numel()
    return total / tokens


def first_step(trainer):
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged["loss"], logged["grad_norm"]


STEP = ("--max_steps=1", "--logging_steps=1", "--learning_rate=0")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_do_not_depend_on_accumulation(start, smoothing):
    smooth = f"--label_smoothing_factor={smoothing}"
    whole = start(*STEP, smooth, "--per_device_train_batch_size=16")
    expected = reference_loss(whole, smoothing)
    loss, norm = first_step(whole)
    assert loss == pytest.approx(expected, rel=1e-5)
    for batch_size in (4, 2):
        flags = (f"--per_device_train_batch_size={batch_size}", f"--gradient_accumulation_steps={16 // batch_size}")
        accumulated_loss, accumulated_norm = first_step(start(*STEP, smooth, *flags))
        assert accumulated_loss == pytest.approx(expected, rel=1e-5)
        assert accumulated_norm == pytest.approx(norm, rel=1e-4)


def test_labels_are_not_shifted_twice(start):
    """Were they, tiny smoothing would change the loss: it is computed by the Trainer, not by the model."""
    plain, _ = first_step(start(*STEP, "--per_device_train_batch_size=16"))
    smoothed, _ = first_step(start(*STEP, "--per_device_train_batch_size=16", "--label_smoothing_factor=1e-7"))
    assert smoothed == pytest.approx(plain, rel=1e-4)


def test_evaluation_loss_is_per_token_and_never_smoothed(start):
    trainer = start("--label_smoothing_factor=0.3", "--per_device_eval_batch_size=5")
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(reference_loss(trainer), rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["eval_num_target_tokens"] == sum(map(len, trainer.train_dataset["labels"]))


def test_evaluation_without_translations(start):
    metrics = start("--predict_with_generate=false").evaluate()
    assert "eval_perplexity" in metrics and "eval_bleu" not in metrics


def test_perplexity_does_not_see_padding(start):
    trainer = start()
    rows = list(trainer.train_dataset)
    collate = TranslationCollator(trainer.processing_class.source, model=trainer.model)
    expected = math.exp(reference_loss(trainer))
    trainer.model.train()
    for size in (1, 3, 16):
        batches = [collate(rows[first : first + size]) for first in range(0, 16, size)]
        results = seq2seq_perplexity(trainer.model, batches)
        assert results["perplexity"] == pytest.approx(expected, rel=1e-5)
        assert results["num_target_tokens"] == sum(len(row["labels"]) for row in rows)
    assert trainer.model.training


def test_perplexity_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]]))
    rows = row_losses(logits, torch.tensor([[0, 1], [2, -100]]))
    assert rows[:, 1].tolist() == [2, 1]
    assert summarize([rows[:1], rows[1:]])["perplexity"] == pytest.approx((0.5 * 0.8 * 0.6) ** (-1 / 3))
    with pytest.raises(ValueError, match="at least one target token"):
        summarize([torch.zeros(2, 2)])


def test_uniform_model_has_the_vocabulary_as_perplexity(start):
    trainer = start()
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.zero_()
        if trainer.model.get_output_embeddings().bias is not None:
            trainer.model.get_output_embeddings().bias.zero_()
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(300, rel=1e-5)
