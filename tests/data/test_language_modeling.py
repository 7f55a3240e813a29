# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Text to blocks and windows: no token is lost, none is predicted twice, and words are counted as is the custom."""

import gzip
import logging
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from leanformers.arguments import LanguageModelingDataArguments
from leanformers.data.collator import BlockCollator
from leanformers.data.language_modeling import (
    EvaluationWindows,
    TrainingBlocks,
    count_words,
    load_texts,
    start_token,
    tokenize_texts,
)
from leanformers.data.tokenizers import train_language_tokenizer, train_tokenizer

TEXT = "def f(x):\n    return x\n\n\ndef g(y):\n    return f(y)\n"
END = 2


def arguments(**settings) -> LanguageModelingDataArguments:
    return LanguageModelingDataArguments(**settings)


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("leanformers"), "propagate", True)
    return lambda: caplog.text


@pytest.fixture(scope="module")
def tokenizer():
    return train_language_tokenizer([TEXT] * 3, "bpe", 270)


def documents(*rows):
    """Tokenized documents, with the token 2 before and after each."""
    return Dataset.from_dict(
        {
            "input_ids": [[END, *row, END] for row in rows],
            "num_words": [len(row) for row in rows],
            "num_bytes": [2 * len(row) for row in rows],
        }
    )


def test_files_are_documents_or_their_lines_are(tmp_path):
    first, second = write(tmp_path / "a.txt", "one\n\n two \r\n"), str(tmp_path / "b.gz")
    (tmp_path / "b.gz").write_bytes(gzip.compress("drei\u2028vier".encode()))
    files = {"train_files": [first, second], "validation_files": [first]}
    whole = load_texts(arguments(**files))
    assert whole["train"]["text"][:] == ["one\n\n two \n", "drei\u2028vier"]
    assert whole["validation"]["text"][:] == ["one\n\n two \n"]
    assert whole.keys() == {"train", "validation"}
    lines = load_texts(arguments(**files, documents="lines"))
    assert lines["train"]["text"][:] == ["one", "", " two ", "drei\u2028vier"]


def test_named_tests_take_the_place_of_the_data_sets_own(tmp_path, warnings):
    a, b, c = (write(tmp_path / name, name) for name in "abc")
    splits = load_texts(
        arguments(task="stdlib", test_files=[f"one={a}", f"two={b},{c}"], max_train_samples=2, max_eval_samples=1)
    )
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2,
        "validation": 1,
        "test_one": 1,
        "test_two": 1,
    }
    assert splits["test_two"]["text"][:] == ["b"]
    assert "test_two: the first 1 of 2 documents are used" in warnings()
    assert load_texts(arguments(test_files=[a, b]))["test"]["text"][:] == ["a", "b"]


def test_a_data_set_is_read_by_its_column(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"content": "one\\ntwo\\n", "id": 3}\n{"content": "three", "id": 4}\n')
    named = {"dataset_name": str(tmp_path), "text_column": "content"}
    assert load_texts(arguments(**named))["train"].to_list() == [{"text": "one\ntwo\n"}, {"text": "three"}]
    assert load_texts(arguments(**named, documents="lines"))["train"]["text"][:] == ["one", "two", "three"]
    with pytest.raises(ValueError, match="no column 'text': text_column must be one of content, id"):
        load_texts(arguments(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad is empty"),
        (b" \n\n", "bad is empty"),
        (b"one\ntw\xf6\n", r"Line 2 of \S+bad is not UTF-8 \(byte 0xf6 at position 2\)"),
        (gzip.compress(b"one\ntwo\n", mtime=0)[:-5], "damaged or truncated gzip"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, content, message):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_texts(arguments(train_files=[str(tmp_path / "bad")]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "There is no text: give --task stdlib"),
        ({"task": "poems"}, "There is no task 'poems'"),
        ({"train_files": ["nowhere.txt"]}, "There is no file nowhere.txt"),
        ({"test_files": ["a=b", "c"]}, "'c' among named test sets"),
        ({"test_files": ["a=b", "a=c"]}, "two test sets 'a'"),
        ({"block_size": 1}, "block_size=1 leaves no token"),
        ({"block_size": 8, "context_window": 8}, "context_window=8 must be at least 0 and less than block_size=8"),
        ({"block_size": 8, "context_window": -1}, "context_window=-1"),
    ],
)
def test_bad_arguments_get_one_sentence(settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        load_texts(arguments(**settings))


@pytest.mark.parametrize(
    ("text", "count"), [("a b\nc", 5), ("a b\nc\n", 5), ("a b\n\nc\n", 6), ("\n", 1), (" = a = \n", 4), ("a", 2)]
)
def test_words_and_line_ends_are_counted(text, count):
    assert count_words(text) == count


def test_wikitext_counts_as_it_always_has(shared):
    """245,569 tokens are what papers score on the test set."""
    path = str(shared / "data/wikitext-2/test.txt.gz")
    for kind in ("whole", "lines"):
        settings = arguments(test_files=[path], documents=kind)
        texts = load_texts(settings)["test"]
        tokenizer = train_language_tokenizer(texts["text"], "word", 100_000)
        tokens = tokenize_texts(texts, tokenizer, settings)
        assert sum(tokens["num_words"]) == 245_569
        assert sum(tokens["num_bytes"]) == 1_256_449
    windows = EvaluationWindows.of_texts(tokens, block_size=512)
    assert (windows.spans[:, 2] - windows.spans[:, 1]).sum() == 245_569


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_subwords_give_the_text_back(kind, tmp_path):
    train_language_tokenizer([TEXT * 3], kind, 264).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<unk>", "</s>"]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == END == start_token(tokenizer)
    text = " tab\t</s> <unk>\n\n  Ma\u0308nner \u2028"
    ids = tokenizer(text).input_ids
    assert ids[0] == END and not {0, 1, 2} & set(ids[1:])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_are_numbered_by_frequency(warnings):
    text = "b a b\nc <unk> </s> b  a\n<pad> d"
    tokenizer = train_language_tokenizer([text, text], "word", 7)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "</s>": 2, "b": 3, "\n": 4, "a": 5, "c": 6}
    assert tokenizer("b\u00a0c\t<unk> </s> <pad>\nd").input_ids == [END, 3, 6, 1, 1, 1, 4, 1]
    everything = train_language_tokenizer([text], "word", 100)
    assert len(everything) == 8 and "The text gave 8 tokens" in warnings()
    with pytest.raises(ValueError, match="vocab_size=3: 3 special tokens"):
        train_language_tokenizer([text], "word", 3)
    with pytest.raises(ValueError, match="no tokenizer type 'chars'; choose 'bpe', 'unigram' or 'word'"):
        train_language_tokenizer([text], "chars", 300)
    with pytest.raises(ValueError, match="vocab_size=258: 3 special tokens and 256 bytes"):
        train_language_tokenizer([text], "bpe", 258)


def test_every_document_begins_and_ends(tokenizer):
    texts = Dataset.from_dict({"text": [TEXT, "x"]})
    rows = tokenize_texts(texts, tokenizer, arguments())
    assert rows.column_names == ["input_ids", "num_words", "num_bytes"]
    for text, ids in zip(texts["text"], rows["input_ids"], strict=True):
        assert ids == [*tokenizer(text).input_ids, END]
    lines = tokenize_texts(texts, tokenizer, arguments(documents="lines"))
    # The line feed that ends a line is counted, though </s> stands for it.
    assert lines["num_bytes"][:] == [len(TEXT) + 1, 2]


def test_other_tokenizers_keep_what_they_put_before_a_text():
    other = train_tokenizer([TEXT], "bpe", 262)
    texts = Dataset.from_dict({"text": ["x", "y"]})
    start, end = other.bos_token_id, other.eos_token_id
    # This one only appends </s>, which then also begins.
    (_, x, _), (_, y, _) = tokenize_texts(texts, other, arguments())["input_ids"]
    assert TrainingBlocks(tokenize_texts(texts, other, arguments()), 4).tokens.tolist() == [end, x, end, y, end]
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    other.backend_tokenizer.post_processor = template
    tokens = TrainingBlocks(tokenize_texts(texts, other, arguments()), 4).tokens
    assert tokens.tolist() == [start, x, end, start, y, end]
    other.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        start_token(other)


def stream_of(blocks):
    """The tokens that blocks hold together."""
    rows = [block["input_ids"].tolist() for block in blocks]
    assert all(first[-1] == second[0] for first, second in zip(rows, rows[1:], strict=False))
    return rows[0] + [token for row in rows[1:] for token in row[1:]]


@pytest.mark.parametrize("block_size", [2, 3, 4, 5, 7, 10, 11])
def test_a_stream_predicts_every_token_once(block_size):
    blocks = TrainingBlocks(documents([3, 4, 5], [6], [7, 8, 9]), block_size)
    rows = [blocks[index] for index in range(len(blocks))]
    assert stream_of(rows) == [END, 3, 4, 5, END, 6, END, 7, 8, 9, END]
    assert {len(row["input_ids"]) for row in rows[:-1]} <= {block_size}
    assert all(row.keys() == {"input_ids", "labels"} for row in rows)
    targets = [token for row in rows for token in row["labels"][1:].tolist()]
    assert targets == [3, 4, 5, END, 6, END, 7, 8, 9, END]
    assert all(row["labels"][0] == -100 for row in rows)


@pytest.mark.parametrize("block_size", [3, 4, 5, 8, 13])
def test_separate_documents_start_positions_again(block_size):
    blocks = TrainingBlocks(documents([3, 4, 5], [6], [7, 8, 9]), block_size, separate=True)
    rows = [blocks[index] for index in range(len(blocks))]
    assert stream_of(rows) == [END, 3, 4, 5, END, END, 6, END, END, 7, 8, 9, END]
    targets = [token for row in rows for token in row["labels"].tolist() if token != -100]
    assert targets == [3, 4, 5, END, 6, END, 7, 8, 9, END]
    for row in rows:
        positions, ids = row["position_ids"].tolist(), row["input_ids"].tolist()
        assert positions[0] == 0
        for index in range(1, len(ids)):
            begins = ids[index - 1] == ids[index] == END
            assert positions[index] == (0 if begins else positions[index - 1] + 1)
            assert (row["labels"][index] == -100) == begins


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="has 4 tokens, fewer than one block of block_size=5"):
        TrainingBlocks(documents([3, 4]), 5)
    with pytest.raises(ValueError, match="block_size=2 is too short for separate documents"):
        TrainingBlocks(documents([3, 4]), 2, separate=True)


def test_a_part_of_a_data_set_is_its_own_text():
    rows = documents([3], [4, 5], [6])
    assert TrainingBlocks(rows.select([2, 1]), 6).tokens.tolist() == [END, 6, END, 4, 5, END]


def scores(windows):
    """(index of the scored token, number of tokens that its window has before it) of every scored token."""
    found = []
    for index in range(len(windows)):
        row = windows[index]
        first = int(windows.spans[index][0])
        for position, label in enumerate(row["shift_labels"].tolist()):
            if label != -100:
                assert label == windows.tokens[first + position + 1]
                assert row["input_ids"][position] == windows.tokens[first + position]
                found.append((first + position + 1, position + 1))
    return sorted(found)


@pytest.mark.parametrize("num_tokens", [2, 5, 8, 9, 10, 23, 24])
@pytest.mark.parametrize("context_window", [0, 1, 5, 7])
def test_windows_score_every_token_but_the_first_once(num_tokens, context_window):
    windows = EvaluationWindows(range(10, 10 + num_tokens), [0], block_size=8, context_window=context_window)
    scored = scores(windows)
    assert [index for index, _ in scored] == list(range(1, num_tokens))
    assert all(context >= min(index, context_window + 1) for index, context in scored)
    assert all(len(windows[index]["input_ids"]) == min(8, num_tokens - 1) for index in range(len(windows)))
    new = [int(row["shift_labels"].ne(-100).sum()) for row in (windows[index] for index in range(len(windows)))]
    assert sum(new) == num_tokens - 1 and max(new[1:], default=0) <= 8 - context_window


def test_the_papers_windows():
    """512 tokens, of which the last 112 are scored, and all of the first."""
    windows = EvaluationWindows(np.arange(1001), [0], block_size=512, context_window=400)
    counts = [int(windows[index]["shift_labels"].ne(-100).sum()) for index in range(len(windows))]
    assert counts == [512, 112, 112, 112, 112, 40]


def test_separate_documents_are_scored_apart():
    rows = documents([3, 4, 5, 6], [7], [8, 9])
    windows = EvaluationWindows.of_texts(rows, block_size=4, separate=True)
    assert [row["input_ids"].tolist() for row in (windows[index] for index in range(len(windows)))] == [
        [END, 3, 4, 5],
        [3, 4, 5, 6],
        [END, 8, 9],
        [END, 7],
    ]
    assert len(scores(windows)) == 10
    assert (windows.num_words, windows.num_bytes) == (7, 14)
    stream = EvaluationWindows.of_texts(rows, block_size=4)
    assert [index for index, _ in scores(stream)] == list(range(1, 11))


def test_padding_is_on_the_right_and_a_document_of_its_own():
    blocks = TrainingBlocks(documents([3, 4, 5], [6], [7, 8, 9]), 5, separate=True)
    first, last = blocks[1], {name: values[:2] for name, values in blocks[2].items()}
    batch = BlockCollator(pad_token_id=0)([first, last])
    assert batch["input_ids"].tolist() == [first["input_ids"].tolist(), [*last["input_ids"].tolist(), 0, 0, 0]]
    assert batch["labels"][1].tolist()[2:] == [-100, -100, -100]
    assert batch["position_ids"][0].tolist() == first["position_ids"].tolist()
    assert batch["position_ids"][1].tolist() == [*last["position_ids"].tolist(), 0, 1, 2]
    assert batch.keys() == {"input_ids", "labels", "position_ids"}


def test_the_standard_library_is_split_by_path():
    splits = load_texts(arguments(task="stdlib"))
    assert splits.keys() == {"train", "validation", "test"}
    sizes = {name: len(split) for name, split in splits.items()}
    assert 0.01 < sizes["validation"] / sizes["train"] < 0.12 and 0.01 < sizes["test"] / sizes["train"] < 0.12
    texts = [text for split in splits.values() for text in split["text"]]
    assert sum(re.search(r"^class TestCase\b", text, re.MULTILINE) is not None for text in texts) == 1
    assert not any("class TestCase(unittest.TestCase)" in text for text in texts)
    again = load_texts(arguments(task="stdlib"))
    assert all(splits[name]["text"][:] == again[name]["text"][:] for name in splits)


def test_rows_are_tensors_of_token_ids():
    row = TrainingBlocks(documents([3, 4]), 3)[0]
    assert all(values.dtype is torch.int64 for values in row.values())
