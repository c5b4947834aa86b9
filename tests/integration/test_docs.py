"""The code in the documents runs, and prints what the documents say it prints."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, blocks, reader_of_documents, run

__all__ = ["reader_of_documents"]

WITH_CODE = {n: p for n, p in DOCUMENTS.items() if any(b.runs for b in blocks(p))}


def lines(text: str) -> list[str]:
    """Return the lines without the blanks at their ends, which editors remove."""
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_prints_what_the_document_says(name: str, reader_of_documents: Path):
    for block, printed in run(DOCUMENTS[name]):
        said, told = lines(block.output or ""), lines(printed)
        difference = "\n".join(difflib.ndiff(said, told))
        assert told == said, f"{name}:{block.line} prints otherwise\n{difference}"


def test_most_code_is_run_and_most_of_it_shows_its_output():
    found = [b for path in DOCUMENTS.values() for b in blocks(path) if b.language == "python"]
    assert len([b for b in found if b.runs]) > 20
    assert len([b for b in found if b.output]) > 15
    assert 3 * len([b for b in found if not b.runs]) <= len([b for b in found if b.runs])
