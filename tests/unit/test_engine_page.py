"""The page on the engine's inside names every module, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "algorithms"
PAGE = (ROOT / "docs" / "ENGINE.md").read_text("utf-8")


def test_table_has_every_module():
    table = {
        name
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| layer")
        for name in re.findall(r"`([\w/.]+)`", line.split("|")[2])
    }
    modules = {p.name for p in PACKAGE.glob("*.py")} - {"__init__.py"}
    packages = {f"{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py")}
    assert table == modules | packages


def test_files_named_exist():
    for name in set(re.findall(r"`([\w/]+\.py)`", PAGE)):
        assert (PACKAGE / name).is_file(), name


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w.]+)\)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
