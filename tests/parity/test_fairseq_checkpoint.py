# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints as fairseq writes them, with dictionaries and BPE codes, become folders that load and translate."""

import itertools
import json
import random
from argparse import Namespace
from collections import OrderedDict
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from leanformers.conversion import convert_checkpoint
from leanformers.conversion.fairseq import RESERVED, dictionary_tokenizer, read_codes, read_dictionary
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.hub.check import check
from leanformers.modeling.delight import DeLighTForCausalLM, DeLighTForConditionalGeneration

# As subword-nmt learns them; "ne" and "ei" stand only on the way to other pieces.
CODES = [
    "e i",
    "ei n</w>",
    "h a",
    "ha u",
    "hau s</w>",
    "n e",
    "ne u",
    "i s",
    "is t</w>",
    "d a",
    "da s</w>",
    "l e",
    "le r</w>",
]
TEXT = ["das haus ist ein neues haus", "ist das neu ?", "ein maler ist das", "der maler malt ein haus , das neu ist ."]
LANGUAGES = {"source_lang": "de", "target_lang": "en"}
OPTIONS = {
    "delight_emb_map_dim": 32,
    "delight_emb_out_dim": 64,
    "delight_emb_depth": 2,
    "delight_dec_layers": 2,
    "delight_dec_min_depth": 2,
    "delight_dec_max_depth": 3,
}


def segment(word: str, codes: list[str]) -> list[str]:
    """BPE as subword-nmt applies it: of all neighbours that can be merged the pair learned first, everywhere."""
    ranks = {tuple(code.split(" ")): rank for rank, code in reversed(list(enumerate(codes)))}
    symbols = [*word[:-1], f"{word[-1]}</w>"]
    while pairs := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
        best, merged = min(pairs, key=ranks.__getitem__), []
        while symbols:
            fits = tuple(symbols[:2]) == best
            merged.append("".join(symbols[: 2 if fits else 1]))
            symbols = symbols[2 if fits else 1 :]
        symbols = merged
    return [f"{piece}@@" for piece in symbols[:-1]] + [symbols[-1].removesuffix("</w>")]


def pieces_of(text: str, codes: list[str] | None = CODES) -> list[str]:
    return [piece for word in text.split() for piece in (segment(word, codes) if codes else [word])]


def write_dictionary(path, words, size):
    """The words, and as fairseq pads its dictionaries, made-up ones up to `size`, the 4 reserved ones included."""
    words = [*words, *(f"madeupword{index:04d}" for index in range(size - len(RESERVED) - len(words)))]
    path.write_text("".join(f"{word} {1000 - index}\n" for index, word in enumerate(words)), encoding="utf-8")
    return [*RESERVED, *words]


def write_codes(path, codes=CODES):
    path.write_text("#version: 0.2\n" + "".join(f"{code}\n" for code in codes), encoding="utf-8")


def save_checkpoint(path, weights, options, form="args", **settings):
    """What `fairseq-train` saves, which is more than the model."""
    rest = {
        "model": OrderedDict(weights),
        "optimizer_history": [{"criterion_name": "LabelSmoothedCrossEntropyCriterion", "num_updates": 30000}],
        "extra_state": {"train_iterator": {"epoch": 7}, "val_loss": 4.5, "metrics": [(0, "loss", "Meter", {})]},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.007}]},
    }
    options = Namespace(**options, **LANGUAGES, arch="delight_transformer_wmt14_en_de", unused=None)
    first = {"args": options} if form == "args" else {"args": None, "cfg": {"model": options, "task": LANGUAGES}}
    torch.save(first | rest, path, **settings)


@pytest.fixture
def convert(root, monkeypatch):
    """The script's `main` with the family given."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    script = import_module("convert_checkpoint")
    return lambda *options: script.main(["--family", "delight", *map(str, options)])


@pytest.fixture
def small(delight_weights, tmp_path):
    """A folder with a small language model's checkpoint and its dictionary of words."""
    folder = tmp_path / "model"
    folder.mkdir()
    words = list(dict.fromkeys(" ".join(TEXT).split()))
    save_checkpoint(folder / "checkpoint_best.pt", delight_weights(OPTIONS, 24), OPTIONS)
    write_dictionary(folder / "dict.txt", words, 24)
    return folder


def golden(shared, case):
    folder = shared / "reference" / "delight" / case
    tensors = [load_file(folder / f"{name}.safetensors") for name in ("weights", "io")]
    return *tensors, json.loads((folder / "config.json").read_text())


def assert_same_logits(folder, tensors):
    model = DeLighTForConditionalGeneration.from_pretrained(folder)
    source, target = tensors["input.src_tokens"], tensors["input.prev_output_tokens"]
    with torch.no_grad():
        logits = model(source, attention_mask=source != 1, decoder_input_ids=target).logits
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=0)
    return model


def assert_tokenizes(tokenizer, words, lines=TEXT):
    for line in lines:
        pieces = [piece if piece in words else "<unk>" for piece in pieces_of(line)]
        ids = tokenizer(line).input_ids
        assert ids == [*map(words.index, pieces), 2]
        assert tokenizer.convert_ids_to_tokens(ids) == [*pieces, "</s>"]
        if "<unk>" not in pieces:
            assert tokenizer.decode(ids, skip_special_tokens=True) == line


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_joined_dictionary(shared, tmp_path, convert, capsys, form):
    weights, tensors, hparams = golden(shared, "v1_encdec_block_shuffle")
    save_checkpoint(tmp_path / "checkpoint_best.pt", weights, hparams["args"], form)
    pieces = list(dict.fromkeys(piece for line in TEXT for piece in pieces_of(line)))
    for language in ("de", "en"):
        words = write_dictionary(tmp_path / f"dict.{language}.txt", pieces, 61)
    write_codes(tmp_path / "code")
    convert("--source", tmp_path / "checkpoint_best.pt", "--output", tmp_path / "converted")
    assert "DeLighTForConditionalGeneration with 206,912 parameters" in capsys.readouterr().out

    model = assert_same_logits(tmp_path / "converted", tensors)
    tokenizers = TranslationTokenizers.from_pretrained(tmp_path / "converted")
    assert tokenizers.shared and len(tokenizers.source) == model.config.vocab_size == 61
    assert_tokenizes(tokenizers.source, words)
    batch = tokenizers.source(TEXT, padding=True, return_tensors="pt")
    output = model.generate(**batch, num_beams=2, max_new_tokens=8)
    assert all(isinstance(line, str) for line in tokenizers.target.batch_decode(output, skip_special_tokens=True))
    assert check(tmp_path / "converted", live=False).problems == []


def test_two_dictionaries_in_another_folder(shared, tmp_path, convert):
    weights, tensors, hparams = golden(shared, "v2_encdec_uniform_prenorm")
    data = tmp_path / "data-bin"
    data.mkdir()
    save_checkpoint(tmp_path / "model.pt", weights, hparams["args"], _use_new_zipfile_serialization=False)
    pieces = sorted({piece for line in TEXT for piece in pieces_of(line)})
    source = write_dictionary(data / "dict.de.txt", pieces[:-3], 47)
    target = write_dictionary(data / "dict.en.txt", pieces[::-1], 53)
    write_codes(tmp_path / "my.codes")
    options = ["--source", tmp_path / "model.pt", "--output", tmp_path / "converted", "--dict-dir", data]
    convert(*options, "--codes", tmp_path / "my.codes")

    assert_same_logits(tmp_path / "converted", tensors)
    tokenizers = TranslationTokenizers.from_pretrained(tmp_path / "converted")
    assert (tokenizers.source_vocab_size, tokenizers.target_vocab_size) == (47, 53)
    assert_tokenizes(tokenizers.source, source)
    assert_tokenizes(tokenizers.target, target)
    assert (tmp_path / "converted" / "target_tokenizer" / "tokenizer.json").is_file()


def test_golden_folder_converts_without_a_tokenizer(shared, tmp_path, convert, capsys):
    case = shared / "reference" / "delight" / "v1_encdec_block_shuffle"
    convert("--source", case, "--output", tmp_path / "converted")
    assert "without a tokenizer" in capsys.readouterr().out
    assert_same_logits(tmp_path / "converted", load_file(case / "io.safetensors"))


def test_language_model_of_words(small, tmp_path, convert, capsys):
    convert("--source", small / "checkpoint_best.pt", "--output", tmp_path / "converted")
    assert "with its tokenizer" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    words = read_dictionary(small / "dict.txt")
    ids = tokenizer("das haus ist <unk>\nein neues </s> </s>haus").input_ids
    expected = ["</s>", "das", "haus", "ist", "<unk>", "</s>", "ein", "neues", "<unk>", "<unk>"]
    assert ids == list(map(words.index, expected))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    model = DeLighTForCausalLM.from_pretrained(tmp_path / "converted")
    output = model.generate(**tokenizer("das haus", return_tensors="pt"), max_new_tokens=5)
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith("das haus")


def test_checkpoint_without_dictionaries_becomes_a_model_alone(small, tmp_path, convert, capsys):
    (small / "dict.txt").unlink()
    convert("--source", small / "checkpoint_best.pt", "--output", tmp_path / "converted")
    assert "without a tokenizer" in capsys.readouterr().out
    assert DeLighTForCausalLM.from_pretrained(tmp_path / "converted").config.vocab_size == 24


@pytest.mark.slow
def test_converted_folder_is_fit_for_the_hub(small, tmp_path):
    convert_checkpoint("delight", small / "checkpoint_best.pt", tmp_path / "converted")
    assert check(tmp_path / "converted").problems == []


class Trap:
    """Unpickled in the ordinary way, it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("place", ["args", "model", "extra_state"])
def test_checkpoint_that_would_run_code_is_refused(tmp_path, convert, place, as_zip):
    trap = Trap(tmp_path / "sprung")
    checkpoint = {"args": Namespace(**OPTIONS), "model": {}, "extra_state": {}} | {place: {"x": trap}}
    torch.save(checkpoint, tmp_path / "model.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(SystemExit, match="error: .* names _?io.open, which could run code on loading"):
        convert("--source", tmp_path / "model.pt", "--output", tmp_path / "converted")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "converted").exists()
    function, arguments = trap.__reduce__()
    function(*arguments).close()
    assert (tmp_path / "sprung").exists()  # as it would be, had it been loaded in the ordinary way


def test_files_that_are_no_checkpoint(small, tmp_path, convert):
    source, output = tmp_path / "model.pt", tmp_path / "converted"
    whole = (small / "checkpoint_best.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"just text", b"x", b""):
        source.write_bytes(content)
        with pytest.raises(SystemExit, match="error: .*no checkpoint, or damaged or cut short"):
            convert("--source", source, "--output", output)
    for content in ({"model": {}}, {"args": Namespace(a=1)}, [torch.ones(1)]):
        torch.save(content, source)
        with pytest.raises(SystemExit, match="no fairseq checkpoint: it needs `model`, and `args` or `cfg`"):
            convert("--source", source, "--output", output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        ("das 3\nhaus 2\n", "makes a vocabulary of 6 .* 24 rows: a dictionary that does not fit the weights"),
        ("das 3\nhaus\n", "line 2 of .*dict.txt must be a word and its count, not 'haus'"),
        ("das 3\nhaus 2\ndas 1\n", "line 3 of .* has 'das' again"),
        ("das 3\n</s> 2\n", "line 2 of .* has '</s>' again"),
        ("das 3\xff\n", "cannot be read as UTF-8"),
    ],
)
def test_dictionary_that_does_not_fit(small, tmp_path, convert, dictionary, message):
    (small / "dict.txt").write_bytes(dictionary.encode("latin-1"))
    with pytest.raises(SystemExit, match=message):
        convert("--source", small / "checkpoint_best.pt", "--output", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ("e i\n", "must begin with '#version: 0.2'"),
        ("#version: 0.2\ne i\ne i n\n", "line 3 of .* must be two symbols with a space between, not 'e i n'"),
        (None, "pieces of words like 'ma@@', but there are no BPE codes .*--codes"),
    ],
)
def test_codes_that_do_not_fit(small, tmp_path, convert, codes, message):
    write_dictionary(small / "dict.txt", ["ma@@", "ler"], 24)
    if codes:
        (small / "bpecodes").write_text(codes)
    with pytest.raises(SystemExit, match=message):
        convert("--source", small / "checkpoint_best.pt", "--output", tmp_path / "converted")


def test_dictionaries_that_cannot_be_found(shared, small, tmp_path, convert):
    output = tmp_path / "converted"
    with pytest.raises(SystemExit, match=r"there is no dictionary .*nowhere.dict\.txt"):
        convert("--source", small / "checkpoint_best.pt", "--output", output, "--dict-dir", tmp_path / "nowhere")
    case = shared / "reference" / "delight" / "v1_encdec_block_shuffle"
    with pytest.raises(SystemExit, match="name no source_lang and target_lang"):
        convert("--source", case, "--output", output, "--dict-dir", small)
    weights, _, hparams = golden(shared, case.name)
    save_checkpoint(small / "checkpoint_best.pt", weights, hparams["args"])
    with pytest.raises(SystemExit, match=r"there is no dictionary .*dict\.de\.txt and no .*dict\.en\.txt"):
        convert("--source", small / "checkpoint_best.pt", "--output", output)
    assert not output.exists()


def test_pieces_are_those_of_bpe_for_any_merges(tmp_path):
    """Also for merges out of order, learned twice, or of one symbol with itself."""
    alphabet = "abc"
    words = ["".join(letters) for length in range(1, 6) for letters in itertools.product(alphabet, repeat=length)]
    for seed in range(40):
        chooser = random.Random(seed)
        inner, final, codes = list(alphabet), [f"{letter}</w>" for letter in alphabet], []
        for _ in range(8):
            left, right = chooser.choice(inner), chooser.choice(inner + final)
            codes.append(f"{left} {right}")
            (final if right.endswith("</w>") else inner).append(left + right)
        if seed % 2:
            chooser.shuffle(codes)
        text = " ".join(chooser.sample(words, 60))
        pieces = pieces_of(text, codes)
        write_codes(tmp_path / "code", codes)
        dictionary = [*RESERVED, *dict.fromkeys(pieces)]
        tokenizer = dictionary_tokenizer(dictionary, read_codes(tmp_path / "code"), is_translation=True)
        ids = tokenizer(text).input_ids
        assert ids == [*map(dictionary.index, pieces), 2], codes
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_piece_outside_of_the_dictionary_is_unknown(tmp_path):
    write_codes(tmp_path / "code")
    tokenizer = dictionary_tokenizer([*RESERVED, "neu@@", "es", "x"], read_codes(tmp_path / "code"), True)
    # "ne" is a step on the way to "neu", which no word of the dictionary needs for itself.
    assert tokenizer.convert_ids_to_tokens(tokenizer("neues nex x").input_ids) == [
        *("neu@@", "<unk>", "<unk>", "<unk>", "x", "x", "</s>")
    ]


def test_text_that_reads_like_special_tokens_is_text(tmp_path):
    write_codes(tmp_path / "code")
    merges = read_codes(tmp_path / "code")
    for tokenizer in (dictionary_tokenizer([*RESERVED, "x"], codes, True) for codes in (merges, None)):
        ids = tokenizer("x </s> <s> <pad> x").input_ids
        assert (ids[0], *ids[-2:]) == (4, 4, 2) and set(ids[1:-2]) == {3}
