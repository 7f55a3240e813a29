# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What mkdocs.yml asks of mkdocs beyond its options: the site's pages are documents from all over the repository, each
at the place that it has there."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "*.md",
    "docs/*.md",
    "modeling/*/README.md",
    "model_cards/*.md",
    "scripts/benchmarks/results/*.md",
)
PICTURES = ("scripts/benchmarks/results/*.png", "docs/*.png", "docs/figures/*.png")
NO_PAGES = {"model_cards/template.md"}  # with gaps, filled in when a card is written
# A link, its target without an anchor, and the anchor.
LINK = re.compile(r"(\[[^\]]*\])\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def paths(patterns: tuple[str, ...]) -> list[str]:
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(found - NO_PAGES)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The documents and pictures of the repository, by their paths there."""
    theme = [file for file in files if not (ROOT / "docs" / file.src_uri).is_file()]
    own = [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in [*paths(PAGES), *paths(PICTURES)]]
    return Files([*theme, *own])


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Links to files that are no pages, such as a script, become plain text: the site has no copy of them. And a
    block's language stands alone: `bash slow`, which tells our tests what to run, is none that the site knows."""
    folder = (ROOT / page.file.src_uri).parent

    def kept(match: re.Match) -> str:
        target = (folder / match[2]).resolve()
        is_file = target.is_relative_to(ROOT) and target.exists()
        is_page = is_file and files.get_file_from_path(target.relative_to(ROOT).as_posix()) is not None
        return match[0] if is_page or not is_file else match[1][1:-1]

    return LINK.sub(kept, markdown.replace("```bash slow\n", "```bash\n"))
