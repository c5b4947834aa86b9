"""The notebooks run, in a kernel of their own, and their stored outputs are those of the code."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import notebooks
from tests.documents import MOMENT, ROOT, reader_of_documents
from tests.notebooks import IMAGE, NOTEBOOKS, code_cells, described, read, told

__all__ = ["reader_of_documents"]

BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def markdown(path: Path) -> str:
    cells = read(path)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_there_are_four():
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.exact("the outputs count what each tier did")
@BY_NAME
def test_outputs_are_those_of_the_code(path: Path, reader_of_documents: Path):
    """In a process of its own: the kernel's client does not live with warnings as errors."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.notebooks", path.name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@BY_NAME
def test_what_is_stored_is_small_and_complete(path: Path):
    notebook = read(path)
    assert path.stat().st_size < 256 * 1024
    pictures = 0
    for number, cell in enumerate(code_cells(notebook), 1):
        assert cell["execution_count"] == number
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", output["text"]
            data = output.get("data", {})
            assert data.keys() <= {"text/plain", "text/html", IMAGE}
            if described(data):
                pictures += 1
                assert base64.b64decode(data[IMAGE]).startswith(b"\x89PNG")
    assert pictures or path.stem.startswith("4")
    assert "plotly.js" not in path.read_text("utf-8")


@BY_NAME
def test_it_tells_a_story_on_the_sandbox(path: Path):
    text = markdown(path)
    assert text.startswith("# ")
    assert "SIMULATED" in text
    assert len(text.split()) > 250
    sources = ["".join(cell["source"]) for cell in code_cells(read(path))]
    assert f'clock="{MOMENT}"' in sources[0]
    assert 'broker="sandbox"' in sources[0]


@BY_NAME
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(path)):
        assert (path.parent / target).exists(), target


def test_an_output_that_is_not_the_codes_is_found(tmp_path: Path):
    """Neither a number nor a picture may be another; a duration may."""

    def cell(text: str) -> dict[str, object]:
        return {"cell_type": "code", "metadata": {}, "outputs": [{"text": [text]}]}

    def differences(now: str, then: str) -> list[str]:
        return notebooks.differences({"cells": [cell(now)]}, {"cells": [cell(then)]})

    assert differences("3 bars in 1.25 ms", "3 bars in   17 ms") == []
    assert len(differences("3 bars in 1.25 ms", "4 bars in 1.25 ms")) == 1
    assert told(cell("2 calls, about 1.8 s")) == ["2 calls, about TIME"]
