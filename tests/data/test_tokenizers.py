# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Trained tokenizers: every text comes back, files are reproducible, and transformers alone reads them."""

import gzip
import json
import subprocess
import sys

import pytest

from leanformers.data.tokenizers import TranslationTokenizers, train_tokenizer

ENGLISH = [
    "Two young men walk past a red house.",
    "A girl with a dog runs through the snow.",
    "Three people wait.",
] * 20
GERMAN = [
    "Zwei junge Männer gehen an einem roten Haus vorbei.",
    "Ein Mädchen läuft mit einem Hund.",
    "Drei warten.",
] * 20
STRANGE = [
    "日本語 und 🙂 and \u1e9e",
    "</s> <pad> <s> <unk> are words here",
    " leading, trailing,  double ",
    "tab\tand line\u2028separator",
    "don't , stop . now ?",
    "",
]


def sentences(folder, language):
    return gzip.decompress((folder / f"data/multi30k/train.{language}.gz").read_bytes()).decode().split("\n")[:-1]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return train_tokenizer(ENGLISH + GERMAN, request.param, 400)


def test_special_tokens_have_their_ids_and_the_end_is_appended(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    ids = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == [0, 1, 2, 3]
    encoded = tokenizer("Three people wait.")
    assert list(encoded) == ["input_ids", "attention_mask"]
    assert encoded.input_ids[-1] == 3 and 3 not in encoded.input_ids[:-1]


@pytest.mark.parametrize("text", [*STRANGE, *ENGLISH[:3], *GERMAN[:3]])
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not {0, 1, 2} & set(ids) and ids.count(3) == 1


def test_text_is_composed(tokenizer):
    assert tokenizer("Ma\u0308nner").input_ids == tokenizer("M\u00e4nner").input_ids


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_real_text_comes_back(shared, kind):
    lines = sentences(shared, "en")[:4000] + sentences(shared, "de")[:4000]
    tokenizer = train_tokenizer(lines, kind, 2000)
    assert len(tokenizer) == 2000
    held_out = sentences(shared, "de")[-4000:]
    assert tokenizer.batch_decode(tokenizer(held_out).input_ids, skip_special_tokens=True) == held_out


def test_bpe_training_is_reproducible_byte_for_byte(tmp_path):
    for name in ("first", "second"):
        train_tokenizer(ENGLISH + GERMAN, "bpe", 400).save_pretrained(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_wrong_type_and_too_small_a_vocabulary_are_refused():
    with pytest.raises(ValueError, match="no tokenizer type 'word'; choose 'bpe' or 'unigram'"):
        train_tokenizer(ENGLISH, "word", 400)
    with pytest.raises(ValueError, match="vocab_size=100.*at least 260"):
        train_tokenizer(ENGLISH, "bpe", 100)


@pytest.mark.parametrize("shared_tokenizer", [True, False])
def test_tokenizers_of_a_pair_come_back_as_saved(tmp_path, shared_tokenizer):
    tokenizers = TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 300, shared_tokenizer)
    tokenizers.save_pretrained(tmp_path)
    loaded = TranslationTokenizers.from_pretrained(tmp_path)
    assert loaded.shared is tokenizers.shared is shared_tokenizer
    assert (tmp_path / "target_tokenizer").exists() is not shared_tokenizer
    for side in ("source", "target"):
        saved, read = getattr(tokenizers, side), getattr(loaded, side)
        assert read.get_vocab() == saved.get_vocab()
        assert read(STRANGE).input_ids == saved(STRANGE).input_ids


def test_an_old_target_tokenizer_in_the_folder_is_not_taken_for_the_new_one(tmp_path):
    TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 300, shared=False).save_pretrained(tmp_path)
    TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 300, shared=True).save_pretrained(tmp_path)
    assert TranslationTokenizers.from_pretrained(tmp_path).shared


def test_added_tokens_count_in_the_size():
    tokenizers = TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 300, shared=False)
    tokenizers.target.add_tokens(["<de>"])
    assert (tokenizers.source_vocab_size, tokenizers.target_vocab_size) == (300, 301)


def test_transformers_alone_reads_the_folder(tmp_path):
    """In a process that knows nothing of leanformers, as a user of the Hub has it."""
    tokenizers = TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 300, shared=False)
    tokenizers.save_pretrained(tmp_path)
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "folder, texts = sys.argv[1], json.loads(sys.argv[2])\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, subfolder='target_tokenizer')\n"
        "ids = tokenizer(texts).input_ids\n"
        "print(json.dumps([ids, tokenizer.batch_decode(ids, skip_special_tokens=True)]))\n"
        "assert not any(name.startswith('leanformers') for name in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), json.dumps(GERMAN[:3] + STRANGE)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [tokenizers.target(GERMAN[:3] + STRANGE).input_ids, GERMAN[:3] + STRANGE]
