"""The project as files: pins, layers, packaging, the public surface, what may not be committed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import marketdata
from marketdata import errors
from marketdata.config import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
PINNED = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in PINS}


def declared() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    groups = [PROJECT["project"]["dependencies"], PROJECT["dependency-groups"]["dev"]]
    lines = [line for group in [*groups, *extras.values()] for line in group]
    return [r for r in map(Requirement, lines) if r.name != "marketdata"]


def tracked() -> list[Path]:
    """Return what is, or is about to be, in the repository; every file of an exported tree."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listing.stdout.splitlines()
    if listing.returncode:
        skipped = {".venv", ".git", "__pycache__"}
        found = (p.relative_to(ROOT) for p in ROOT.rglob("*"))
        names = [str(p) for p in found if not skipped & set(p.parts)]
    return [p for name in names if (p := ROOT / name).is_file()]


def test_constraints_are_plain_pins():
    assert sorted(PINS) == PINS
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!+]+", line) for line in PINS)
    assert len(PINNED) == len(PINS)


def test_every_dependency_is_pinned_within_its_bounds():
    for requirement in declared():
        version = PINNED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_every_module_imported_is_declared():
    """What only a dependency brings along may leave with its next version."""
    distributions = metadata.packages_distributions()
    names = {canonicalize_name(r.name) for r in declared()}
    undeclared = {}
    for folder in ("src", "tests", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            for module in imported(file) & set(distributions) - {"marketdata", "algorithms"}:
                if not names & {canonicalize_name(d) for d in distributions[module]}:
                    undeclared[module] = str(file.relative_to(ROOT))
    assert undeclared == {}


def imported(file: Path) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_everything_a_dependency_needs_is_pinned_too():
    todo, seen = declared(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in metadata.requires(requirement.name) or []:
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    child.marker = None
                    todo.append(child)
    needed = {name for name, _ in seen}
    assert len(needed) > 50
    assert needed <= set(PINNED)


def test_no_machine_paths_or_registry_addresses():
    address = re.compile(r"(file|https?)://[^\s\"'<>)]*/(simple|npm|debian)(/|[\"'\s]|$)")
    path = re.compile(r"(^|[^\w.$}~/-])/(root|work|home/[a-z]+|Users/\w+)/\w")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in tracked()
        if file != Path(__file__)
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1)
        if address.search(line) or path.search(line)
    ]
    assert found == []


def test_no_module_asks_the_time_but_the_clock():
    asked = re.compile(r"\b(datetime\.(now|utcnow|today)|date\.today|Timestamp\.(now|utcnow))\(")
    source = ROOT / "src" / "marketdata"
    found = [
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        if file.name != "clock.py" and asked.search(file.read_text("utf-8"))
    ]
    assert found == []


def test_every_error_is_public_and_picturable():
    classes = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.MarketDataError)
    }
    drawing = errors.__doc__ or ""
    for name, cls in classes.items():
        assert getattr(marketdata, name) is cls
        assert name in marketdata.__all__
        assert re.search(rf"\b{name}\b", drawing), f"{name} is missing from the drawn hierarchy"


def test_public_surface_is_sorted_and_resolves():
    assert marketdata.__all__ == sorted(marketdata.__all__)
    from marketdata.api import default_client

    methods = set(dir(type(default_client())))
    for name in marketdata.__all__:
        assert name in methods or getattr(marketdata, name) is not None
        assert name in dir(marketdata)


def test_import_loads_no_driver_and_no_settings():
    heavy = (
        "pydantic pandas sqlalchemy psycopg redis alpaca yfinance plotly uvicorn exchange_calendars"
    )
    code = f"import sys, marketdata; print([m for m in {heavy.split()!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_layer_file_is_placed():
    """import-linter's `exhaustive` checks modules; this one that its config names no ghost."""
    text = (ROOT / ".importlinter").read_text("utf-8")
    named = set(re.findall(r"^    marketdata\.([a-z_]+)$", text, re.M))
    present = {p.stem for p in (ROOT / "src" / "marketdata").iterdir()}
    assert named <= present


@pytest.mark.parametrize(
    "name", ["demo", "test", "test-faults", "bench", "check", "format", "clean", "help"]
)
def test_make_knows_its_targets(name):
    text = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{name}:.*## ", text, re.M)


def test_make_finds_no_fault_with_itself():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make demo" in shown.stdout


def test_every_module_says_what_it_is():
    silent = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "src" / "marketdata").rglob("*.py"))
        if file.stat().st_size and ast.get_docstring(ast.parse(file.read_text("utf-8"))) is None
    ]
    assert silent == []


def test_variables_are_spelt_as_documented():
    assert VARIABLES["database_url"] == ("MARKETDATA_DATABASE_URL",)
    assert VARIABLES["database_schema"] == ("MARKETDATA_SCHEMA",)
    assert VARIABLES["alpaca_key_id"] == ("APCA_API_KEY_ID", "ALPACA_API_KEY")
    names = [name for each in VARIABLES.values() for name in each]
    assert len(names) == len(set(names))


def test_no_submodule_hides_a_public_name() -> None:
    """Importing ``marketdata.plot`` as a module would bind it over the function ``md.plot``."""
    import pkgutil

    import marketdata

    modules = {module.name for module in pkgutil.iter_modules(marketdata.__path__)}
    assert modules & set(marketdata.__all__) == {"indicators"}, "which is made to be called"


@pytest.mark.parametrize("first", ["", "import marketdata.indicators;"])
def test_indicators_is_a_package_and_a_call(first):
    code = (
        f"import marketdata as md; {first} frame = md.indicators(pandas_ta=False); "
        "from marketdata.indicators import listing; "
        "assert frame.equals(md.indicators(pandas_ta=False)); "
        "assert frame.equals(listing(pandas_ta=False)); print(len(frame))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(shown.stdout) > 15
