"""Brokers of other packages: found by entry point, checked, used alone and in a chain."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from marketdata.client import Client
from marketdata.config import Settings
from marketdata.errors import (
    BrokerResponseError,
    ConfigurationError,
    DataUnavailableError,
    UnknownSymbolError,
)
from marketdata.protocols import Broker
from marketdata.sources import Surroundings, kind_named
from marketdata.testing.broker_contract import BrokerContract, Example
from marketdata.warning_types import FallbackWarning
from tests.documents import ROOT, blocks
from tests.stack import AFTERNOON, Stack, runtime, tiers

DOCUMENT = ROOT / "docs" / "BROKERS.md"
FEBRUARY: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-01"}
SESSIONS = [d for d in pd.bdate_range("2024-01-02", "2024-03-13") if d.date().isoformat() not in
            ("2024-01-15", "2024-02-19")]  # fmt: skip


def write_prices(directory: Path, *symbols: str) -> None:
    directory.mkdir(exist_ok=True)
    for n, symbol in enumerate(symbols, 1):
        rows = [f"{d.date()},{10 * n},{11 * n},{9 * n},{10.5 * n},{1000 * n}" for d in SESSIONS]
        (directory / f"{symbol}.csv").write_text(
            "\n".join(["date,open,high,low,close,volume", *rows]) + "\n"
        )


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that installs a package with one broker, for the test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def make(name: str, code: str, target: str, module: str = "") -> None:
        module = module or f"broker_{name}"
        (site / f"{module}.py").write_text(code)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[marketdata.brokers]\n{name} = {target}\n")

    yield make
    for loaded in set(sys.modules) - before:
        if loaded.startswith(("broker_", "files_broker")):
            del sys.modules[loaded]


def the_documents_broker() -> str:
    (code,) = [b.text for b in blocks(DOCUMENT) if b.runs]
    return code


@pytest.fixture
def files(install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the broker of the document; return the directory of its prices."""
    (entry,) = [b.text for b in blocks(DOCUMENT) if b.language == "toml"]
    name, _, target = entry.strip().splitlines()[-1].partition(" = ")
    install(name, the_documents_broker(), target.strip('"'), module="files_broker")
    prices = tmp_path / "prices"
    write_prices(prices, "AAPL", "MINE")
    monkeypatch.setenv("FILES_BROKER_DIRECTORY", str(prices))
    return prices


# ------------------------------------------------------------------------------- the document


class TestTheBrokerOfTheDocument(BrokerContract):
    """The contract suite, as an author would run it."""

    example = Example("AAPL", "1day", "2024-02-01", "2024-03-01", now=AFTERNOON)

    @pytest.fixture(autouse=True)
    def _prices(self, files: Path) -> None:
        pass

    def open_broker(self, given: Surroundings) -> Broker:
        made: Broker = import_module("files_broker").FilesBroker(given)
        return made


WALK = "test_a_whole_walk_proves_the_span_and_every_bar_may_be_kept"


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        (
            "{symbol: request.span}",
            "{symbol: Span(request.span.start, request.span.end - 1)}",
            WALK,
        ),
        ("return bars.within(span)", "return bars", WALK),
        ("float(row.get(", "-float(row.get(", WALK),
        ('row["date"]))', 'row["date"])) + 1', WALK),
        (
            "{symbol: [] for",
            "{symbol + 'X': [] for",
            "test_actions_are_told_for_every_symbol_asked_in_order",
        ),
        (
            "SymbolVerdict(self._path(symbol).exists())",
            "SymbolVerdict(True)",
            "test_a_verdict_is_definite_or_none_and_never_an_error",
        ),
    ],
)
def test_the_contract_finds_what_is_wrong(files: Path, right: str, wrong: str, test: str) -> None:
    """Each mutation of the document's broker fails the test that is about it."""
    code = the_documents_broker()
    assert right in code
    namespace: dict[str, Any] = {}
    exec(code.replace(right, wrong), namespace)

    class Mutated(BrokerContract):
        example = TestTheBrokerOfTheDocument.example

        def open_broker(self, given: Surroundings) -> Broker:
            made: Broker = namespace["FilesBroker"](given)
            return made

    with pytest.raises(AssertionError):
        getattr(Mutated(), test)()


def test_it_serves_all_tiers_alone(stack: Stack, files: Path) -> None:
    with stack.connect(broker="files") as client:
        frame = client.get_bars(["AAPL", "MINE"], **FEBRUARY)
        assert frame.attrs["marketdata"]["provider"] == "files"
        assert frame.attrs["marketdata"]["feed"] == "daily"
        assert len(frame) == 40
        again = client.get_bars(["AAPL", "MINE"], **FEBRUARY)
        assert "broker" not in tiers(again)
        weeks = client.get_bars("MINE", "1week", **FEBRUARY)
        assert weeks["volume"].max() == 5 * 2000
        with pytest.raises(DataUnavailableError, match="no 1min bars"):
            client.get_bars("AAPL", "1min", limit=5)
        with pytest.raises(UnknownSymbolError):
            client.get_bars("NOSUCH", **FEBRUARY)
        (files / "BAD.csv").write_text("date,open\n2024-02-01,nonsense\n")
        with pytest.raises(BrokerResponseError, match="cannot be read"):
            client.get_bars("BAD", **FEBRUARY)
        assert client.coverage("BAD") == []


@pytest.mark.exact("the provider is the server's address, which is the proxy's")
def test_it_stands_in_a_chain(stack: Stack, files: Path) -> None:
    """The sandbox's stack speaks as Alpaca; the files know a symbol of their own."""
    keys = {"alpaca_key_id": "id", "alpaca_secret_key": "secret"}
    with stack.connect(broker="files,alpaca", **keys) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        days = client.get_bars(["MINE", "MSFT"], **FEBRUARY)
        host = stack.sandbox.url.removeprefix("http://")
        assert days.attrs["marketdata"]["provider"] == f"files:1 {host}:1"
        minutes = client.get_bars("AAPL", "1min", limit=5)
        assert minutes.attrs["marketdata"]["provider"] == host, "files have no minutes"
        means = client.get_indicators("AAPL", "sma_10", "1min", limit=5)
        assert means.attrs["marketdata"]["provider"] == host
        assert means["sma_10"].notna().all()
        assert client.get_latest_trade("AAPL").price > 0
        assert runtime(client).links[0].source.kind == "files"
    with (
        stack.connect(broker="alpaca,files", **keys) as client,
        pytest.warns(FallbackWarning, match="MINE from files"),
    ):
        assert len(client.get_bars("MINE", **FEBRUARY)) == 20


def test_indicators_of_bars_that_a_broker_has_none_of(stack: Stack, files: Path) -> None:
    with stack.connect(broker="files") as client, pytest.raises(DataUnavailableError):
        client.get_indicators("AAPL", "sma_10", "1min", limit=5)


def test_auto_goes_on_with_the_broker_that_filled_the_database(stack: Stack, files: Path) -> None:
    with stack.connect(broker="files") as client:
        client.get_bars("AAPL", **FEBRUARY)
    with stack.connect(broker="auto") as client:
        assert runtime(client).source.kind == "files"


# ------------------------------------------------------------------------------------ refusals


def refused(stack: Stack, name: str) -> str:
    with pytest.raises(ConfigurationError) as caught, stack.connect(broker=name) as client:
        runtime(client)
    assert not caught.value.transient
    return str(caught.value)


def test_a_name_that_is_not_installed_is_refused_at_once(stack: Stack) -> None:
    assert "broker='polygon' (keyword)" in refused(stack, "polygon")
    with pytest.raises(ConfigurationError, match="alpaca, yahoo, sandbox"):
        kind_named("polygon")


def test_a_package_that_cannot_be_imported_is_told(
    stack: Stack, install: Callable[..., None]
) -> None:
    install("broken", "raise RuntimeError('no driver')", "broker_broken:Broker")
    assert "RuntimeError: no driver" in refused(stack, "broken")
    assert "cannot be imported" in refused(stack, "yahoo,broken")


def test_an_object_that_is_no_broker_is_told(stack: Stack, install: Callable[..., None]) -> None:
    half = "class Half:\n    provider = 'half'\n    default_feed = 'x'\n    def __init__(s, given): pass\n"
    install("half", half, "broker_half:Half")
    told = refused(stack, "half")
    assert "without actions, assets, capabilities, close, health, latest, pages" in told
    install("number", "seven = 7", "broker_number:seven")
    assert "neither a Kind nor callable" in refused(stack, "number")


def test_a_broker_keeps_to_its_own_name(stack: Stack, install: Callable[..., None]) -> None:
    """Nothing of another package may be stored as Alpaca's."""
    install("thief", the_documents_broker(), "broker_thief:FilesBroker")
    assert "calls its provider 'files'" in refused(stack, "thief")
    install("alpaca", the_documents_broker(), "broker_alpaca:FilesBroker")
    assert kind_named("alpaca").url_field == "alpaca_url", "our own names are ours"


def test_a_name_must_be_one(stack: Stack, install: Callable[..., None]) -> None:
    install("Not-A-Name", "", "broker_x:X", module="broker_x")
    for name in ("not-a-name", "", "a b"):
        if name:
            assert refused(stack, name)
    assert Settings.load(broker="").broker == "auto"


def test_a_kind_may_be_given_too(stack: Stack, install: Callable[..., None], files: Path) -> None:
    code = (
        "from files_broker import FilesBroker\n"
        "from marketdata.sources import Kind\n"
        "from marketdata.types import DAY, Timeframe\n"
        "class Own(FilesBroker):\n"
        "    provider = 'own'\n"
        "KIND = Kind(default_feed='daily', make=Own, address=None, probe=(Timeframe.DAY_1, 7 * DAY))\n"
    )
    install("own", code, "broker_own:KIND")
    with stack.connect(broker="own") as client:
        assert client.get_bars("AAPL", **FEBRUARY).attrs["marketdata"]["provider"] == "own"
    assert isinstance(client, Client)
