"""`follow`: each newly closed bar once, in order, with a daemon and without."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata import arrivals
from marketdata.clock import to_micros
from marketdata.protocols import Commit
from marketdata.spans import Span
from marketdata.subscriptions import default_owner
from marketdata.types import CLOSE, COLUMNS, MINUTE, Bars, SeriesKey, Timeframe
from tests.following import Stepping, follow, labels, take
from tests.stack import Stack, runtime, same, tiers
from tests.stack_callers import until

NEW_YORK = "America/New_York"


def joined(taken: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the frames as one, sorted as `get_bars` sorts."""
    return pd.concat(taken).sort_index()


def as_daemon(stack: Stack, symbols: list[str]) -> Callable[[], None]:
    """Return what a daemon does when a minute is due: store it, then say so."""
    other = stack.connect()

    def cycle() -> None:
        other.get_bars(symbols, "1min", limit=5)
        stack_of = runtime(other)
        keys = [
            SeriesKey(stack_of.provider, stack_of.source.feed, s, Timeframe.MIN_1) for s in symbols
        ]
        stack_of.notices.publish_closed(keys, stack.clock.now_us() // MINUTE * MINUTE)

    return cycle


# ------------------------------------------------------------------------------------ frames


def test_one_symbol_gives_frames_like_get_bars(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, "AAPL")
    taken = take(following, 5)
    assert labels(taken) == [f"03-14 15:0{n}" for n in range(5)]
    expected = stack.client.get_bars("AAPL", "1min", limit=5)
    for frame, row in zip(taken, range(5), strict=True):
        same(frame, expected.iloc[row : row + 1])
        assert frame.index.name == "timestamp"
        assert tuple(frame.columns) == COLUMNS
        frame.loc[:, "open"] = -1.0  # a frame owns its memory
    told = taken[0].attrs["marketdata"]
    assert told["symbols"] == "AAPL"
    assert told["simulated"] is True
    assert taken[0].attrs["marketdata"].keys() == expected.attrs["marketdata"].keys()
    prints = [f.attrs["marketdata"]["fingerprint"] for f in taken]
    assert len(set(prints)) == 5, "equal fingerprints mean equal bars"
    assert len(waiter.waits) == 5, "it was woken for nothing"


def test_a_collection_gives_one_frame_a_bar_time(stack: Stack) -> None:
    symbols = ["SPY", "AAPL", "S00017", "S00901"]
    following, _ = follow(stack.client, stack.clock, symbols)
    taken = take(following, 40)
    last = labels(taken)[-1]
    expected = stack.client.get_bars(
        symbols,
        "1min",
        start="2024-03-14T15:00-04:00",
        end=taken[-1].index[-1][1] + pd.Timedelta("1s"),
    )
    same(joined(taken), expected)
    for frame in taken:
        assert list(frame.index.names) == ["symbol", "timestamp"]
        assert frame.index.get_level_values(1).nunique() == 1
        assert frame.index.is_monotonic_increasing
    times = [frame.index[0][1] for frame in taken]
    assert times == sorted(set(times))
    sizes = {len(frame) for frame in taken}
    assert len(sizes) > 1, f"every symbol traded every minute until {last}: nothing was shown"


def test_even_one_in_a_list_is_a_collection(stack: Stack) -> None:
    following, _ = follow(stack.client, stack.clock, ["AAPL"], tz="exchange")
    (frame,) = take(following, 1)
    assert frame.index.tolist() == [("AAPL", pd.Timestamp("2024-03-14T15:00", tz=NEW_YORK))]


def test_nights_and_weekends_are_slept_through(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(at="2024-03-15T15:57:30-04:00")
    following, waiter = follow(stack.client, stack.clock, "AAPL")
    taken = take(following, 5)
    assert labels(taken) == [
        "03-15 15:57", "03-15 15:58", "03-15 15:59", "03-18 09:30", "03-18 09:31"
    ]  # fmt: skip
    assert len(waiter.waits) == 5
    assert waiter.waits[3] == datetime.fromisoformat("2024-03-18T09:31:03-04:00")


@pytest.mark.parametrize(
    ("timeframe", "at", "count", "options"),
    [
        ("1min", "2024-03-14T15:58:30-04:00", 6, {"session": "extended"}),
        ("5min", "2024-03-14T15:44:00-04:00", 6, {}),
        ("30min", "2024-07-02T15:10:00-04:00", 12, {}),  # the next day closes at 13:00
        ("4hour", "2024-03-08T08:00:00-05:00", 9, {"session": "extended"}),  # over summer time
        ("1day", "2024-07-02T12:00:00-04:00", 4, {}),
        ("1day", "2024-07-02T12:00:00-04:00", 3, {"tz": None}),
        ("1week", "2024-03-14T12:00:00-04:00", 3, {}),
        ("1month", "2024-03-14T12:00:00-04:00", 2, {"tz": "exchange"}),
    ],
)
def test_every_timeframe_gives_what_get_bars_gives_later(
    make_stack: Callable[..., Stack], timeframe: str, at: str, count: int, options: dict[str, Any]
) -> None:
    stack = make_stack(at=at)
    following, _ = follow(stack.client, stack.clock, ["AAPL", "MSFT"], timeframe, **options)
    taken = take(following, count)
    expected = stack.client.get_bars(["AAPL", "MSFT"], timeframe, limit=count, **options)
    same(joined(taken), expected)


@pytest.mark.parametrize("adjustment", ["split", "dividend", "all"])
def test_an_adjustment_is_applied(make_stack: Callable[..., Stack], adjustment: Any) -> None:
    stack = make_stack(at="2024-06-05T12:00:00-04:00")
    following, _ = follow(
        stack.client, stack.clock, "NVDA", "1day", start="2024-05-20", adjustment=adjustment
    )
    taken = take(following, 12)
    expected = stack.client.get_bars(
        "NVDA", "1day", start="2024-05-20", limit=12, adjustment=adjustment
    )
    same(joined(taken), expected)
    assert taken[0].attrs["marketdata"]["adjustment"] == adjustment


# ----------------------------------------------------------------------------------- the past


@pytest.mark.parametrize("piece", [97, 1_000, 200_000])
def test_start_replays_and_goes_live_without_gap_or_repeat(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(arrivals, "PIECE_BARS", piece)
    symbols = ["AAPL", "S00017"]
    following, waiter = follow(stack.client, stack.clock, symbols, start="2024-03-13T14:00-04:00")
    taken = take(following, 120 + 330 + 4)
    assert labels(taken[-4:])[-1].endswith("15:03")
    assert len(waiter.waits) == 4
    last = taken[-1].index[-1][1]
    expected = stack.client.get_bars(
        symbols, "1min", start="2024-03-13T14:00-04:00", end=last + pd.Timedelta("1s")
    )
    same(joined(taken), expected)


def test_going_on_after_a_restart(stack: Stack) -> None:
    following, _ = follow(stack.client, stack.clock, "AAPL")
    before = take(following, 3)
    following.close()
    stack.set_time("2024-03-15T09:45:30-04:00")  # it was down for the night
    client = stack.connect()
    going_on = before[-1].index[-1] + pd.Timedelta(1, "us")
    following, _ = follow(client, stack.clock, "AAPL", start=going_on)
    after = take(following, 57 + 15 + 2)
    client.close()
    expected = stack.client.get_bars(
        "AAPL", "1min", start="2024-03-14T15:00-04:00", end="2024-03-15T09:47-04:00"
    )
    same(pd.concat([*before, *after]), expected)


# --------------------------------------------------------------------------------- the daemon


def test_what_the_daemon_stored_costs_no_call(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, ["AAPL", "MSFT"])
    cycle = as_daemon(stack, ["AAPL", "MSFT"])
    cycle()
    stack.forget_calls()
    for minute in range(1, 6):
        waiter.at(f"2024-03-14T15:0{minute}:03-04:00", cycle)
    taken = take(following, 5)
    assert [tiers(frame) for frame in taken] == ["redis:2"] * 5
    assert stack.calls() == 5, "one a minute, all of the daemon's"


def test_once_it_hears_the_daemon_it_waits_for_it(stack: Stack) -> None:
    """The daemon takes eight seconds; asking when the bar is due would cost a call a minute."""
    following, waiter = follow(stack.client, stack.clock, "AAPL")
    assert runtime(stack.client).listener.wait_connected(5)
    cycle = as_daemon(stack, ["AAPL"])
    cycle()
    assert waiter.woken.wait(5)

    def told() -> None:
        waiter.woken.clear()
        cycle()
        assert waiter.woken.wait(5), "the notice was not heard"

    waiter.at("2024-03-14T15:01:02-04:00", told)
    for minute in range(2, 5):
        waiter.at(f"2024-03-14T15:0{minute}:11-04:00", told)
    stack.set_time("2024-03-14T15:00:30-04:00")
    first = take(following, 1)
    stack.forget_calls()
    rest = take(following, 3)
    assert labels(first + rest) == [f"03-14 15:0{n}" for n in range(4)]
    assert {tiers(frame) for frame in rest} == {"redis:1"}
    assert stack.calls() == 3, "one a minute, all of the daemon's"
    # It falls silent: after a quarter of a minute the bar is fetched, and later ones at once.
    waiter.waits.clear()
    assert labels(take(following, 2)) == ["03-14 15:04", "03-14 15:05"]
    assert f"{waiter.waits[1]:%H:%M:%S}" == "19:05:18"
    assert f"{waiter.waits[2]:%H:%M:%S}" == "19:06:03"
    assert len(waiter.waits) == 3


def test_notices_of_others_wake_nobody(stack: Stack) -> None:
    _, waiter = follow(stack.client, stack.clock, "AAPL", "5min")
    running = runtime(stack.client)
    assert running.listener.wait_connected(5)
    assert waiter.woken.wait(5), "connecting is worth a look"
    waiter.woken.clear()
    feed = running.source.feed
    for key in (
        SeriesKey("alpaca", feed, "AAPL", Timeframe.MIN_1),
        SeriesKey("sandbox", "iex", "AAPL", Timeframe.MIN_1),
        SeriesKey("sandbox", feed, "AAPL", Timeframe.DAY_1),
    ):
        assert running.notices.publish_closed([key], stack.clock.now_us()) == 1
    running.cache._link.execute("PUBLISH", f"md:1:notices:{running.store.epoch}", b"\xff[]")
    running.cache._link.execute("PUBLISH", f"md:1:notices:{running.store.epoch}", b'{"kind": 1}')
    assert not waiter.woken.wait(0.2)
    key = SeriesKey("sandbox", feed, "AAPL", Timeframe.MIN_1)
    assert running.notices.publish_closed([key], stack.clock.now_us()) == 1
    assert waiter.woken.wait(5), "its five minutes are made of these"


def test_it_subscribes_for_its_life(stack: Stack) -> None:
    manager = runtime(stack.client).subscriptions

    def held() -> list[str]:
        return [f"{h.owner} {h.symbol} {h.timeframe}" for h in manager.held()]

    stack.client.subscribe("AAPL", "5min")
    mine = f"{default_owner()} AAPL 5min"
    with follow(stack.client, stack.clock, ["AAPL", "KO"], "5min")[0] as following:
        assert held() == [mine, f"{default_owner()} KO 5min"]
        assert runtime(stack.client).leases.renew() == 3
    assert held() == [mine], "what was subscribed by hand stays"
    assert list(following) == []
    following.close()
    following = follow(stack.client, stack.clock, "KO")[0]
    next(following)
    assert runtime(stack.client).leases.renew() == 2
    del following
    gc.collect()
    assert runtime(stack.client).leases.renew() == 1, "nobody iterates it: it is not renewed"


# ------------------------------------------------------------------------- late and corrected


def store_bar(stack: Stack, symbol: str, at: str, close: float) -> None:
    """Store a bar over what was answered before, as a correction does."""
    running = runtime(stack.client)
    key = SeriesKey(running.provider, running.source.feed, symbol, Timeframe.MIN_1)
    label = to_micros(datetime.fromisoformat(at))
    values = np.array([[close]] * 4 + [[100.0], [close], [1.0]])
    observed = stack.clock.now_us() + 90_000_000
    commit = Commit(
        key,
        Bars(np.array([label], np.int64), values),
        Span(label, label + MINUTE),
        observed,
        observed,
    )
    running.store.commit([commit], running.cache.raise_floor)


def quiet_minutes(stack: Stack, symbol: str) -> list[str]:
    """Return the minutes of the next half hour in which a symbol does not trade."""
    stack.set_time("2024-03-14T15:40:30-04:00")
    other = stack.connect(database_schema="elsewhere")
    found = other.get_bars(symbol, "1min", start="2024-03-14T15:00-04:00", session="extended")
    other.close()
    stack.set_time("2024-03-14T15:00:30-04:00")
    every = pd.date_range("2024-03-14T15:00", periods=30, freq="min", tz=NEW_YORK)
    return [str(at.isoformat()) for at in every if at not in found.index]


def test_a_late_bar_is_given_late_and_in_the_order_of_its_symbol(stack: Stack) -> None:
    quiet = quiet_minutes(stack, "S00901")
    minute = pd.Timedelta("1min")
    late = next(q for q, r in pairwise(quiet) if pd.Timestamp(r) - pd.Timestamp(q) == minute)
    following, waiter = follow(stack.client, stack.clock, ["AAPL", "S00901"])
    waiter.at(
        f"{pd.Timestamp(late) + pd.Timedelta('110s'):%Y-%m-%dT%H:%M:%S%z}",
        lambda: store_bar(stack, "S00901", late, 42.0),
    )
    taken = take(following, 30)
    symbols = [frame.index.get_level_values(0).tolist() for frame in taken]
    at = pd.Timestamp(late)
    found = [n for n, frame in enumerate(taken) if ("S00901", at) in frame.index]
    assert len(found) == 1, "lost, or given twice"
    assert symbols[found[0]] == ["S00901"], "AAPL's bar of that minute was given before"
    assert taken[found[0]]["close"].tolist() == [42.0]
    for symbol in ("AAPL", "S00901"):
        times = [a for frame in taken for s, a in frame.index if s == symbol]
        assert times == sorted(set(times))


def test_what_is_later_than_the_next_bar_and_what_is_corrected_is_not_given(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, "AAPL")
    first = take(following, 3)
    store_bar(stack, "AAPL", "2024-03-14T15:01:00-04:00", 42.0)
    waiter.woken.set()
    assert labels(first + take(following, 3)) == [f"03-14 15:0{n}" for n in range(6)]
    bars = stack.client.get_bars("AAPL", "1min", limit=6)
    assert bars["close"].iloc[1] == 42.0
    assert first[1].to_numpy()[0, CLOSE] != 42.0


# ------------------------------------------------------------------------------ errors and ends


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"symbols": "APPL"}, md.UnknownSymbolError),
        ({"symbols": ["AAPL", "A!"]}, md.InvalidSymbolError),
        ({"symbols": "AAPL", "timeframe": "1M"}, md.InvalidTimeframeError),
        ({"symbols": "AAPL", "start": "2025-01-01"}, md.InvalidRangeError),
        ({"symbols": "AAPL", "start": "2024-03-14T10:00:00"}, md.NaiveTimestampError),
        ({"symbols": "AAPL", "session": "night"}, md.RequestError),
        ({"symbols": "AAPL", "tz": None}, md.RequestError),
        ({"symbols": "AAPL", "timeout": 0}, md.RequestError),
        ({"symbols": "AAPL", "adjustment": "total"}, md.RequestError),
    ],
)
def test_what_cannot_be_followed_is_refused_at_the_call(
    stack: Stack, call: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        stack.client.follow(**call)
    assert runtime(stack.client).subscriptions.held() == []


def test_close_ends_an_iteration_that_waits(stack: Stack) -> None:
    following = stack.client.follow("AAPL")  # on real waiting: the clock stands still
    ended = threading.Event()

    def iterate() -> None:
        assert list(following) == []
        ended.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    until(runtime(stack.client).subscriptions.held, 5)
    following.close()
    assert ended.wait(5)
    thread.join()
    assert runtime(stack.client).subscriptions.held() == []


SCRIPT = """
import sys
import marketdata as md
for bars in md.follow("AAPL", start="2024-03-14T14:58-04:00"):
    print(len(bars), flush=True)
"""


def test_ctrl_c_leaves_at_once(stack: Stack) -> None:
    names = ("database_url", "redis_url", "broker", "alpaca_url", "alpaca_trading_url")
    environment = {f"MARKETDATA_{name.upper()}": str(stack.settings[name]) for name in names}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={
            **os.environ, **environment,
            "MARKETDATA_CLOCK": repr(stack.clock),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        assert process.stdout.readline() == b"1\n"
        time.sleep(0.2)  # it waits now; had it not begun to, it would leave all the same
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert time.monotonic() - began < 2
        assert process.stderr.read().decode().rstrip().endswith("KeyboardInterrupt")


def test_a_client_that_was_closed_meanwhile_is_used_again(stack: Stack) -> None:
    following, _ = follow(stack.client, stack.clock, "AAPL")
    before = take(following, 2)
    stack.client.close()
    after = take(following, 2)
    assert labels(before + after) == [f"03-14 15:0{n}" for n in range(4)]
    assert [h.symbol for h in runtime(stack.client).subscriptions.held()] == ["AAPL"]


def test_stepping_is_what_it_says(stack: Stack) -> None:
    """The tests above rest on it: time passes only when somebody waits."""
    waiter = Stepping(stack.clock)
    seen: list[int] = []
    waiter.at("2024-03-14T15:00:40-04:00", lambda: seen.append(stack.clock.now_us()))
    target = stack.clock.now_us() + 20_000_000
    waiter.until(target)
    assert seen == [target - 10_000_000]
    waiter.until(target)
    assert stack.clock.now_us() == target
