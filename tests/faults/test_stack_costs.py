"""What one question costs the broker, and what must not be claimed on the way."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd
import pytest

from tests.stack import BARS, Stack, same, tiers
from tests.stack_callers import ask_together, long_listed


@pytest.mark.parametrize(
    "timeframe",
    ["1min", "5min", "15min", "30min", "1hour", "4hour", "1day", "1week", "1month"],
)
def test_a_limit_is_one_request_in_session(
    make_stack: Callable[..., Stack], timeframe: str
) -> None:
    # 15:03:30: the bar that forms is no closed one, and must not count as one.
    stack = make_stack(at="2024-03-14T15:03:30-04:00")
    assert len(stack.client.get_bars("AAPL", timeframe, limit=20)) == 20
    assert stack.calls() == 1
    stack.forget_calls()
    assert len(stack.client.get_bars(["MSFT", "SPY"], timeframe, limit=20)) == 40
    walks = [r for r in stack.sandbox.requests.matching(BARS) if "page_token" not in r.params]
    assert len(walks) == 1


def test_a_window_in_closed_hours_claims_no_session_before_it(
    make_stack: Callable[..., Stack],
) -> None:
    """A read of closed hours costs nothing, but the session before them was never asked."""
    stack = make_stack(at="2024-03-06T00:59:53-05:00")
    stack.client.get_bars("AAPL", "1min", start="2024-03-04")
    stack.set_time("2024-03-07T02:50:40-05:00")  # a session later, before the next one opens
    night = {"start": "2024-03-06T22:00-05:00", "end": "2024-03-08"}
    assert stack.client.get_bars("AAPL", "1min", **night).empty  # type: ignore[arg-type]
    session = stack.client.get_bars("AAPL", "1min", start="2024-03-06")
    assert len(session) > 380
    assert tiers(session) == "broker:1"


def test_a_sparse_symbol_is_found_over_a_weekend(make_stack: Callable[..., Stack]) -> None:
    """Monday 04:05: nothing has traded yet; the last bars are Friday's."""
    stack = make_stack(at="2024-03-18T04:05:30-04:00")
    for symbol in ("S00042", "S00777"):
        frame = stack.client.get_bars(symbol, "1min", limit=3, session="extended")
        assert len(frame) == 3
        assert not frame.attrs["marketdata"]["truncated"]
        everything = stack.client.get_bars(symbol, "1min", start="2024-03-11", session="extended")
        same(frame, everything.iloc[-3:])
    assert stack.calls() <= 10


def test_equally_sparse_symbols_share_their_wider_requests(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(at="2024-03-14T15:03:30-04:00")
    symbols = long_listed(stack, 60)
    frame = stack.client.get_bars(symbols, "1min", limit=30)
    assert frame.groupby("symbol").size().eq(30).all()
    assert stack.calls() <= 12, "not a request each"


def test_200_symbols_hot_under_50_threads(stack: Stack) -> None:
    symbols = long_listed(stack, 200)
    stack.client.get_bars(symbols, "1day", limit=10)
    stack.forget_calls()
    questions = [
        {"symbols": symbols[at : at + 4], "timeframe": "1day", "limit": 10}
        for at in range(0, 200, 4)
    ]
    started = time.monotonic()
    outcomes = ask_together(stack.client, questions)
    print(f"50 threads x 4 of 200 hot symbols: {time.monotonic() - started:.2f} s")
    assert {(o.error, o.rows) for o in outcomes} == {("", 40)}
    assert {o.tiers for o in outcomes} == {"redis:4"}
    assert len(stack.sandbox.requests) == 0


def test_a_new_minute_for_many_symbols_is_one_request(stack: Stack) -> None:
    symbols = ["AAPL", "MSFT", "NVDA", "SPY", "TSLA", "BRK.B"]
    stack.client.get_bars(symbols, "1min", limit=100)
    stack.forget_calls()
    stack.set_time("2024-03-14T15:01:30-04:00")
    frame = stack.client.get_bars(symbols, "1min", limit=100)
    assert stack.calls() == 1
    newest = frame.reset_index().groupby("symbol")["timestamp"].max()
    assert (newest >= pd.Timestamp("2024-03-14T18:58Z")).all()
