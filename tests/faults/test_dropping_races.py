"""Bars, coverage and partitions that are dropped between two steps of those who need them."""

from __future__ import annotations

from datetime import date

import numpy as np
import psycopg
import pytest

from marketdata.caching import BlocksFromStore
from marketdata.clock import from_micros
from marketdata.pausing import SNAPSHOT_TAKEN
from marketdata.store.connection import Driver
from marketdata.store.observed import Observed
from marketdata.store.retention import Retention
from marketdata.store.rows import write
from marketdata.store.writing import Partitions
from marketdata.testing import acting_at
from marketdata.types import SeriesKey, Timeframe
from tests.stack import BARS, Stack, runtime, same, tiers
from tests.store_examples import AAPL, migrated_store, minutes, some_bars, stored

KEY = SeriesKey("sandbox", "sip", "AAPL", Timeframe.MIN_1)


@pytest.mark.parametrize("timeframe", ["1min", "5min"])
def test_what_is_dropped_while_somebody_reads_it_is_read_to_the_end(
    stack: Stack, timeframe: str
) -> None:
    asked = {"start": "2024-03-11", "end": "2024-03-14"}
    first = stack.client.get_bars("AAPL", timeframe, **asked)  # type: ignore[arg-type]
    running = runtime(stack.client)
    before = running.calendar().midnight_of(date(2024, 3, 13))
    dropped: list[int] = []

    def drop() -> None:
        dropped.append(Retention(running.store.database).cut(KEY, before))

    stack.flush_redis()
    stack.forget_calls()
    with acting_at(SNAPSHOT_TAKEN, drop):
        again = stack.client.get_bars("AAPL", timeframe, **asked)  # type: ignore[arg-type]
    assert dropped[0]
    same(first, again)
    assert tiers(again) == "postgres:1"
    assert stack.calls(BARS) == 0, "it had been planned by what there was"
    later = stack.client.get_bars("AAPL", timeframe, **asked)  # type: ignore[arg-type]
    same(first, later)
    assert tiers(later) == "broker:1"
    assert stack.calls(BARS) == 1, "only what was dropped"


def test_what_is_dropped_between_bars_and_their_trail_is_fetched_again(stack: Stack) -> None:
    asked = {"start": "2024-03-11", "end": "2024-03-14", "as_of": "2024-03-14T12:00-04:00"}
    first = stack.client.get_bars("AAPL", "1min", **asked)  # type: ignore[arg-type]
    running = runtime(stack.client)
    before = running.calendar().midnight_of(date(2024, 3, 13))
    dropped: list[int] = []

    def drop() -> None:
        dropped.append(Retention(running.store.database).cut(KEY, before))

    stack.forget_calls()
    with acting_at(SNAPSHOT_TAKEN, drop):
        again = stack.client.get_bars("AAPL", "1min", **asked)  # type: ignore[arg-type]
    assert dropped[0]
    same(first, again)
    assert stack.calls(BARS) == 1, "only what was dropped"


def test_a_block_never_covers_what_was_dropped(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", limit=500)
    running = runtime(stack.client)
    caps, now_us = running.broker.capabilities("sip"), stack.clock.now_us()
    blocks = BlocksFromStore(caps, running.calendar(), now_us)
    asked = blocks.ask(running.store.states([KEY]))
    assert asked
    running.retention.cut(KEY, running.calendar().midnight_of(from_micros(now_us).date()))
    blocks.take(running.store.read(asked))
    assert not blocks.made


def test_rows_find_their_partition_however_often_it_is_dropped(database_url: str) -> None:
    span = minutes(0, 30)
    bars = some_bars(span)
    new = Observed.of(1, bars, np.full(len(bars), 1, np.int64))
    drops: list[bool | None] = []

    with migrated_store(database_url) as store:
        partitions = Partitions(store.database)

        def drop_it() -> bool | None:
            """Drop the month's partition; None where somebody holds it."""
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("SET search_path = marketdata")
                statement = "SELECT drop_empty_bar_partition('2024-01-01')"
                try:
                    row = other.execute(statement).fetchone()
                except psycopg.errors.LockNotAvailable:
                    return None
                assert row is not None
                return bool(row[0])

        def work(raw: Driver) -> int:
            partitions.require([AAPL], new)
            drops.append(drop_it())
            write(raw, [AAPL], new)
            raw.execute(
                "INSERT INTO series (provider, feed, symbol, timeframe, first_bar, last_bar)"
                " VALUES ('alpaca', 'sip', 'AAPL', '1min', %s, %s)",
                [from_micros(span.start), from_micros(span.end)],
            )
            return len(bars)

        assert partitions.run(work) == 30
        assert drops == [True, None]
        assert len(stored(store, span)) == 30
