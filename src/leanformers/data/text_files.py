# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""UTF-8 text files, plain or gzip, read as they are.

A line ends at a line feed and nowhere else. Python's text mode and `str.splitlines` also break at characters such as
U+2028 that real corpora have inside sentences, and everything after one would be paired with the wrong line.
"""

import gzip
import zlib
from pathlib import Path


def read_text(path: str | Path) -> str:
    """The whole text; `\\r\\n` becomes `\\n`."""
    content = _read_bytes(Path(path))
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start].split(b"\n")
        raise ValueError(
            f"Line {len(before)} of {path} is not UTF-8 (byte 0x{content[error.start]:02x} at position "
            f"{len(before[-1])}): convert the file to UTF-8."
        ) from error


def read_lines(path: str | Path) -> list[str]:
    """The lines without their ends."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text; a line feed at the very end begins no further line."""
    return text.removesuffix("\n").split("\n")


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file: {error}.") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError(f"{path} is empty; it should hold text.")
    return content
