# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The documents as a site: every page is there, and every link between pages leads somewhere."""

import os
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    pytest.importorskip("material", reason="mkdocs-material, of the extra `docs`, is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    run = subprocess.run(
        command, cwd=root, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr  # strict: a link that leads nowhere is an error
    return folder


def test_every_document_is_a_page(site, root):
    for path in root.glob("docs/*.md"):
        assert (site / "docs" / path.stem / "index.html").is_file(), path.name
    assert "Four transformer architectures" in (site / "index.html").read_text(encoding="utf-8")


def test_blocks_of_code_end_where_they_should(site):
    for page in site.rglob("*.html"):
        assert "```" not in page.read_text(encoding="utf-8"), page
    assert '<h2 id="ten-lines">' in (site / "index.html").read_text(encoding="utf-8")


def test_pictures_of_documents_are_there(site):
    for page in (site / "index.html", *(site / "modeling").rglob("index.html")):
        pictures = re.findall(r'<img[^>]* src="([^"]+\.png)"', page.read_text(encoding="utf-8"))
        assert any("docs/figures/" in picture for picture in pictures), page
        for picture in pictures:
            assert (page.parent / picture).resolve().is_file(), picture


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]* src="(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        assert not loaded, page
