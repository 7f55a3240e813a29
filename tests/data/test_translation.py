# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Parallel text: every line keeps its partner, bad files get one clear sentence, and nothing is cut in silence."""

import gzip
import json
import logging
import re

import pytest
from datasets import Dataset

from leanformers.arguments import TranslationDataArguments
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.data.translation import load_translation, read_parallel, tokenize_translation

ENGLISH = ["one", "two", "three"]
GERMAN = ["eins", "zwei", "drei"]


@pytest.fixture
def warnings(monkeypatch):
    """What was logged; transformers' logger does not propagate to pytest's."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("leanformers").addHandler(handler)
    yield messages
    logging.getLogger("leanformers").removeHandler(handler)


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode())
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / "text.en", ENGLISH), write(tmp_path / "text.de", GERMAN)]


@pytest.fixture(scope="module")
def tokenizers():
    return TranslationTokenizers.train(ENGLISH, GERMAN, "bpe", 260, shared=True)


# Reading


def test_plain_and_gzip_are_the_same(tmp_path, files):
    # Told by their content, since a download may have lost its ending.
    for name, compressed in (("en.gz", files[0]), ("de", files[1])):
        with open(compressed, "rb") as plain:
            (tmp_path / name).write_bytes(gzip.compress(plain.read()))
    pairs = read_parallel(tmp_path / "en.gz", tmp_path / "de")
    assert pairs.to_list() == read_parallel(*files).to_list()
    assert pairs.to_list() == [{"source": en, "target": de} for en, de in zip(ENGLISH, GERMAN, strict=True)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    lines = [f"a{separator}b", "c"]
    pairs = read_parallel(write(tmp_path / "a", lines), write(tmp_path / "b", ["d", "e"]))
    assert pairs["source"][:] == lines


def test_windows_files_and_a_missing_last_line_end(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    (tmp_path / "b").write_bytes(b"eins\nzwei")
    assert read_parallel(tmp_path / "a", tmp_path / "b").to_list() == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]


def test_spaces_are_kept(tmp_path):
    path = write(tmp_path / "a", ["  two  spaces\t"])
    assert read_parallel(path, path).to_list() == [{"source": "  two  spaces\t", "target": "  two  spaces\t"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"eins\nzwei\n", r"text\.en has 3 and \S+bad has 2"),
        (b"", r"bad is empty; it should hold text"),
        (b"\n\n\n", r"bad is empty"),
        (b"eins\n\ndrei\n", r"Line 2 of \S+bad is empty, .* remove that line from both \S+text\.en and \S+bad\."),
        (b"eins\n \n\t\n", r"Line 2 of \S+bad is empty \(the first of 2 such lines\)"),
        (b"eins\nzw\xe4i\ndrei\n", r"Line 2 of \S+bad is not UTF-8 \(byte 0xe4 at position 2\)"),
        (gzip.compress(b"eins\nzwei\ndrei\n", mtime=0)[:-9], r"bad is a damaged or truncated gzip file"),
        (b"\x1f\x8bno gzip at all", r"bad is a damaged or truncated gzip file"),
    ],
    ids=["counts", "empty", "blank", "empty-line", "empty-lines", "not-utf8", "truncated-gzip", "no-gzip"],
)
def test_a_bad_file_gets_one_sentence_and_is_left_alone(tmp_path, files, content, message):
    bad = tmp_path / "bad"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_parallel(files[0], bad)
    assert "\n" not in str(error.value)
    assert bad.read_bytes() == content


def test_a_missing_file_is_named(tmp_path, files):
    with pytest.raises(FileNotFoundError, match=f"There is no file {re.escape(str(tmp_path / 'none.de'))}"):
        read_parallel(files[0], tmp_path / "none.de")


# Origins and splits


def test_real_files_keep_their_counts_and_partners(shared):
    folder = shared / "data/multi30k"

    def pair(name):
        return [str(folder / f"{name}.{language}.gz") for language in ("en", "de")]

    splits = load_translation(
        TranslationDataArguments(
            train_files=pair("train"),
            validation_files=pair("val"),
            test_files=[f"{year}={','.join(pair(f'test_{year}_flickr'))}" for year in (2016, 2017)],
        )
    )
    counts = {"train": 29_000, "validation": 1_014, "test_2016": 1_000, "test_2017": 1_000}
    assert {name: len(split) for name, split in splits.items()} == counts
    with gzip.open(pair("train")[1], "rb") as file:
        assert splits["train"][28_999]["target"] == file.read().split(b"\n")[28_999].decode()


def test_numbers_are_a_task():
    splits = load_translation(TranslationDataArguments(task="numbers", max_eval_samples=5, max_train_samples=7))
    assert {name: len(split) for name, split in splits.items()} == {"train": 7, "validation": 5, "test": 5}


def test_samples_are_limited_from_the_start_and_said(files, warnings):
    splits = load_translation(TranslationDataArguments(train_files=files, max_train_samples=2, test_files=files))
    assert splits["train"]["source"][:] == ["one", "two"] and len(splits["test"]) == 3
    assert warnings == ["train: the first 2 of 3 pairs are used."]


def test_local_files_come_before_a_recipes_dataset(files, warnings):
    arguments = TranslationDataArguments(task="numbers", dataset_name="nobody/nothing", train_files=files)
    assert list(load_translation(arguments)) == ["train"]
    assert warnings == ["The data are those of train_files; dataset_name and task are not read."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no data: give --task numbers, --dataset_name or --train_files"),
        ({"train_files": ["a.en"]}, r"train_files needs two files.* has 1: \['a.en'\]"),
        ({"test_files": ["a=x,y", "b.en"]}, "'b.en' among named test sets; write it name=source,target"),
        ({"test_files": ["a=x,y", "a=z,w"]}, "two test sets 'a'"),
    ],
)
def test_wrong_origins_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_translation(TranslationDataArguments(**arguments))


# Datasets of the Hub, here as folders, which load the same way


def write_dataset(folder, **splits):
    folder.mkdir()
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


NESTED = [
    {"id": i, "translation": {"de": de, "en": en}} for i, (en, de) in enumerate(zip(ENGLISH, GERMAN, strict=True))
]
FLAT = [{"en": en, "de": de, "score": 1.0} for en, de in zip(ENGLISH, GERMAN, strict=True)]


@pytest.mark.parametrize("rows", [NESTED, FLAT], ids=["translation-column", "two-columns"])
def test_datasets_of_both_shapes_load(tmp_path, rows):
    name = write_dataset(tmp_path / "data", train=rows, valid=rows[:2], test=rows[:1])
    splits = load_translation(TranslationDataArguments(dataset_name=name))
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 2, "test": 1}
    assert splits["train"].to_list() == [{"source": en, "target": de} for en, de in zip(ENGLISH, GERMAN, strict=True)]


def test_parquet_with_the_translation_feature_loads_backwards(tmp_path):
    from datasets import Features, Translation

    features = Features({"translation": Translation(languages=["de", "en"])})
    rows = [{"translation": row["translation"]} for row in NESTED]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    arguments = TranslationDataArguments(dataset_name=str(tmp_path / "data"), source_lang="de", target_lang="en")
    assert load_translation(arguments)["train"][1] == {"source": "zwei", "target": "two"}


def test_test_files_take_the_place_of_the_datasets_test(tmp_path, files):
    name = write_dataset(tmp_path / "data", train=FLAT, test=FLAT[:1])
    splits = load_translation(TranslationDataArguments(dataset_name=name, test_files=[f"mine={','.join(files)}"]))
    assert list(splits) == ["train", "test_mine"]
    assert splits["test_mine"]["target"][:] == GERMAN


@pytest.mark.parametrize("rows", [NESTED, FLAT], ids=["translation-column", "two-columns"])
@pytest.mark.parametrize("languages", [("en", "fr"), ("en", "en")])
def test_a_missing_language_names_those_there_are(tmp_path, rows, languages):
    name = write_dataset(tmp_path / "data", train=rows)
    arguments = TranslationDataArguments(dataset_name=name, source_lang=languages[0], target_lang=languages[1])
    with pytest.raises(ValueError, match=rf"from 'en' to '{languages[1]}': .* must be two of .*\b(de, en|en, de)"):
        load_translation(arguments)


def test_empty_sides_of_a_dataset_are_left_out_and_counted(tmp_path, warnings):
    rows = [*FLAT, {"en": "", "de": "leer", "score": 0.0}, {"en": "none", "de": None, "score": 0.0}]
    splits = load_translation(TranslationDataArguments(dataset_name=write_dataset(tmp_path / "data", train=rows)))
    assert splits["train"]["source"][:] == ENGLISH
    assert warnings == ["train: 2 of 5 pairs have an empty side and are left out."]


def test_an_unused_split_is_said(tmp_path, warnings):
    # load_dataset knows a folder's other splits from its card alone.
    name = write_dataset(tmp_path / "data", train=FLAT, extra=FLAT)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n"
    (tmp_path / "data" / "README.md").write_text(card + "  - split: extra\n    path: extra.jsonl\n---\n")
    assert list(load_translation(TranslationDataArguments(dataset_name=name))) == ["train"]
    assert warnings == [f"The split 'extra' of {name} is not used."]


# Tokens


def pairs(*rows):
    return Dataset.from_list([{"source": source, "target": target} for source, target in rows])


def test_tokens_are_ids_with_an_end_beside_the_text(tokenizers):
    dataset = tokenize_translation(pairs(("one", "einundzwanzig")), tokenizers, TranslationDataArguments())
    row = dataset[0]
    assert set(row) == {"source", "target", "input_ids", "labels", "length"}
    assert row["input_ids"] == tokenizers.source("one").input_ids and row["input_ids"][-1] == 3
    assert row["labels"] == tokenizers.target("einundzwanzig").input_ids
    assert row["length"] == len(row["labels"]) == 14


def test_each_side_has_its_tokenizer():
    tokenizers = TranslationTokenizers.train(ENGLISH * 9, GERMAN * 9, "bpe", 264, shared=False)
    row = tokenize_translation(pairs(("three", "drei")), tokenizers, TranslationDataArguments())[0]
    assert row["input_ids"] == tokenizers.source("three").input_ids
    assert row["labels"] == tokenizers.target("drei").input_ids
    assert tokenizers.target("three").input_ids != row["input_ids"]


# Each letter is a token, and </s> one more.
LONG = pairs(("abc", "abc"), ("abcdef", "ab"), ("ab", "abcdefg"), ("abcde", "abcde"))
COUNTED = (
    "2 of 4 pairs are longer than max_source_length=6 or max_target_length=6 (the longest source has 7 tokens, the "
    "longest target 8)"
)


def arguments_of(policy, limit=6):
    return TranslationDataArguments(length_policy=policy, max_source_length=limit, max_target_length=limit)


def test_too_long_pairs_are_an_error_that_counts_them(tokenizers):
    message = f"train: {COUNTED}. Raise the limits, or set length_policy to 'drop' or 'truncate'."
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenize_translation(LONG, tokenizers, arguments_of("error"))


def test_too_long_pairs_are_dropped_from_training_alone_and_counted(tokenizers, warnings):
    kept = tokenize_translation(LONG, tokenizers, arguments_of("drop"), "train")
    assert kept["source"][:] == ["abc", "abcde"]
    whole = tokenize_translation(LONG, tokenizers, arguments_of("drop"), "test_2016")
    assert max(map(len, whole["labels"])) == 8 and len(whole) == 4
    assert warnings == [
        f"train: {COUNTED} and are dropped.",
        f"test_2016: {COUNTED} and are kept: only training pairs are dropped.",
    ]


def test_dropping_everything_is_an_error(tokenizers):
    with pytest.raises(ValueError, match="train: 4 of 4 pairs"):
        tokenize_translation(LONG, tokenizers, arguments_of("drop", limit=2), "train")


def test_too_long_pairs_are_truncated_and_counted(tokenizers, warnings):
    cut = tokenize_translation(LONG, tokenizers, arguments_of("truncate"))
    assert tokenizers.source.batch_decode(cut["input_ids"][:]) == ["abc</s>", "abcde</s>", "ab</s>", "abcde</s>"]
    assert tokenizers.target.batch_decode(cut["labels"][:]) == ["abc</s>", "ab</s>", "abcde</s>", "abcde</s>"]
    assert cut["target"][2] == "abcdefg"
    assert cut["length"][:] == [4, 6, 6, 6]
    assert warnings == [f"train: {COUNTED} and are truncated."]


def test_several_processes_give_the_same_tokens(tokenizers):
    alone = tokenize_translation(LONG, tokenizers, TranslationDataArguments())
    together = tokenize_translation(LONG, tokenizers, TranslationDataArguments(num_proc=2))
    assert together.to_list() == alone.to_list()
