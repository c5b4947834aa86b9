"""What the command line prints: values, tables, and what it must not load to print its help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

from marketdata.cli import app as cli
from marketdata.cli import main
from marketdata.cli.bars import bars_table, heading, provenance_line, records
from marketdata.cli.checks import Check
from marketdata.cli.demo import _Show
from marketdata.cli.doctor import isolated
from marketdata.cli.output import Output, dumps, make_console, size
from marketdata.cli.servers import sandbox
from marketdata.errors import ConfigurationError, StoreUnavailableError


def _frame(symbols: list[str], prices: list[float]) -> pd.DataFrame:
    stamps = pd.date_range("2024-03-08 14:30", periods=len(prices), freq="min", tz="UTC")
    index = pd.MultiIndex.from_arrays(
        [symbols, stamps.as_unit("us")], names=["symbol", "timestamp"]
    )
    columns = dict.fromkeys(("open", "high", "low", "close"), prices)
    counts = {"volume": 1234.0, "vwap": 1 / 3, "trade_count": float("nan")}
    return pd.DataFrame(columns | counts, index=index)


def _printed(renderable: object, capsys: pytest.CaptureFixture[str]) -> str:
    make_console(sys.stdout).print(renderable)
    return capsys.readouterr().out


def test_json_has_no_nan_and_full_precision() -> None:
    line = dumps({"a": float("nan"), "b": [float("inf"), 0.1 + 0.2], "c": np.float64(1 / 3)})
    assert json.loads(line) == {"a": None, "b": [None, 0.1 + 0.2], "c": 1 / 3}


def test_json_of_moments_and_paths() -> None:
    line = dumps({"at": datetime(2024, 3, 8, tzinfo=UTC), "path": Path("x")})
    assert json.loads(line) == {"at": "2024-03-08T00:00:00+00:00", "path": "x"}


def test_records_are_plain_and_exact() -> None:
    (first, second) = records(_frame(["A", "B"], [1 / 3, 2.5]))
    assert list(first)[:2] == ["symbol", "timestamp"]
    assert first["open"] == 1 / 3
    assert second["timestamp"] == "2024-03-08T14:31:00+00:00"


def test_a_table_shows_all_columns_and_as_many_decimals_as_needed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = _printed(bars_table(_frame(["A", "B"], [187.25, 187.1234])), capsys)
    heads = table.splitlines()[0].split()
    assert heads[0] == "symbol"
    assert heads[-7:] == ["open", "high", "low", "close", "volume", "vwap", "trades"]
    assert "187.2500" in table
    assert "1,234" in table
    assert "-" in table.splitlines()[2].split()


def test_a_table_of_cents_shows_cents(capsys: pytest.CaptureFixture[str]) -> None:
    table = _printed(bars_table(_frame(["A"], [187.25]), narrow=True), capsys)
    assert "187.25 " in table
    assert "symbol" not in table
    assert "03-08 14:30" in table
    assert "2024, UTC" in table


def test_simulated_is_said_in_heading_and_provenance() -> None:
    facts = {"simulated": True, "provider": "sandbox", "feed": "sip", "tiers": "redis:1"}
    assert heading(_frame(["A"], [1.0]), facts).startswith("SIMULATED")
    assert provenance_line(facts, 0.001).startswith("SIMULATED | sandbox/sip | from redis")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1500, "1.5 kB"), (2e9, "2.0 GB")])
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_help_loads_no_drivers() -> None:
    heavy = "pandas numpy sqlalchemy psycopg redis alpaca yfinance pydantic starlette plotly"
    program = (
        f"import sys, marketdata.cli.app; print(*sorted(set(sys.modules) & set({heavy.split()!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.split() == []


def test_no_command_shows_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    for name in [
        "demo",
        "down",
        "sandbox",
        "bars",
        "status",
        "gaps",
        "explain",
        "db",
        "doctor",
        "config",
    ]:
        assert f" {name} " in shown


def test_a_wrong_option_is_one_line_and_json_gets_its_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bars", "AAPL", "--json", "--nope"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 2
    assert captured.err.count("\n") == 1
    assert "marketdata bars --help" in captured.err


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Output().fail(ZeroDivisionError("division\nby zero")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "--debug" in captured.err


def test_sandbox_refuses_a_basis_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="basis"):
        sandbox(Output(), basis="adjusted")


# ------------------------------------------------------------------------------------ plugins


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("a_plugin_of_the_tests")
    module.app = typer.Typer()  # type: ignore[attr-defined]
    module.app.command("run")(lambda: print("it runs"))
    module.app.callback()(lambda: None)
    entry = EntryPoint("extra", "a_plugin_of_the_tests:app", cli.PLUGINS)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry])
    monkeypatch.setattr(cli.app, "registered_groups", [*cli.app.registered_groups])
    return module


def test_an_entry_point_becomes_a_command(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    assert main(["extra", "run"]) == 0
    assert capsys.readouterr().out == "it runs\n"
    assert main(["--help"]) == 0
    assert "extra" in capsys.readouterr().out


def test_other_commands_do_not_load_it(plugin: ModuleType) -> None:
    # Its module cannot be imported here: loading it would fail.
    assert main(["bars", "--help"]) == 0


# ------------------------------------------------------------------------- doctor and demo


def test_a_check_that_fails_is_a_finding() -> None:
    def check(error: Exception) -> Iterator[Check]:
        yield from ()
        raise error

    (known,) = isolated("a", lambda: check(StoreUnavailableError("gone", cure="start it")))
    assert (known.state, known.found, known.fix, known.code) == ("failed", "gone", "start it", 69)
    (wrong,) = isolated("b", lambda: check(ConfigurationError("bad")))
    assert (wrong.fix, wrong.code) == ("", 78)
    (crashed,) = isolated("c", lambda: check(ZeroDivisionError("x")))
    assert crashed.state == "failed"


class _Market:
    """A stage whose reads send as many requests, and change as often, as a test likes."""

    def __init__(self, calls: list[int], frames: list[pd.DataFrame]) -> None:
        self.script = SimpleNamespace(symbols=("A",), base="1min", files=())
        self.sandbox = SimpleNamespace(requests=[])
        self.client = self
        self._calls, self._frames = calls, frames

    def get_bars(self, *_: object, **__: object) -> pd.DataFrame:
        self.sandbox.requests += [None] * self._calls.pop(0)
        frame = self._frames.pop(0)
        frame.attrs["marketdata"] = {"tiers": "redis:1"}
        return frame


def test_the_demo_breaks_on_a_broker_call_nobody_expected() -> None:
    same = _frame(["A"], [1.0])
    stage: Any = _Market([2, 0, 1], [same.copy() for _ in range(3)])
    show = _Show(Output(as_json=False), stage)
    show._measure("first", "1min", expect_calls=True)
    show._measure("second", "1min")
    assert show.broken == []
    show._measure("third", "1min")
    assert show.broken == ["third: made 1 broker calls instead of none"]


def test_the_demo_breaks_on_another_answer() -> None:
    stage: Any = _Market([1, 0], [_frame(["A"], [1.0]), _frame(["A"], [1.5])])
    show = _Show(Output(), stage)
    show._measure("first", "1min", expect_calls=True)
    assert show._measure("second", "1min").same is False
    assert show.broken == ["second: the answer differs from the first one"]


@pytest.mark.parametrize("group", ["db", "algo"])
def test_a_group_without_a_command_prints_its_help_alone(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([group]) == 2
    out, err = capsys.readouterr()
    assert f"Usage: marketdata {group}" in out
    assert err == ""
