# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
Tools of the ecosystem on our models. A test that carries `@pytest.mark.tool(group, row)` is a row of the compatibility
table, which `scripts/dev/compatibility.py` makes of what these tests record; several tests may share a row.

A test takes `subject` (every model), `decoder` or `translator`, and `verdict` where a tool works with limits or is
refused with a clear error, which the test has to see.
"""

import os

import pytest
from ecosystem.subjects import subjects
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

KINDS = {
    "subject": lambda subject: True,
    "decoder": lambda subject: subject.is_decoder,
    "translator": lambda subject: not subject.is_decoder,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, kept in KINDS.items():
        if fixture in metafunc.fixturenames:
            # Others' models are there for comparison alone, and may fail.
            chosen = subjects(os.environ.get("LEANFORMERS_PEERS") == "1", kept)
            metafunc.parametrize(fixture, chosen, ids=[subject.name for subject in chosen])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group, row and column of the table, into the report that `--junitxml` writes; here and in no fixture, so that
    tests that are skipped have them as well."""
    for item in items:
        marker = item.get_closest_marker("tool")
        if marker is not None:
            group, row = marker.args
            (kind,) = KINDS.keys() & set(item.fixturenames)
            subject = item.callspec.params[kind]
            item.user_properties += [("group", group), ("row", row), ("subject", subject.name)]


class Verdict:
    """What a test found beside "works"."""

    def __init__(self, properties: list[tuple[str, object]]):
        self.properties = properties

    def limits(self, note: str) -> None:
        """It works, but `note`."""
        self.properties.append(("verdict", f"limits: {note}"))

    def refused(self, reason: str) -> None:
        """A clear error said `reason`, in the words of the table."""
        self.properties.append(("verdict", f"refused: {reason}"))


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> Verdict:
    return Verdict(request.node.user_properties)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, behind the special ones."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ("pad_token", "unk_token", "bos_token", "eos_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(names, special, strict=True)), padding_side="left", model_max_length=256
    )
