"""The documents against the code: complete tables, names that exist, commands that parse."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.core import TyperGroup

import marketdata as md
from algorithms.cli import app as algo
from marketdata import errors
from marketdata.arguments import Configured
from marketdata.cli import exits
from marketdata.cli.app import app
from marketdata.client import Client
from marketdata.config import VARIABLES, Settings
from marketdata.types import COLUMNS, Timeframe
from tests.documents import DOCUMENTS, MOMENT, ROOT, blocks

README = DOCUMENTS["README.md"].read_text("utf-8")
ARCHITECTURE = DOCUMENTS["docs/ARCHITECTURE.md"].read_text("utf-8")
PACKAGE = ROOT / "src" / "marketdata"


def section(title: str) -> str:
    """Return the README's part under a heading."""
    parts = re.split(r"^## (.+)$", README, flags=re.M)
    return parts[parts.index(title) + 1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in `text`, heads and rules left out."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        for line in table.splitlines()[2:]:
            found.append([cell.strip() for cell in line.strip("|").split(" |")])
    return found


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def commands(of: typer.Typer = app) -> dict[str, Any]:
    """Return the registered commands by their words, as in ``db init``."""

    def walk(group: TyperGroup, words: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                yield from walk(command, f"{words}{name} ")
            else:
                yield words + name, command

    root = typer.main.get_command(of)
    assert isinstance(root, TyperGroup)
    return dict(walk(root, ""))


def known_commands() -> dict[str, Any]:
    """Return the commands with those of the entry point ``algo``."""
    # A command line that ran in this process may have added the entry point's to `app` already.
    return commands() | {f"algo {name}": found for name, found in commands(algo).items()}


# ------------------------------------------------------------------------------------ tables


def test_settings_table_is_complete():
    listed = [tuple(code(row[0])) for row in rows(section("Settings"))]
    assert listed == list(VARIABLES.values())


def test_settings_table_has_the_defaults():
    for names, default, _ in rows(section("Settings")):
        field = next(f for f, n in VARIABLES.items() if n[0] == code(names)[0])
        actual = Settings.model_fields[field].default
        if code(default):
            written = code(default)[0]
            several = isinstance(actual, tuple)
            read = tuple(written.split(",")) if several else type(actual)(written)
            assert read == actual, field
        else:
            assert actual in (None, ()) or field == "home", field


def test_every_variable_named_anywhere_exists():
    known = {name for names in VARIABLES.values() for name in names}
    for name, path in DOCUMENTS.items():
        written = set(re.findall(r"\b(?:MARKETDATA|APCA|ALPACA)_[A-Z_]*[A-Z]\b", path.read_text()))
        assert written <= known, name


def test_errors_table_is_complete_and_right():
    table = {code(row[0])[0]: row[1] for row in rows(section("When something goes wrong"))}
    known = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MarketDataError)
    }
    assert table.keys() == known.keys() - {"MarketDataError"}
    for name, said in table.items():
        if said != "sometimes":
            assert said == ("yes" if known[name].transient else "no"), name


def test_parameters_table_is_the_signature():
    table = {code(row[0])[0]: row[1:] for row in rows(section("`get_bars`"))}
    parameters = dict(inspect.signature(Client.get_bars).parameters)
    del parameters["self"]
    assert list(table) == list(parameters)
    for name, (default, values) in table.items():
        actual = parameters[name].default
        if actual in (None, inspect.Parameter.empty):
            continue
        if isinstance(actual, Configured):  # the settings decide: their default is shown
            field = next(f for f, names in VARIABLES.items() if names[0] == actual.value)
            actual = Settings.model_fields[field].default
        assert code(default) == [repr(actual).replace("'", '"')], name
        assert values
    written = code(table["timeframe"][1])[0].split()
    assert written == [t.value for t in Timeframe]


def test_frame_table_has_every_column():
    named = [name for row in rows(section("The frame")) for name in code(row[0])]
    assert [name for name in named if name in COLUMNS] == list(COLUMNS)


def test_command_table_is_complete():
    listed = []
    for row in rows(section("Command line")):
        if not code(row[0]):
            continue
        words = code(row[0])[0].split()[1:]
        listed.append(" ".join(words[:2]) if words[0] in ("algo", "db") else words[0])
    assert sorted(listed) == sorted(known_commands())


def test_exit_codes_are_complete():
    listed = [int(row[0]) for row in rows(section("Command line")) if row[0].isdigit()]
    known = [v for k, v in vars(exits).items() if k.isupper() and isinstance(v, int)]
    assert sorted(listed) == sorted(known)


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("path", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_public_names_exist(path: Path):
    text = path.read_text("utf-8")
    for name in re.findall(r"\bmd\.([A-Za-z_]\w*)", text):
        assert name in md.__all__, name


@pytest.mark.parametrize("path", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_links_lead_somewhere(path: Path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        assert not file.startswith("http"), "nothing to check them with"
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_code_is_python_and_the_moment_is_one(path: Path):
    for block in blocks(path):
        if block.language == "python":
            ast.parse(block.text)
    for moment in re.findall(r'clock="([^"]+)"', path.read_text("utf-8")):
        assert moment == MOMENT


def shell_lines(path: Path) -> list[str]:
    """Return the ``marketdata`` command lines of a document, from blocks and from sentences."""
    found = []
    text = path.read_text("utf-8")
    for block in blocks(path):
        if block.language == "sh":
            found += [line for line in block.text.splitlines() if line.startswith("marketdata ")]
    inline = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found += [c for c in code(inline.replace("\n", " ")) if c.startswith("marketdata ")]
    return found


@pytest.mark.parametrize("path", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_command_lines_parse(path: Path):
    known = known_commands()
    for line in shell_lines(path):
        words: list[Any] = shlex.split(re.split("[#>|]", line)[0])[1:]
        name = " ".join(words[:2]) if words[0] in ("algo", "db") else words[0]
        assert name in known, line
        rest = words[len(name.split()) :]
        if rest or not any(p.required for p in known[name].params):
            known[name].make_context(name, rest, resilient_parsing=False)


def test_there_are_command_lines_to_check():
    assert sum(len(shell_lines(path)) for path in DOCUMENTS.values()) > 20


# ------------------------------------------------------------------------------ architecture

REFERENCES = re.findall(r"`([\w/]+\.py)::([\w.]+)`", ARCHITECTURE)


def defined(tree: ast.AST, names: list[str]) -> bool:
    """Whether classes and functions of these names lie inside each other."""
    if not names:
        return True
    kinds = (ast.ClassDef, ast.FunctionDef)
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, kinds) and node.name == names[0]:
            return defined(node, names[1:])
    return False


def test_references_exist():
    assert len(REFERENCES) > 40
    missing = [
        f"{file}::{name}"
        for file, name in REFERENCES
        if not (PACKAGE / file).is_file()
        or not defined(ast.parse((PACKAGE / file).read_text("utf-8")), name.split("."))
    ]
    assert missing == []


def test_files_named_exist():
    for name in set(re.findall(r"`?\b([\w/]+\.py)\b", ARCHITECTURE)):
        assert (PACKAGE / name).is_file(), name


def test_layer_table_has_every_module():
    table = {name for row in rows(ARCHITECTURE) for name in code(row[1])}
    modules = {p.name for p in PACKAGE.glob("*.py")}
    packages = {f"{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py")}
    assert table - {n for n in table if "::" in n} == modules | packages


# ------------------------------------------------------------------------------------ manners


@pytest.mark.parametrize("path", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_first_words_and_no_decoration(path: Path):
    text = path.read_text("utf-8")
    assert text.startswith("# ")
    assert not re.search(r"[\U0001F000-\U0001FAFF\u2600-\u27BF]", text), "an emoji"
    assert "shields.io" not in text


def test_first_screen_has_what_it_must():
    first = "\n".join(README.splitlines()[:40])
    for must in ("make demo", "make test", "md.get_bars", "SIMULATED", "from broker"):
        assert must in first, must
