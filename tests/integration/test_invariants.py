"""Promises of the whole stack that no other file is about; docs/INVARIANTS.md lists them all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata import resample
from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import to_micros
from marketdata.pausing import FLIGHT_CLAIMED
from marketdata.sandbox import Fault
from marketdata.spans import Span
from marketdata.testing import Pause, lab
from marketdata.types import CLOSE, Session, Timeframe
from tests.changing_market import ChangingMarket
from tests.cycles import of_market
from tests.stack import BARS, Stack, runtime, same, span
from tests.stack_callers import ask_together, until

HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}
MORNING: dict[str, Any] = {
    "symbols": "AAPL", "timeframe": "1min",
    "start": "2024-03-13T09:30-04:00", "end": "2024-03-13T12:00-04:00",
}  # fmt: skip


def test_invariant_03_sorted_unique_inside_the_window_and_on_the_grid(stack: Stack) -> None:
    drawn = random.Random(3)
    calendar = calendar_for(EXCHANGE, stack.clock.now_us())
    for _ in range(25):
        timeframe: str = drawn.choice(["1min", "5min", "15min", "1hour", "1day"])
        session: Session = drawn.choice(["regular", "extended"])
        end = pd.Timestamp("2024-03-14T15:00", tz="America/New_York") - pd.Timedelta(
            minutes=drawn.randrange(6000)
        )
        start = end - pd.Timedelta(minutes=drawn.randrange(1, 4000))
        frame = stack.client.get_bars("AAPL", timeframe, start=start, end=end, session=session)
        labels = pd.DatetimeIndex(frame.index)
        assert labels.is_monotonic_increasing
        assert labels.is_unique
        assert ((labels >= start) & (labels < end)).all()
        micros = labels.as_unit("us").asi8
        if timeframe == "1day":
            assert [calendar.midnight_of(d.date()) for d in labels.tz_convert(start.tz)] == list(
                micros
            )
        else:
            asked = Span(to_micros(start.to_pydatetime()), to_micros(end.to_pydatetime()))
            grid = resample.bar_labels(asked, Timeframe(timeframe), calendar, session)
            assert set(micros) <= set(grid.tolist())


@pytest.mark.parametrize("fails", [False, True])
def test_invariant_11_equal_misses_of_one_process_are_one_walk(stack: Stack, fails: bool) -> None:
    if fails:
        stack.sandbox.faults.add(Fault("status", match=BARS, times=None, status=403))
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.extend(ask_together(stack.client, [MORNING] * 50))
    )
    with Pause(FLIGHT_CLAIMED) as pause:
        asking.start()
        assert pause.wait_reached()
        fetcher: Any = runtime(stack.client).fetcher
        until(lambda: len(fetcher._local._changed._waiters) >= 49)
        pause.release()
        asking.join(60)
    assert len(found) == 50
    assert stack.calls() == 1
    assert len({(each.error, each.words, each.digest) for each in found}) == 1
    assert bool(found[0].error) == fails


def test_invariant_12_a_second_walk_only_after_the_lease_and_without_harm(stack: Stack) -> None:
    """The one who claimed hangs; while its lease holds the other waits, then it walks; then the
    first one goes on, and both have stored the same."""
    answers: dict[str, Any] = {}

    def ask(name: str, client: md.Client) -> None:
        answers[name] = client.get_bars(**MORNING)

    with stack.connect() as other, Pause(FLIGHT_CLAIMED) as pause:
        first = threading.Thread(target=ask, args=("first", stack.client))
        first.start()
        assert pause.wait_reached()
        second = threading.Thread(target=ask, args=("second", other))
        second.start()
        until(lambda: pause.passed >= 2)
        assert stack.calls() == 0, "it waits"
        with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
            connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")
        second.join(30)
        assert stack.calls() == 1
        pause.release()
        first.join(30)
    same(answers["first"], answers["second"])
    (holding,) = runtime(stack.client).store.holdings(["AAPL"])
    assert holding.bar_count == holding.row_count
    asked = span(MORNING["start"], MORNING["end"])
    expected = of_market(stack.sandbox.source, "AAPL", asked)
    assert answers["first"]["close"].tolist() == expected.values[CLOSE].tolist()


@pytest.mark.exact("it asserts on time")
@pytest.mark.parametrize("trouble", ["frozen", "refused"])
def test_invariant_17_without_redis_a_read_costs_milliseconds_more(
    stack: Stack, trouble: str
) -> None:
    with lab(stack.settings) as faults, stack.connect(**faults.settings) as client:
        assert faults.redis is not None
        right = client.get_bars(**MORNING)

        def seconds() -> float:
            began = time.perf_counter()
            same(client.get_bars(**MORNING), right)
            return time.perf_counter() - began

        usual = min(seconds() for _ in range(5))
        if trouble == "frozen":
            faults.redis.freeze()
        else:
            faults.redis.refuse()
            faults.redis.cut()
        assert seconds() < usual + 1.0, "the first to find out"
        assert min(seconds() for _ in range(5)) < usual + 0.05
        faults.calm()
        until(lambda: runtime(client).cache.ping() or True)
        same(client.get_bars(**MORNING), right)


@pytest.mark.exact("PostgreSQL is down in it")
def test_invariant_19_with_postgresql_down_nothing_is_claimed(stack: Stack) -> None:
    with lab(stack.settings) as faults, stack.connect(**faults.settings) as client:
        assert faults.postgresql is not None
        warm = client.get_bars(**HOT)
        before = client.coverage("AAPL", "1min")
        faults.postgresql.refuse()
        faults.postgresql.cut()
        same(client.get_bars(**HOT), warm)  # what Redis has
        with pytest.raises(md.StoreUnavailableError) as caught:
            client.get_bars(**MORNING)
        assert caught.value.transient
        faults.calm()
        assert client.coverage("AAPL", "1min") == before
        lost = faults.postgresql.script.add("cut", match=b"COPY", times=None)
        with pytest.raises(md.StoreUnavailableError):
            client.get_bars("MSFT", "1min", limit=10)
        assert lost.fired
        faults.calm()
        assert client.coverage("MSFT", "1min") == []
        assert len(client.get_bars("MSFT", "1min", limit=10)) == 10


def test_invariant_29_a_gap_is_what_was_never_answered(make_stack: Callable[..., Stack]) -> None:
    market = ChangingMarket()
    market.silence("KO")
    stack = make_stack(source=market)
    week: dict[str, Any] = {"start": "2024-03-11", "end": "2024-03-14"}
    assert len(stack.client.gaps(["AAPL", "KO"], "1min", **week)) > 0
    frame = stack.client.get_bars(["AAPL", "KO"], "1min", missing="skip", **week)
    assert set(frame.index.get_level_values(0)) == {"AAPL"}, "nobody traded the other"
    assert len(stack.client.gaps(["AAPL", "KO"], "1min", **week)) == 0
    (gap,) = stack.client.gaps("KO", "1min", start="2024-03-08", end="2024-03-14")
    assert gap.start == pd.Timestamp("2024-03-08T04:00", tz="America/New_York")
    assert gap.end == pd.Timestamp("2024-03-08T20:00", tz="America/New_York")


@pytest.mark.parametrize("timeframe", ["1min", "1day"])
def test_invariant_34_values_do_not_change_when_bars_are_appended(
    stack: Stack, timeframe: str
) -> None:
    before = stack.client.get_indicators("AAPL", None, timeframe, limit=50)
    if timeframe == "1min":
        stack.clock.advance(minutes=45)
    else:
        stack.clock.advance(days=6)
    after = stack.client.get_indicators("AAPL", None, timeframe, start=before.index[0])
    assert len(after) > len(before)
    shared = after.loc[before.index]
    np.testing.assert_allclose(shared.to_numpy(), before.to_numpy(), rtol=1e-9)
    assert to_micros(after.index[-1].to_pydatetime()) > to_micros(before.index[-1].to_pydatetime())
