"""The commands of BACKFILL.md run, and print what it says they print."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path

import pytest

from marketdata.store import PostgresStore
from tests.command_line import CommandLine, InProcess
from tests.documents import DOCUMENTS, MOMENT, blocks

_VARIES = (
    (r"in \d+:\d\d, [\d,]+ a second", "in 0:00, 0 a second"),
    (r"next try \S+ \S+ UTC", "next try then UTC"),
)
"""Speeds, and the moments of retries, which are scattered on purpose."""


def steady(text: str) -> list[str]:
    for pattern, instead in _VARIES:
        text = re.sub(pattern, instead, text)
    return [line.rstrip() for line in text.strip().splitlines()]


def test_commands_print_what_the_document_says(
    tmp_path: Path,
    database_url: str,
    redis_db: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with PostgresStore(database_url) as store:
        store.migrate()
    line = CommandLine(
        tmp_path, database_url=database_url, redis_url=redis_db, broker="sandbox", clock=MOMENT
    )
    marketdata = InProcess(line, monkeypatch, capsys)
    shown = [b for b in blocks(DOCUMENTS["BACKFILL.md"]) if b.language == "sh" and b.output]
    assert len(shown) >= 5
    for block in shown:
        (command,) = block.text.splitlines()
        done = marketdata(*shlex.split(command)[1:])
        said, told = steady(block.output or ""), steady(done.out)
        difference = "\n".join(difflib.ndiff(said, told))
        assert told == said, f"BACKFILL.md:{block.line} prints otherwise\n{difference}"


def test_the_sandbox_of_the_document_is_the_one_the_commands_run_on() -> None:
    first = next(b for b in blocks(DOCUMENTS["BACKFILL.md"]) if b.language == "sh")
    assert f"MARKETDATA_CLOCK={MOMENT}" in first.text
    assert "MARKETDATA_BROKER=sandbox" in first.text
