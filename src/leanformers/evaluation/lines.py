# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Lines of text in and out, one sentence each, so that the n-th translation is that of the n-th line."""

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
    content = "".join(f"{line.replace(chr(10), ' ')}\n" for line in lines).encode("utf-8")
    if path:
        Path(path).write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
