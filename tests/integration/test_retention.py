"""What is too old goes, with its coverage; the jobs `seal` and `retain`, and their commands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest

from marketdata import sealing
from marketdata.clock import FixedClock, from_micros
from marketdata.config import Settings
from marketdata.errors import RequestError
from marketdata.protocols import ReadRequest
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, Bars, SeriesKey, Timeframe
from marketdata.wiring import Runtime
from tests.command_line import CommandLine, InProcess
from tests.sealed_examples import (
    SealedStore,
    final_commit,
    midnight,
    session_bars,
    sessions,
    without,
)
from tests.store_examples import AAPL, MSFT, assert_same_bars, migrated_store, stored

NOW = "2024-02-09T15:00:00-05:00"
"""A Friday in session."""
SPAN = sessions("2024-01-02", "2024-02-08")
BARS = session_bars(SPAN)


@pytest.fixture
def made(database_url: str) -> Iterator[SealedStore]:
    with (
        migrated_store(database_url) as store,
        psycopg.connect(database_url, autocommit=True) as plain,
    ):
        yield SealedStore(store, plain)


@pytest.fixture
def settings(database_url: str, redis_db: str) -> Settings:
    return Settings.load(database_url=database_url, redis_url=redis_db, broker="none", clock=NOW)


def running(settings: Settings, **changed: object) -> closing[Runtime]:
    return closing(
        Runtime(settings.model_copy(update=changed), FixedClock(datetime.fromisoformat(NOW)))
    )


def check(made: SealedStore, expected: Bars, key: SeriesKey = AAPL) -> None:
    assert_same_bars(stored(made.store, SPAN, key), expected)
    (holding,) = made.store.holdings([key.symbol])
    assert holding.bar_count == len(expected)
    assert holding.row_count == made.rows(key)
    ends = (from_micros(int(expected.timestamp[at])) for at in (0, -1))
    assert (holding.first_bar, holding.last_bar) == tuple(ends)


# ------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize("first", ["2024-01-10", "2024-01-15", "2024-02-01", "2024-02-07"])
def test_rows_and_sealed_bars_go_with_everything_that_is_known_of_them(
    made: SealedStore, first: str
):
    made.store.commit([final_commit(SPAN)])
    made.seal("2024-02-05")
    noted = np.array([5, 6, 2000])
    changed = BARS.take(noted)
    changed.values[:] *= 2
    gone = BARS.timestamp[[7, 1500]]
    made.store.commit([final_commit(Span(0, 0), bars=changed, withdrawn=gone, late=DAY)])
    expected = Bars(BARS.timestamp, BARS.values.copy())
    expected.values[:, noted] *= 2
    expected = without(expected, gone)
    revision = made.store.states([AAPL])[AAPL].revision
    floors: list[dict[SeriesKey, int]] = []

    before = midnight(first)
    dropped = made.retention.cut(AAPL, before, lambda revisions: floors.append(dict(revisions)))

    kept = expected.timestamp >= before
    assert dropped == (~kept).sum()
    check(made, expected.take(kept))
    assert floors == [{AAPL: revision + 1}]
    state = made.store.states([AAPL])[AAPL]
    assert state.coverage == state.final == [Span(before, SPAN.end)]
    assert all(span.start >= before for span in [*state.sealed, *state.unsettled])
    left = made.plain.execute('SELECT min("timestamp") FROM bar_corrections').fetchone()
    assert left is not None
    assert left[0] is None or left[0] >= from_micros(before)
    assert made.retention.cut(AAPL, before) == 0
    # what is fetched again is kept again, sealed or not, beside the chunk it was cut from
    for sealed in (False, True):
        made.store.commit([final_commit(SPAN, late=2 * DAY, sealed=sealed)])
        assert_same_bars(stored(made.store, SPAN), BARS)
        made.seal("2024-02-09")
        check(made, BARS)
        made.retention.cut(AAPL, before)
        check(made, BARS.take(BARS.timestamp >= before))


def test_everything_may_be_too_old(made: SealedStore):
    made.store.commit([final_commit(SPAN, sealed=True)])
    made.retention.cut(AAPL, midnight("2024-03-01"))
    state, bars = made.store.read([_request()])[AAPL]
    assert len(bars) == 0
    assert (state.coverage, state.sealed, state.first_bar) == ([], [], None)
    assert made.chunks() == []
    assert made.store.holdings()[0].bar_count == 0


def _request() -> ReadRequest:

    return ReadRequest(AAPL, SPAN)


def test_a_damaged_chunk_does_not_outlive_its_time(made: SealedStore):
    made.store.commit([final_commit(SPAN, sealed=True)])
    made.spoil("2024-01-10")
    before = midnight("2024-02-01")
    dropped = made.retention.cut(AAPL, before)
    kept = BARS.timestamp >= before
    assert dropped == (~kept).sum()
    check(made, BARS.take(kept))


# ---------------------------------------------------------------------------------------- jobs


def test_the_seal_job_keeps_the_newest_sessions_as_rows(made: SealedStore, settings: Settings):
    made.store.commit([final_commit(SPAN), final_commit(SPAN, MSFT)])
    with running(settings, seal_after=3) as runtime:
        report = sealing.seal(runtime, threading.Event())
        # Friday has begun: Wednesday, Thursday and Friday are the newest three
        assert made.store.states([AAPL])[AAPL].sealed[-1].end == midnight("2024-02-07")
        again = sealing.seal(runtime, threading.Event())
    kept = BARS.timestamp >= midnight("2024-02-07")
    assert (report.series, report.bars) == (2, 2 * int((~kept).sum()))
    assert report.partitions == 1, "January"
    assert report.failed == ()
    assert not report.stopped
    assert report.summary()["bars"] == report.bars
    assert (again.bars, again.chunks) == (0, 0)
    for key in (AAPL, MSFT):
        check(made, BARS, key)


def test_sealing_never_leaves_rows_alone_and_still_merges(made: SealedStore, settings: Settings):
    made.store.commit([final_commit(SPAN), final_commit(SPAN, MSFT, sealed=True)])
    change = BARS.take(np.array([3]))
    change.values[:] += 1
    made.store.commit([final_commit(Span(0, 0), MSFT, bars=change, late=DAY)])
    with running(settings, seal_after="never") as runtime:
        report = sealing.seal(runtime, threading.Event())
    assert (report.bars, report.corrections) == (0, 1)
    assert made.rows() == len(BARS)


def test_a_stopped_job_has_done_whole_steps(made: SealedStore, settings: Settings):
    made.store.commit([final_commit(SPAN), final_commit(SPAN, MSFT)])
    stop = threading.Event()
    with running(settings) as runtime:
        seal = runtime.sealer.seal

        def stop_after_one(key: SeriesKey, before: int) -> object:
            for moved in seal(key, before):
                stop.set()
                yield moved

        runtime.sealer.seal = stop_after_one  # type: ignore[assignment,method-assign]
        report = sealing.seal(runtime, stop)
    assert report.stopped
    assert report.series == 1
    assert 0 < report.bars < len(BARS)
    check(made, BARS)
    assert made.store.states([MSFT])[MSFT].sealed == []


def test_one_series_that_fails_is_listed_and_the_others_are_sealed(
    made: SealedStore, settings: Settings
):
    half = sessions("2024-01-02", "2024-01-10")
    made.store.commit([final_commit(half, key, sealed=True) for key in (AAPL, MSFT)])
    made.store.commit([final_commit(SPAN, key) for key in (AAPL, MSFT)])
    change = BARS.take(np.array([3]))
    change.values[:] += 1
    made.store.commit([final_commit(Span(0, 0), k, bars=change, late=DAY) for k in (AAPL, MSFT)])
    made.spoil("2024-01-03")
    with running(settings) as runtime:
        report = sealing.seal(runtime, threading.Event())
        assert [failed.key for failed in report.failed] == [AAPL]
        assert "AAPL" in str(report.failed[0])
        assert report.summary()["failed"] == 1
        found = sealing.discard(runtime, "AAPL", Timeframe.MIN_1, *SPAN)
        assert [len(spans) for spans in found.values()] == [1]
        assert sealing.seal(runtime, threading.Event()).failed == ()
    assert made.store.holdings(["MSFT"])[0].corrections_pending == 0


def test_unsealing_through_the_job_and_what_it_refuses(made: SealedStore, settings: Settings):
    made.store.commit([final_commit(SPAN, sealed=True)])
    day = Span(midnight("2024-01-10") + 600 * MINUTE, midnight("2024-01-10") + 601 * MINUTE)
    with running(settings) as runtime:
        report = sealing.unseal(runtime, "aapl", Timeframe.MIN_1, *day)
        assert report.bars == 96 == made.rows()
        assert sealing.seal(runtime, threading.Event()).bars == 0, "pinned"
        assert sealing.seal(runtime, threading.Event(), repin=True).bars == 96
        with pytest.raises(RequestError, match="1day bars are never sealed"):
            sealing.unseal(runtime, "AAPL", Timeframe.DAY_1, *day)
        with pytest.raises(RequestError, match="no 1min bars of MSFT are stored"):
            sealing.unseal(runtime, "MSFT", Timeframe.MIN_1, *day)
    check(made, BARS)


def test_the_retention_job_keeps_so_many_days_of_intraday_bars(
    made: SealedStore, settings: Settings
):
    daily = AAPL.with_timeframe(Timeframe.DAY_1)
    days = Span(midnight("2020-01-02"), midnight("2024-02-08"))
    old = Bars(np.array([midnight("2020-01-02")]), np.full((7, 1), 10.0))
    made.store.commit(
        [
            final_commit(SPAN),
            final_commit(SPAN, MSFT, sealed=True),
            final_commit(days, daily, bars=old),
        ]
    )
    with running(settings, retention=30) as runtime:
        report = sealing.retain(runtime, threading.Event())
        again = sealing.retain(runtime, threading.Event())
    kept = BARS.timestamp >= midnight("2024-01-10")
    assert (report.series, report.bars) == (2, 2 * int((~kept).sum()))
    assert report.before == "2024-01-10"
    assert (again.series, again.bars) == (0, 0)
    assert_same_bars(stored(made.store, SPAN), BARS.take(kept))
    check(made, BARS.take(kept), MSFT)
    assert_same_bars(stored(made.store, days, daily), old)
    with running(settings, retention="never") as runtime:
        assert sealing.retain(runtime, threading.Event()).series == 0


def test_months_of_rows_that_are_all_too_old_are_dropped(made: SealedStore, settings: Settings):
    made.store.commit([final_commit(SPAN)])
    with running(settings, retention=9) as runtime:
        report = sealing.retain(runtime, threading.Event())
    assert report.before == "2024-01-31"
    assert report.partitions == 0, "the last day of January is kept"
    with running(settings, retention=8) as runtime:
        assert sealing.retain(runtime, threading.Event()).partitions == 1
    assert made.retention.months() == [date(2024, 2, 1)]


# ------------------------------------------------------------------------------------ commands


def test_the_commands_seal_unseal_and_show_what_is_sealed(
    made: SealedStore,
    database_url: str,
    redis_db: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    made.store.commit([final_commit(SPAN)])
    like = CommandLine(
        tmp_path, database_url=database_url, redis_url=redis_db, broker="none", clock=NOW
    )
    line = InProcess(like, monkeypatch, capsys)
    sealed = line("db", "seal", "aapl", "--before", "2024-01-20", "--json")
    assert sealed.code == 0, sealed.err
    kept = BARS.timestamp >= midnight("2024-01-20")
    assert sealed.summary["bars"] == (~kept).sum()
    assert made.rows() == kept.sum()
    status = line("status", "--json")
    assert status.summary["bars"] == len(BARS)
    (shown,) = [o for o in status.objects if o.get("timeframe") == "1min"]
    assert (shown["bars"], shown["sealed"]) == (len(BARS), (~kept).sum())
    unsealed = line("db", "unseal", "AAPL", "--start", "2024-01-10", "--end", "2024-01-12")
    assert unsealed.code == 0, unsealed.err
    assert "192 bars are rows" in unsealed.out
    assert made.rows() == kept.sum() + 192
    everything = line("db", "seal", "--repin")
    assert everything.code == 0, everything.err
    assert made.store.states([AAPL])[AAPL].sealed[-1].end == midnight("2024-01-29")
    made.spoil("2024-01-10")
    given_up = line(
        "db", "unseal", "AAPL", "--start", "2024-01-10", "--end", "2024-01-11", "--discard"
    )
    assert given_up.code == 0, given_up.err
    assert "1 damaged chunks given up" in given_up.out
    check(made, BARS.take(~((BARS.timestamp >= midnight("2024-01-08"))
                            & (BARS.timestamp < midnight("2024-01-15")))))  # fmt: skip
    refused = line("db", "unseal", "MSFT", "--start", "2024-01-10", "--end", "2024-01-11")
    assert refused.code == 2
    assert "no 1min bars of MSFT are stored" in refused.err
