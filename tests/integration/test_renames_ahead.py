"""A rename that is known before it takes effect: nobody writes anything on the day itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import psycopg
import pytest

from marketdata.action_refresh import refresh_actions
from marketdata.aggregator import Aggregator
from marketdata.clock import to_micros
from marketdata.sandbox import Fault, GeneratedMarket
from marketdata.types import Timeframe
from tests.command_line import CommandLine, InProcess
from tests.stack import Stack, runtime

BEFORE = "2024-03-13T18:20:00-04:00"
RENAMED = date(2024, 3, 14)
THE_DAY = "2024-03-14T15:00:30-04:00"


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """KO is subscribed, and is to be called COKE from tomorrow on; that is known already."""
    market = GeneratedMarket()
    found = make_stack(at=BEFORE, source=market)
    found.client.subscribe("KO", "1min", owner="me")
    found.client.find_symbols("coca")
    market.rename("KO", "COKE", RENAMED, announced=date(2024, 3, 12))
    Aggregator(runtime(found.client), threading.Event()).cycle()
    found.clock.set(datetime.fromisoformat(BEFORE))
    refresh_actions(runtime(found.client), threading.Event())
    return found


def test_a_renamed_symbol_that_is_kept_fresh_is_not_said_to_be_stale(stack: Stack) -> None:
    stack.set_time(THE_DAY)
    Aggregator(runtime(stack.client), threading.Event()).cycle()
    figures = runtime(stack.client).figures
    try:
        ((until, count),) = figures.look().wanted[Timeframe.MIN_1].items()
    finally:
        figures.close()
    assert count == 1
    assert until is not None
    assert until > to_micros(datetime.fromisoformat("2024-03-14T14:55:00-04:00"))


def test_it_is_found_by_its_name_before_it_is_listed_anew(stack: Stack) -> None:
    stack.set_time(THE_DAY)
    stack.forget_calls()
    (found,) = stack.client.find_symbols("coca").to_dict("records")
    assert stack.calls("/v2/assets") == 0
    assert (found["symbol"], found["former"], found["status"]) == ("COKE", "KO", "active")
    assert found["name"] == "Coca-Cola (SIMULATED)"


def test_the_tables_of_instruments_follow_with_the_next_run_of_the_job(stack: Stack) -> None:
    def symbols() -> list[tuple[str, ...]]:
        with psycopg.connect(stack.settings["database_url"]) as connection:
            return connection.execute(
                "SELECT symbol FROM marketdata.instruments WHERE instrument = 'KO'"
            ).fetchall()

    assert symbols() == [("KO",)]
    stack.set_time(THE_DAY)
    refresh_actions(runtime(stack.client), threading.Event())
    assert symbols() == [("COKE",)]


def test_it_is_said_where_the_broker_gave_no_list(
    make_stack: Callable[..., Stack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stack = make_stack()
    stack.client.get_bars("NVDA", limit=5)
    stack.sandbox.faults.add(Fault("status", match="/v2/assets", times=None, status=500))
    names = ("database_url", "redis_url", "alpaca_url", "alpaca_trading_url", "broker")
    line = CommandLine(
        tmp_path,
        clock=repr(stack.clock),
        **{name: stack.settings[name] for name in names},
    )
    command = InProcess(line, monkeypatch, capsys)
    told = command("symbols", "nvidia")
    assert told.code == 0
    assert "NVDA" in told.out
    assert "only what is stored was searched" in told.err
    stack.sandbox.faults.clear()
    assert "only what is stored" not in command("symbols", "nvidia").err
