"""Every example runs and prints what its header says."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import MOMENT, ROOT, reader_of_documents

__all__ = ["reader_of_documents"]

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PARTS = ("Shows", "Needs", "Run", "Prints")


def header(example: Path) -> str:
    text = ast.get_docstring(ast.parse(example.read_text("utf-8")))
    assert text is not None, f"{example.name} has no header"
    return text


def promised(example: Path) -> list[str]:
    """Return the lines that the header shows as output."""
    _, _, shown = header(example).partition("\nPrints ")
    return [line[4:] for line in shown.split("\n\n", 1)[1].splitlines()]


def printed(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture
def on_the_sandbox(reader_of_documents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARKETDATA_BROKER", "sandbox")
    monkeypatch.setenv("MARKETDATA_CLOCK", MOMENT)
    return reader_of_documents


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_header_says_what_it_needs_and_how_to_run_it(example: Path):
    lines = header(example).splitlines()
    assert [w for w in PARTS if any(line.startswith(w + " ") for line in lines)] == list(PARTS)
    assert f"python examples/{example.name}" in header(example)
    assert MOMENT in header(example), "the run line reproduces the output"
    assert "SIMULATED" in header(example)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_prints_what_the_header_says(
    example: Path, on_the_sandbox: Path, capsys: pytest.CaptureFixture[str]
):
    runpy.run_path(str(example), run_name="__main__")
    assert printed(capsys.readouterr().out) == promised(example)


def test_runs_as_a_script(on_the_sandbox: Path):
    """As a user does: a process of its own, nothing on stderr."""
    example = ROOT / "examples" / "plot_a_day.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [sys.executable, str(example)], env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert printed(ran.stdout) == promised(example)
    page = (on_the_sandbox / "AAPL-day.html").read_text("utf-8")
    assert "SIMULATED" in page
    assert "plotly" in page
