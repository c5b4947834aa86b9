"""The code in the documents: found, run on the sandbox, and compared with what it is said to print.

A fenced ``python`` block runs in the namespace of the blocks before it in the same document,
unless ``<!-- shown, not run -->`` stands on the line before it; after ``<!-- run in a process of
its own -->`` it runs in a new interpreter, with what it imports itself. A ``text`` block that
follows is its output, line by line.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marketdata import api
from marketdata.warning_types import MarketDataWarning

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {
    name: ROOT / name
    for name in (
        "README.md",
        "docs/ALGORITHMS.md",
        "docs/COMING_FROM.md",
        "docs/COMING_FROM_BACKTESTING.md",
        "docs/ARCHITECTURE.md",
        "docs/BROKERS.md",
        "docs/TRADING.md",
        "BACKFILL.md",
        "OPERATIONS.md",
    )
}
MOMENT = "2024-06-20T15:00:30-04:00"
"""The market time of every document and example: a Thursday in session, after a holiday."""

_SHOWN = "<!-- shown, not run -->"
_ALONE = "<!-- run in a process of its own -->"


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    runs: bool
    alone: bool
    output: str | None
    """What stands in the ``text`` block right after it."""


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    source = document.read_text("utf-8")
    found = []
    fences = list(re.finditer(r"^```(\w+)\n(.*?)^```$", source, re.M | re.S))
    for at, fence in enumerate(fences):
        before = source[: fence.start()].rstrip().rpartition("\n")[2]
        output = None
        if at + 1 < len(fences) and fences[at + 1][1] == "text":
            between = source[fence.end() : fences[at + 1].start()]
            output = None if between.strip() else fences[at + 1][2]
        found.append(
            Block(
                fence[1],
                fence[2],
                source.count("\n", 0, fence.start()) + 2,
                fence[1] == "python" and before != _SHOWN,
                before == _ALONE,
                output,
            )
        )
    return found


def run(document: Path) -> Iterator[tuple[Block, str]]:
    """Run a document's code; yield each block with what it printed."""
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document):
        if not block.runs or (block.alone and not _can_run(block)):
            continue
        if block.alone:
            yield block, _run_alone(block)
            continue
        # Line numbers of the document, for the traceback of what fails.
        code = compile("\n" * (block.line - 1) + block.text, str(document), "exec")
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            # Ours are part of the story; those of others stay what pytest makes of them.
            warnings.simplefilter("ignore", MarketDataWarning)
            exec(code, namespace)
        yield block, printed.getvalue()


def _can_run(block: Block) -> bool:
    """Whether what a block imports can be had for this Python: vectorbt ends at 3.12."""
    return "import vectorbt" not in block.text or sys.version_info < (3, 13)


def _run_alone(block: Block) -> str:
    """Run a block in a new interpreter and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [sys.executable, "-c", block.text],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def reader_of_documents(
    database_url: str, redis_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Be a newcomer: an empty database, a working directory of one's own, no settings but the
    servers; return the directory."""
    for name in list(os.environ):
        if name.startswith(("MARKETDATA_", "APCA_", "ALPACA_")) and "_TEST_" not in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("MARKETDATA_DATABASE_URL", database_url)
    monkeypatch.setenv("MARKETDATA_REDIS_URL", redis_db)
    monkeypatch.setenv("MARKETDATA_PROGRESS", "off")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "_client", None)
    monkeypatch.setattr(api, "_keywords", {})
    yield tmp_path
    if api._client is not None:
        api._client.close()
