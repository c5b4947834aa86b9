"""Stored bars held against the broker: what drifted, by column, and put right on request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from marketdata.backfill import Backfill, Limits, Wanted
from marketdata.drift import VerifyReport
from marketdata.errors import AuthenticationError, BrokerUnavailableError, RequestError
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, VOLUME, VWAP, Bars, SeriesKey, Timeframe
from marketdata.verifying import verify
from tests.stack import Stack, runtime

MakeStack = Callable[..., Stack]
SYMBOLS = ("AAPL", "KO")
MINUTES = SeriesKey("sandbox", "sip", "AAPL", Timeframe.MIN_1)
DAYS = MINUTES.with_timeframe(Timeframe.DAY_1)


@pytest.fixture
def filled(stack: Stack) -> Stack:
    """A stack with three weeks of two symbols, the older ones sealed."""
    wanted = Wanted(symbols=SYMBOLS, start="2024-02-21")
    assert Backfill(runtime(stack.client)).run(wanted, Limits(max_symbols=0)).complete
    return stack


def check(stack: Stack, **options: Any) -> VerifyReport:
    return verify(runtime(stack.client), **options)


def stored(stack: Stack, key: SeriesKey = MINUTES) -> Bars:
    everything = Span(0, stack.clock.now_us())
    return runtime(stack.client).store.read([ReadRequest(key, everything)])[key][1]


def spoil(stack: Stack, key: SeriesKey, **changes: Any) -> None:
    """Store other values than the broker's for the bars at some places."""
    stack.clock.advance(seconds=1)
    bars = stored(stack, key)
    at = np.array(changes.pop("at"))
    values = bars.values[:, at].copy()
    for row, change in changes.pop("values", {}).items():
        values[row] = change(values[row])
    commit = Commit(
        key,
        Bars(bars.timestamp[at], values),
        covered=Span(int(bars.timestamp[at[0]]), int(bars.timestamp[at[-1]]) + 60_000_000),
        observed_us=stack.clock.now_us(),
        settled_until=stack.clock.now_us(),
        final_until=stack.clock.now_us(),
    )
    if removed := changes.pop("removed", None):
        commit = replace(commit, bars=Bars.empty(), withdrawn=bars.timestamp[np.array(removed)])
    runtime(stack.client).store.commit([commit])


def test_what_the_broker_gave_does_not_drift(filled: Stack):
    report = check(filled, sample=None)
    assert not report.drifted
    assert not report.failed
    assert report.series == 4
    total = sum(len(stored(filled, k)) for k in runtime(filled.client).store.series())
    # Today's session, and yesterday's daily bar, may still be corrected.
    assert 0.9 * total < report.bars < total


def test_drift_is_told_by_column_and_put_right_on_request(filled: Stack):
    before = stored(filled)
    # One in a sealed session, one among the rows.
    places = [500, len(before) - 3000]
    spoil(filled, MINUTES, at=places, values={CLOSE: lambda v: v * 1.5, VOLUME: lambda v: v + 10})
    spoil(filled, DAYS, at=[3], values={VWAP: lambda v: v * np.nan})
    filled.clock.advance(seconds=1)
    report = check(filled, sample=None)
    fields = {d.field: d for d in report.fields}
    assert {name: d.bars for name, d in fields.items()} == {"close": 2, "volume": 2, "vwap": 1}
    assert fields["volume"].largest_absolute == 10
    assert fields["close"].largest_relative == pytest.approx(1 / 3)
    assert fields["vwap"].largest_absolute == 0, "a value that is absent has no distance"
    assert {(d.key, d.changed) for d in report.drifts if d.key == DAYS} == {(DAYS, 1)}
    assert sum(d.changed for d in report.drifts) == 3
    assert (report.corrected, report.missing_here, report.missing_there) == (0, 0, 0)

    corrected = check(filled, sample=None, correct=True)
    assert corrected.corrected == 3
    after = stored(filled)
    assert after.timestamp.tobytes() == before.timestamp.tobytes()
    assert after.values.tobytes() == before.values.tobytes()
    assert not check(filled, sample=None).drifted
    frame = filled.client.get_bars("AAPL", "1day", start="2024-02-21")
    assert frame["vwap"].notna().all()


def test_bars_that_are_missing_here_come_back(filled: Stack):
    before = stored(filled)
    spoil(filled, MINUTES, at=[400, 402], removed=[400, 401])
    assert len(stored(filled)) == len(before) - 2
    filled.clock.advance(seconds=1)
    report = check(filled, sample=None)
    assert (report.missing_here, report.missing_there, report.fields) == (2, 0, ())
    assert check(filled, sample=None, correct=True).corrected == 2
    assert stored(filled).values.tobytes() == before.values.tobytes()


def test_bars_the_broker_no_longer_has_are_taken_out(filled: Stack):
    bars = stored(filled, SeriesKey("sandbox", "sip", "KO", Timeframe.MIN_1))
    key = SeriesKey("sandbox", "sip", "KO", Timeframe.MIN_1)
    quiet = bars.timestamp[:-1][np.diff(bars.timestamp) > 60_000_000]
    # Twenty sessions ago a minute in which nobody traded, as the broker says today.
    label = int(quiet[quiet < bars.timestamp[-1] - 15 * DAY][5]) + 60_000_000
    extra = Commit(
        key,
        Bars(np.array([label]), bars.values[:, :1].copy()),
        covered=Span(label, label + 60_000_000),
        observed_us=filled.clock.now_us(),
        settled_until=filled.clock.now_us(),
        final_until=filled.clock.now_us(),
    )
    runtime(filled.client).store.commit([extra])
    filled.clock.advance(seconds=1)
    assert check(filled, sample=None).missing_there == 1
    report = check(filled, sample=None, correct=True)
    assert (report.withdrawn, report.suspicious) == (1, ())
    assert stored(filled, key).values.tobytes() == bars.values.tobytes()


def test_an_answer_that_lacks_too_much_is_not_believed(filled: Stack):
    before = stored(filled)
    halved: Any = _Halved(filled.sandbox.source)
    filled.sandbox.source = halved
    report = check(filled, sample=None, correct=True, timeframes=[Timeframe.MIN_1])
    assert report.missing_there > 1000
    assert set(report.suspicious) >= {MINUTES}
    assert report.withdrawn == 0
    assert stored(filled).timestamp.tobytes() == before.timestamp.tobytes()


class _Halved:
    """A market that has lost every second bar."""

    def __init__(self, market: object) -> None:
        self._market = market

    def __getattr__(self, name: str) -> object:
        return getattr(self._market, name)

    def minutes(self, *asked: object, **options: object) -> object:
        for bars in self._market.minutes(*asked, **options):  # type: ignore[attr-defined]
            yield bars.take(np.arange(0, len(bars), 2))


# ------------------------------------------------------------------------------------- samples


@pytest.mark.exact("it counts the requests sent")
def test_a_sample_is_whole_sessions_and_another_one_each_date(filled: Stack):
    def asked() -> list[str]:
        filled.forget_calls()
        report = check(filled, sample=5)
        assert report.stretches == report.calls == filled.calls() == 5
        return sorted(r.target for r in filled.sandbox.requests)

    first = asked()
    assert asked() == first, "the same date, the same sample"
    filled.clock.advance(days=1)
    assert asked() != first


def test_symbols_timeframe_and_window_narrow_it(filled: Stack):
    report = check(
        filled, symbols=["AAPL"], timeframes=[Timeframe.DAY_1], start="2024-03-01", sample=None
    )
    assert (report.series, report.bars) == (1, 9)
    with pytest.raises(RequestError, match="MSFT"):
        check(filled, symbols=["MSFT"])
    with pytest.raises(RequestError, match="start"):
        check(filled, start="2024-03-10", end="2024-03-01")


def test_nothing_stored_is_nothing_to_compare(stack: Stack):
    assert check(stack).stretches == 0


# ------------------------------------------------------------------------------------- failures


def test_its_own_failure_is_no_drift(filled: Stack):
    filled.sandbox.faults.add("status", match="symbols=KO", status=410, times=None)
    report = check(filled, sample=8)
    assert report.failed
    assert {u.key.symbol for u in report.failed} == {"KO"}
    assert not report.drifted
    assert report.stretches == 8 - len(report.failed)


def test_a_broker_that_is_down_is_an_error(filled: Stack):
    filled.sandbox.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerUnavailableError):
        check(filled, sample=8)


def test_refused_keys_are_an_error(filled: Stack):
    filled.sandbox.faults.add("status", status=401, times=None)
    with pytest.raises(AuthenticationError):
        check(filled, sample=8)


def test_it_stops_between_requests(filled: Stack):
    stop = threading.Event()
    report = verify(
        runtime(filled.client), sample=None, stop=stop, on_compared=lambda *_: stop.set()
    )
    assert report.stopped
    assert not report.drifted


def test_what_was_stored_before_it_was_final_is_final_once_it_was_corrected(stack: Stack):
    stack.client.get_bars("AAPL", "1min", limit=300)
    stack.set_time("2024-04-15T12:00:00-04:00")
    store = runtime(stack.client).store
    held = store.states([MINUTES])[MINUTES]
    before = stored(stack)

    assert not check(stack, sample=None).drifted
    assert store.states([MINUTES])[MINUTES] == held
    assert not check(stack, sample=None, correct=True).drifted

    state = store.states([MINUTES])[MINUTES]
    assert state.coverage == held.coverage
    calendar = runtime(stack.client).calendar()
    (final,) = state.final
    assert calendar.trading_spans(final, "extended") == calendar.trading_spans(
        held.coverage[0], "extended"
    )
    np.testing.assert_array_equal(stored(stack).values, before.values)
