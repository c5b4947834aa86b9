"""Bars and stores for the tests of the PostgreSQL tier."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psycopg

from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import MINUTE, Bars, SeriesKey, Timeframe

AAPL = SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)
MSFT = AAPL._replace(symbol="MSFT")
OPEN = 1_704_205_800_000_000
"""2024-01-02T14:30Z, a session's open."""
OBSERVED = OPEN + 10_000 * MINUTE


@contextmanager
def migrated_store(url: str, **options: float) -> Iterator[PostgresStore]:
    """A store on `url` with its schema made; closed afterwards."""
    with PostgresStore(url, application_name="marketdata-test", **options) as store:  # type: ignore[arg-type]
        store.migrate()
        yield store


def minutes(start: int, count: int) -> Span:
    """The span of `count` minutes from minute `start` of the session."""
    return Span(OPEN + start * MINUTE, OPEN + (start + count) * MINUTE)


def some_bars(span: Span, seed: int = 0, step: int = MINUTE) -> Bars:
    """Plausible bars for every step of `span`, the same for the same seed."""
    timestamp = np.arange(span.start, span.end, step, dtype=np.int64)
    random = np.random.default_rng(seed)
    values = random.uniform(100, 101, (7, len(timestamp)))
    values[1] = values[:4].max(axis=0)
    values[2] = values[:4].min(axis=0)
    values[4] = random.uniform(0, 1e6, len(timestamp))
    values[6] = random.integers(1, 1000, len(timestamp))
    return Bars(timestamp, values)


def commit_of(
    span: Span,
    key: SeriesKey = AAPL,
    *,
    seed: int = 0,
    observed_us: int = OBSERVED,
    settled_until: int | None = None,
    final_until: int | None = None,
) -> Commit:
    """A commit of plausible bars that cover `span`."""
    bars = some_bars(span, seed)
    return Commit(key, bars, span, observed_us, settled_until, final_until)


def stored(store: PostgresStore, span: Span, key: SeriesKey = AAPL) -> Bars:
    """The bars the store has of one series."""
    return store.read([ReadRequest(key, span)])[key][1]


def assert_same_bars(found: Bars, expected: Bars) -> None:
    """Equal bit for bit, NaN included."""
    assert found.timestamp.tolist() == expected.timestamp.tolist()
    assert found.values.tobytes() == np.ascontiguousarray(expected.values).tobytes()


def overtaken[T](url: str, statement: str, work: Callable[[], T]) -> T:
    """Run `work` against rows that `statement` has changed and not committed; commit once `work`
    waits for them, and return what it returns."""
    waiting = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database())"
    )
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(url, autocommit=True) as watch,
        psycopg.connect(url) as first,
    ):
        first.execute("SET search_path = marketdata")
        assert first.execute(statement).rowcount
        later = pool.submit(work)
        ends = time.monotonic() + 10
        while watch.execute(waiting).fetchone() != (True,) and time.monotonic() < ends:
            time.sleep(0.005)
        assert not later.done(), "nothing held it up"
        first.commit()
        return later.result()
