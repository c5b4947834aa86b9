"""Two brokers' bars held against each other: the report, and the command with its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marketdata.errors import (
    BrokerError,
    ConfigurationError,
    RequestError,
    UnknownSymbolError,
)
from tests.command_line import CommandLine, InProcess
from tests.stack import Stack
from tests.two_brokers import CHART, TwoBrokers

DAYS: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-01"}


def test_one_market_agrees_with_itself_through_both_brokers(stack: Stack) -> None:
    """Prices; the sandbox's volumes are the same on both ways, real ones are not."""
    settings = {"alpaca_key_id": "id", "alpaca_secret_key": "s", "yahoo_url": stack.sandbox.url}
    with stack.connect(broker="alpaca", **settings) as client:
        found = client.cross_check(["AAPL", "MSFT"], **DAYS)
        assert list(found.index.names) == ["symbol", "field"]
        assert found.index.get_level_values("field").unique().tolist() == [
            "open", "high", "low", "close", "volume",
        ]  # fmt: skip
        assert (found["compared"] == 20).all()
        assert found["agrees"].all()
        assert found.attrs["marketdata"]["second"].endswith("/yahoo")
        calls = stack.calls(CHART)
        assert calls > 0
        client.cross_check(["AAPL", "MSFT"], **DAYS)
        assert stack.calls(CHART) == calls, "what was fetched is kept"
        with stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url) as other:
            assert len(other.get_bars("AAPL", **DAYS)) == 20
            assert stack.calls(CHART) == calls


def test_two_markets_disagree_and_it_is_said_where(two: TwoBrokers) -> None:
    found = two.client.cross_check("AAPL", fields=["close", "vwap"], **DAYS)
    close = found.loc["AAPL", "close"]
    assert (close["compared"], close["only_first"], close["only_second"]) == (20, 0, 0)
    assert close["equal"] < 20
    assert not close["agrees"]
    ours = two.connect("alpaca").get_bars("AAPL", **DAYS)["close"]
    theirs = two.connect("yahoo").get_bars("AAPL", **DAYS)["close"]
    share = (ours - theirs).abs() / ours.combine(theirs, max)
    assert close["largest"] == pytest.approx(share.max())
    assert close["at"] == share.idxmax()
    assert (close["first"], close["second"]) == (ours[share.idxmax()], theirs[share.idxmax()])
    assert found.loc["AAPL", "vwap"]["compared"] == 0
    assert two.client.cross_check("AAPL", fields=["close"], tolerance=10.0, **DAYS)["agrees"].all()


def test_bars_too_new_for_one_of_them_are_left_out(two: TwoBrokers) -> None:
    """At 15:00:30 the minute 14:59 has settled at Alpaca and not yet at Yahoo."""
    found = two.client.cross_check("AAPL", "1min", start="2024-03-14T14:00-04:00")
    assert (found["only_first"] == 0).all()
    assert (found["compared"] == 59).all()
    assert found.attrs["marketdata"]["end"] == "2024-03-14T18:59:00+00:00"


def test_a_symbol_that_one_of_them_lacks_is_reported(two: TwoBrokers) -> None:
    found = two.client.cross_check("KO", **DAYS)
    assert (found["compared"] == 0).all()
    assert (found["only_second"] == 20).all()
    assert not found["agrees"].any()
    with pytest.raises(UnknownSymbolError):
        two.client.cross_check("NOSUCH", **DAYS)


def test_what_cannot_be_compared_is_an_error(two: TwoBrokers) -> None:
    for wrong in (
        {"brokers": ("alpaca",)},
        {"brokers": ("alpaca", "alpaca")},
        {"fields": ["price"]},
        {"tolerance": {"price": 1}},
        {"tolerance": -0.1},
    ):
        with pytest.raises(RequestError):
            two.client.cross_check("AAPL", **wrong, **DAYS)
    with pytest.raises(ConfigurationError, match="polygon"):
        two.client.cross_check("AAPL", brokers=("alpaca", "polygon"), **DAYS)
    bare = two.connect("yahoo", alpaca_key_id="", alpaca_secret_key="")
    with pytest.raises(ConfigurationError, match="APCA_API_KEY_ID"):
        bare.cross_check("AAPL", **DAYS)
    two.yahoo.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerError):
        two.client.cross_check("AAPL", timeout=5, **DAYS)


@pytest.fixture
def command(
    make_two: Callable[..., TwoBrokers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> CommandLine:
    two = make_two()
    names = ("database_url", "redis_url", "alpaca_url", "alpaca_trading_url", "yahoo_url")
    line = CommandLine(
        tmp_path, broker="alpaca", clock=repr(two.clock), **{n: two.settings[n] for n in names}
    )
    line.environment |= {"APCA_API_KEY_ID": "id", "APCA_API_SECRET_KEY": "secret"}
    return InProcess(line, monkeypatch, capsys)


def test_verify_against_ends_with_3_where_they_disagree(command: CommandLine) -> None:
    told = command("verify", "--against", "yahoo", "AAPL", "--start", "2024-02-01", "--json")
    assert told.code == 3
    rows, summary = told.objects[:-1], told.summary
    assert {row["field"] for row in rows} == {"open", "high", "low", "close", "volume"}
    assert summary["disagreeing"] > 0
    close = next(row for row in rows if row["field"] == "close")
    assert close["at"].startswith("2024-")
    assert close["compared"] == 29
    people = command(
        "verify", "--against", "yahoo", "AAPL", "--start", "2024-02-01", "--tolerance", "100"
    )
    assert people.code == 0, people.err
    assert "both agree" in people.out


def test_verify_against_needs_symbols_and_readable_tolerances(command: CommandLine) -> None:
    assert command("verify", "--against", "yahoo").code == 2
    assert command("verify", "AAPL", "--against", "yahoo", "--tolerance", "close:2").code == 2
    assert command("verify", "AAPL", "--against", "nobody").code == 78
