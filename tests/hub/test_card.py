# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The model card says what was measured, nothing else, and its metadata is what the Hub expects."""

from pathlib import Path

from huggingface_hub import ModelCard

from leanformers import get_family
from leanformers.accounting import count_parameters, macs
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.hub.card import dense_parameters, render_card, result_table
from leanformers.modeling.anthe import AntheForSeq2SeqLM
from leanformers.modeling.delight import DeLighTForCausalLM
from leanformers.ordinary import ordinary_model
from leanformers.registry import family_of

RESULTS = {
    "eval_perplexity": 3.25,
    "test_2016_flickr_bleu": 31.4159,
    "test_2016_flickr_bleu_signature": "nrefs:1|case:mixed",
    "test_2017_flickr_bleu": 27.5,
    "test_2017_flickr_exact_match": 0.125,
    "train_loss": 1.5,
    "train_runtime": 1234.4,
    "hardware": "2-core x86_64 CPU",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "chrf_signature": "nrefs:1|nc:6",
    "test_2017_flickr_chrf": 50.25,
}
ARGUMENTS = {
    "dataset_name": "bentrevett/multi30k",
    "source_lang": "en",
    "target_lang": "de",
    "learning_rate": 0.001,
    "max_steps": 500,
    "num_train_epochs": 3.0,
    "bf16": False,
    "seed": 0,
    "output_dir": "/home/someone/outputs",
}


def card_of(model: AntheForSeq2SeqLM, **values) -> str:
    return render_card(get_family("anthe"), model, "AutoModelForSeq2SeqLM", **values)


def test_metadata_is_what_the_hub_reads(model: AntheForSeq2SeqLM):
    data = ModelCard(card_of(model, metrics=RESULTS, arguments=ARGUMENTS)).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "translation")
    assert data.tags == ["custom_code", "leanformers", "anthe", "arxiv:2305.10991"]
    assert (data.language, data.datasets) == (["en", "de"], ["bentrevett/multi30k"])
    found = {(result.dataset_split, result.metric_type): result for result in data.eval_results}
    assert found.keys() == {
        ("validation", "perplexity"),
        ("test_2016_flickr", "sacrebleu"),
        ("test_2017_flickr", "sacrebleu"),
        ("test_2017_flickr", "exact_match"),
        ("test_2017_flickr", "chrf"),
    }
    assert found["test_2016_flickr", "sacrebleu"].metric_value == 31.4159
    assert found["test_2016_flickr", "sacrebleu"].metric_args == {"signature": "nrefs:1|case:mixed"}
    assert found["test_2017_flickr", "chrf"].metric_args == {"signature": "nrefs:1|nc:6"}


def test_body_shows_the_results_and_how_they_came_about(model: AntheForSeq2SeqLM):
    text = card_of(model, metrics=RESULTS, arguments=ARGUMENTS, curves="curves.png", repository="me/anthe")
    assert "| split | BLEU | chrF | Exact match | Perplexity per token |" in text
    assert "| test_2016_flickr | 31.42 |  |  |  |" in text
    assert "| test_2017_flickr | 27.5 | 50.25 | 0.125 |  |" in text
    assert "`test_2016_flickr_bleu_signature`: `nrefs:1|case:mixed`" in text
    assert "| `learning_rate` | `0.001` |" in text and "| `seed` | `0` |" in text and "bf16" not in text
    assert "| `max_steps` | `500` |" in text and "num_train_epochs" not in text
    assert "Training took 1,234 s on 2-core x86_64 CPU." in text
    assert "Trained with python 3.11.7, torch 2.13.0." in text
    assert "![Training curves](curves.png)" in text
    assert 'repository = "me/anthe"' in text
    assert "bentrevett/multi30k" in text and "/home/someone" not in text


def test_language_model_has_a_card_of_its_own(language_model: DeLighTForCausalLM):
    results = {"eval_perplexity": 12.5, "test_perplexity": 13.25, "test_perplexity_per_word": 99.75}
    results["test_bits_per_byte"] = 1.125
    text = render_card(
        get_family("delight"),
        language_model,
        "AutoModelForCausalLM",
        metrics=results,
        arguments={"task": "stdlib", "block_size": 256, "max_steps": 10},
    )
    assert "| split | Perplexity per token | Perplexity per word | Bits per byte |" in text
    assert "| test | 13.25 | 99.75 | 1.125 |" in text and "| validation | 12.5 |  |  |" in text
    assert "trained on the source files of Python's standard library" in text
    assert "| `block_size` | `256` |" in text
    assert "model = AutoModelForCausalLM.from_pretrained" in text and "target_tokenizer" not in text
    assert "the same model with dense matrices" not in text
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.language) == ("text-generation", ["code"])
    assert data.tags == ["custom_code", "leanformers", "delight", "arxiv:2008.00623"]
    found = [(result.dataset_split, result.metric_name, result.metric_value) for result in data.eval_results]
    assert ("test", "Perplexity per word", 99.75) in found and len(found) == 4


def test_data_are_those_that_the_run_read(model: AntheForSeq2SeqLM):
    """Local files go before a data set of the Hub, and that before a task."""
    given = {"task": "numbers", "dataset_name": "bentrevett/multi30k", "train_files": ["a.txt", "b.txt"]}
    assert "trained on a.txt and b.txt" in card_of(model, arguments=given)
    assert ModelCard(card_of(model, arguments=given)).data.datasets is None
    given["train_files"] = [f"{number}.txt" for number in range(1000)]
    assert "trained on 1,000 files" in card_of(model, arguments=given)
    del given["train_files"]
    assert "trained on bentrevett/multi30k" in card_of(model, arguments=given)


def test_base_model_is_named_if_it_is_on_the_hub(model: AntheForSeq2SeqLM, tmp_path: Path):
    def base_model(name):
        return ModelCard(card_of(model, arguments={"model_name_or_path": name})).data.base_model

    assert base_model("me/anthe-numbers") == "me/anthe-numbers"
    assert base_model(str(tmp_path)) is None and base_model("outputs/runs/anthe") is None
    assert str(tmp_path) not in card_of(model, arguments={"model_name_or_path": str(tmp_path)})


def test_without_figures_there_is_no_table_for_them(model: AntheForSeq2SeqLM):
    text = card_of(model)
    assert "## Results" not in text and "## Training" not in text and "![" not in text
    data = ModelCard(text).data
    assert data.eval_results is None and data.language == ["und"]


def test_local_files_are_named_without_their_folders(model: AntheForSeq2SeqLM, tmp_path: Path):
    text = card_of(model, arguments={"train_files": [f"{tmp_path}/train.en.gz", f"{tmp_path}/train.de.gz"]})
    assert "trained on train.en.gz and train.de.gz" in text
    local_copy = {"dataset_name": str(tmp_path), "source_lang": "source", "target_lang": "de"}
    text = card_of(model, arguments=local_copy)
    assert f"trained on {tmp_path.name}" in text and str(tmp_path) not in text
    assert ModelCard(text).data.datasets is None and ModelCard(text).data.language == ["de"]


def test_parameters_beside_those_of_dense_matrices(model: AntheForSeq2SeqLM):
    config = type(model.config)(**model.config.to_dict() | {"tc_attn_ratio": None, "tc_ffn_ratio": None})
    dense = AntheForSeq2SeqLM(config)
    assert dense_parameters(model) == count_parameters(dense) > count_parameters(model)
    model.model.encoder.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    text = card_of(model)
    assert f"| this model | {count_parameters(model):,} |" in text
    assert f"| of them trained | {trained:,} |" in text
    assert f"| the same model with dense matrices for its tensor chains | {count_parameters(dense):,} |" in text
    assert "tc_attn_ratio" in model.config.to_dict() and model.config.tc_attn_ratio == 0.5
    assert dense_parameters(dense) is None and "the same model" not in card_of(dense)


def test_epochs_are_shown_where_they_count(model: AntheForSeq2SeqLM):
    text = card_of(model, arguments={"max_steps": -1, "num_train_epochs": 3.0})
    assert "| `num_train_epochs` | `3.0` |" in text and "max_steps" not in text


def test_size_beside_an_ordinary_transformer(model: AntheForSeq2SeqLM, language_model: DeLighTForCausalLM):
    for ours, auto_class, lengths in (
        (model, "AutoModelForSeq2SeqLM", (32, 32)),
        (language_model, "AutoModelForCausalLM", (512,)),
    ):
        text = render_card(family_of(ours), ours, auto_class)
        peer = ordinary_model(ours)
        trained = peer.num_parameters(only_trainable=True)
        assert f"| this model | {count_parameters(ours):,} | {macs(ours, *lengths):,} |" in text
        name = f"`{type(peer).__name__}` of transformers, of the same vocabulary, width and depth"
        assert f"| {name} | {trained:,} | {macs(peer, *lengths):,} |" in text
        assert ("a pair of 32 + 32 tokens" if len(lengths) == 2 else "a text of 512 tokens") in text


def test_samples_stay_within_their_places(model: AntheForSeq2SeqLM, language_model: DeLighTForCausalLM):
    pair = {"input": "a | b", "output": "two\nlines ", "reference": "c"}
    text = card_of(model, samples={"how": "the first sentence", "samples": [pair]})
    assert "Not chosen, but the first sentence ([`samples.json`](samples.json))." in text
    assert "| a \\| b | two lines | c |" in text
    continued = {"input": "```python\n", "output": "x = 1\n````\n"}
    samples = {"how": "one text", "samples": [continued]}
    text = render_card(get_family("delight"), language_model, "AutoModelForCausalLM", samples=samples)
    assert "`````text\n```python\n`````" in text and "`````text\nx = 1\n````\n`````" in text
    assert "## Samples" not in card_of(model) and "samples.json" not in card_of(model)


def test_large_figures_are_written_out(model: AntheForSeq2SeqLM):
    assert "| test | 17,754 |" in card_of(model, metrics={"test_perplexity_per_word": 17753.5})


def test_result_table_reads_names_of_splits_and_metrics():
    table = result_table({"eval_bleu": 1, "test_chrf": 2.0, "test_bleu_signature": "x", "train_loss": 3.0})
    assert table == {"validation": {"bleu": 1}, "test": {"chrf": 2.0}}


def test_second_tokenizer_is_loaded_only_where_there_is_one(
    model: AntheForSeq2SeqLM, tokenizers: TranslationTokenizers
):
    assert 'subfolder="target_tokenizer"' in card_of(model, separate_target_tokenizer=True)
    assert "target_tokenizer = tokenizer\n" in card_of(model)


def test_anthe_card_states_the_leak_of_the_original(model: AntheForSeq2SeqLM):
    text = " ".join(card_of(model).split())
    assert "depend on target tokens that come **after** it" in text
    assert "0.307" in text and "allow_noncausal_gate" in text
