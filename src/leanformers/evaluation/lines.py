# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Lines of text in; out a translation a line, so that the n-th is that of the n-th line, or texts of many lines."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def read_lines(path: str | None) -> list[str]:
    """The lines of a UTF-8 file, or of standard input; a line ends at a line feed and nowhere else."""
    content = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path or 'Standard input'} is not UTF-8 text (byte {error.start} on).") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def reserve(path: str | None) -> None:
    """Fail before the work, and not after it, if its result cannot be written to this file."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).open("ab").close()


def write_lines(path: str | None, lines: Sequence[str]) -> None:
    """Write to a UTF-8 file, or to standard output."""
    # A line feed inside a translation would shift all that follow.
    _write(path, "".join(f"{line.replace(chr(10), ' ')}\n" for line in lines))


def write_continuations(path: str | None, prompts: Sequence[str], continuations: Sequence[str]) -> None:
    """Prompts with what follows them, as texts with an empty line between two, or as JSON lines in a .jsonl file."""
    pairs = list(zip(prompts, continuations, strict=True))
    if path and path.endswith(".jsonl"):
        rows = ({"prompt": prompt, "continuation": continuation} for prompt, continuation in pairs)
        _write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    else:
        _write(path, "\n".join(f"{prompt}{continuation}\n" for prompt, continuation in pairs))


def _write(path: str | None, text: str) -> None:
    content = text.encode("utf-8")
    if path:
        Path(path).write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
