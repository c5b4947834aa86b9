"""Whatever is committed, corrected, withdrawn, sealed, unsealed and dropped, in any order: what is read
is what a dictionary would hold, and what was known earlier is what it held then.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from marketdata import tiling
from marketdata.bar_history import as_of
from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.retention import Retention
from marketdata.store.sealing import Sealer
from marketdata.types import DAY, HOUR, Bars, SeriesKey, Stage, Timeframe, revision_of
from tests.store_examples import assert_same_bars, migrated_store

CALENDAR = calendar_for(EXCHANGE, 1_704_205_800_000_000)
FIRST_DAY = date(2024, 2, 22)
DAYS = 19
"""The whole of no real month, the end of February, and the night the clocks change."""
MIDNIGHTS = [CALENDAR.midnight_of(FIRST_DAY + timedelta(n)) for n in range(DAYS + 1)]
HOURS = range((MIDNIGHTS[-1] - MIDNIGHTS[0]) // HOUR)
OBSERVED = MIDNIGHTS[-1] + 10 * DAY
NUMBERS = itertools.count()


@dataclass
class Entry:
    revision: int
    values: tuple[float, ...] | None
    """None where withdrawn."""


Past = list[tuple[int, tuple[float, ...] | None]]
"""Revisions and values of one bar, ascending; None where an answer was without it."""


def label(hour: int) -> int:
    return MIDNIGHTS[0] + hour * HOUR


def trades(hour: int) -> bool:
    """Whether a bar may lie there: a day counts as final with its hours of trading."""
    midnight = MIDNIGHTS[bisect_right(MIDNIGHTS, label(hour)) - 1]
    return 4 * HOUR <= label(hour) - midnight < 20 * HOUR


def values_of(version: int) -> tuple[float, ...]:
    price = 100.0 + version
    return (
        price,
        price + 0.5,
        price - 0.5,
        price,
        10.0 * version,
        np.nan if version % 2 else price,
        3,
    )


def bars_of(hours: list[int], version: int) -> Bars:
    timestamp = np.array([label(hour) for hour in hours], np.int64)
    column = np.array(values_of(version)).reshape(-1, 1)
    return Bars(timestamp, np.ascontiguousarray(np.repeat(column, len(hours), axis=1)))


class Machine(RuleBasedStateMachine):
    def __init__(self, store: PostgresStore, plain: psycopg.Connection) -> None:
        super().__init__()
        self.store = store
        self.plain = plain
        self.sealer = Sealer(store.database)
        self.retention = Retention(store.database)
        self.key = SeriesKey("alpaca", "sip", f"M{next(NUMBERS)}", Timeframe.HOUR_1)
        self.entries: dict[int, Entry] = {}
        self.past: dict[int, Past] = {}
        self.steps = 0
        self.covered: set[int] = set()
        self.settled: set[int] = set()
        self.final: set[int] = set()

    def stage_at(self, hour: int) -> int:
        if hour in self.final:
            return Stage.FINAL
        return Stage.REVISED if hour in self.settled else Stage.CLOSED

    # ------------------------------------------------------------------------------- rules

    @initialize(known=st.booleans(), sealed=st.booleans())
    def begin(self, known: bool, sealed: bool) -> None:
        """Begin with nothing, or with all days known and final."""
        if known:
            self.commit(
                start=0, length=HOURS.stop, stride=5, version=1, stage=Stage.FINAL, minute=0,
                covers=True, withdraws=[], sealed=sealed,
            )  # fmt: skip

    @rule(
        start=st.integers(0, DAYS - 1).map(lambda day: 24 * day) | st.integers(0, HOURS.stop - 1),
        length=st.integers(1, 24 * 12),
        stride=st.integers(1, 7),
        version=st.integers(1, 4),
        stage=st.sampled_from([Stage.CLOSED, Stage.REVISED, *[Stage.FINAL] * 4]),
        minute=st.integers(0, 5),
        covers=st.booleans() | st.just(True),
        withdraws=st.lists(st.integers(0, 40), max_size=4),
        sealed=st.sampled_from([False, False, True]),
    )
    def commit(
        self,
        start: int,
        length: int,
        stride: int,
        version: int,
        stage: Stage,
        minute: int,
        covers: bool,
        withdraws: list[int],
        sealed: bool,
    ) -> None:
        end = min(start + length, HOURS.stop)
        hours = [hour for hour in range(start, end, stride) if trades(hour)]
        withdrawn = sorted({start + w for w in withdraws if start + w < end and trades(start + w)})
        span = Span(label(start), label(end)) if covers else Span(0, 0)
        observed = OBSERVED + minute * HOUR
        until = None if stage is Stage.CLOSED else OBSERVED
        commit = Commit(
            self.key,
            bars_of(hours, version),
            span,
            observed,
            until,
            OBSERVED if stage is Stage.FINAL else None,
            withdrawn=np.array([label(hour) for hour in withdrawn], np.int64),
            sealed=sealed,
        )
        before = self.sealed()
        self.store.commit([commit])
        held = {hour: self.stage_at(hour) for hour in range(start, end)}
        revision = revision_of(int(stage), observed)
        for hour in hours:
            self.note(hour, Entry(revision, values_of(version)), held[hour], covers)
        for hour in set(withdrawn) - set(hours):
            self.note(hour, Entry(revision, None), held[hour], covers)
        if covers:
            self.covered.update(held)
            if stage >= Stage.REVISED:
                self.settled.update(held)
            if stage is Stage.FINAL:
                self.final.update(held)
        self.lift(self.sealed() - before)

    def sealed(self) -> set[int]:
        return hours_in(self.store.states([self.key])[self.key].sealed)

    def lift(self, hours: set[int]) -> None:
        """What goes into a chunk is final from then on, though only its day was seen to be."""
        for hour in hours:
            if self.live(hour):
                entry = self.entries[hour]
                entry.revision = max(entry.revision, revision_of(int(Stage.FINAL), 0))

    def note(self, hour: int, new: Entry, held: int, noted: bool) -> None:
        """Observe, and remember what changed. Where an answer covered the hour and had no bar, that
        is what was known before."""
        before = self.entries.get(hour)
        self.observe(hour, new, held, noted)
        if before is None:
            nothing = hour in self.covered and new.values is not None
            self.past[hour] = [(0, None)] if nothing else []
        elif repr(self.entries[hour].values) == repr(before.values):
            return
        self.past[hour].append((new.revision, new.values))

    def observe(self, hour: int, new: Entry, held: int, noted: bool) -> None:
        old = self.entries.get(hour)
        if old is None:
            self.entries[hour] = new
            return
        if new.revision <= old.revision:
            return
        if repr(old.values) != repr(new.values):
            if new.revision // 10**13 >= held:
                self.entries[hour] = new
        elif new.values is None or (not noted and new.revision // 10**13 > old.revision // 10**13):
            self.entries[hour] = new

    @rule(day=st.integers(6, DAYS))
    def seal(self, day: int) -> None:
        list(self.sealer.seal(self.key, MIDNIGHTS[day]))
        self.lift(self.sealed())
        assert tiling.merges(self.store.states([self.key])[self.key].sealed, self.chunks()) == []

    def chunks(self) -> list[Span]:
        found = self.plain.execute(
            "SELECT (extract(epoch FROM span_start) * 1e6)::bigint,"
            " (extract(epoch FROM span_end) * 1e6)::bigint"
            " FROM marketdata.bar_chunks WHERE symbol = %s ORDER BY 1",
            (self.key.symbol,),
        )
        return [Span(*row) for row in found]

    @rule(start=st.integers(0, HOURS.stop - 1), length=st.integers(1, 100))
    def unseal(self, start: int, length: int) -> None:
        list(self.sealer.unseal(self.key, Span(label(start), label(start + length))))

    @rule()
    def unpin(self) -> None:
        self.sealer.unpin([self.key.symbol])

    @rule(day=st.integers(0, 6))
    def retain(self, day: int) -> None:
        before = MIDNIGHTS[day]
        dropped = self.retention.cut(self.key, before)
        old = [hour for hour in self.entries if label(hour) < before]
        assert dropped == sum(self.entries[hour].values is not None for hour in old)
        for hour in old:
            del self.entries[hour], self.past[hour]
        for spans in (self.covered, self.settled, self.final):
            spans -= {hour for hour in HOURS if label(hour) < before}

    @rule(start=st.integers(0, HOURS.stop - 1), length=st.integers(0, 200))
    def read(self, start: int, length: int) -> None:
        self.check(start, min(start + length, HOURS.stop))

    @rule(
        start=st.integers(0, HOURS.stop - 1) | st.just(0),
        length=st.integers(0, 200) | st.just(HOURS.stop),
        minute=st.integers(-1, 6),
    )
    def look_back(self, start: int, length: int, minute: int) -> None:
        self.check_past(start, min(start + length, HOURS.stop), minute)

    # -------------------------------------------------------------------------- what holds

    def check_past(self, start: int, end: int, minute: int) -> None:
        moment = OBSERVED + minute * HOUR
        request = ReadRequest(self.key, Span(label(start), label(end)))
        found = self.store.read([request])[self.key][1]
        trail = self.store.trail([request], moment)[self.key]
        expected = {}
        for hour, past in self.past.items():
            seen = [values for revision, values in past if revision % 10**13 * 1000 <= moment]
            values = seen[-1] if seen else past[0][1]
            if values is not None and start <= hour < end:
                expected[hour] = values
        hours = sorted(expected)
        columns = np.array([expected[hour] for hour in hours]).T if hours else np.empty((7, 0))
        known = Bars(np.array([label(hour) for hour in hours], np.int64), columns)
        assert_same_bars(as_of(found, trail.entries, moment), known)
        assert trail.untrailed_until is None

    # -------------------------------------------------------------------------- what holds

    def check(self, start: int, end: int) -> None:
        span = Span(label(start), label(end))
        found = self.store.read([ReadRequest(self.key, span)])[self.key][1]
        live = sorted(h for h in range(start, end) if self.live(h))
        expected = [values for h in live if (values := self.entries[h].values) is not None]
        columns = np.array(expected).T if live else np.empty((7, 0))
        assert_same_bars(found, Bars(np.array([label(h) for h in live], np.int64), columns))

    def live(self, hour: int) -> bool:
        entry = self.entries.get(hour)
        return entry is not None and entry.values is not None

    @invariant()
    def the_past_stays_what_it_was(self) -> None:
        self.steps += 1
        self.check_past(0, HOURS.stop, self.steps * 5 % 8 - 1)

    @invariant()
    def reads_and_counts_agree(self) -> None:
        self.check(0, HOURS.stop)
        state = self.store.states([self.key])[self.key]
        chunks = self.chunks()
        assert all(one.end <= other.start for one, other in itertools.pairwise(chunks))
        assert hours_in(state.coverage) == self.covered
        assert hours_in(state.final) == self.final
        assert hours_in(state.unsettled) == self.covered - self.settled
        live = sorted(h for h in self.entries if self.live(h))
        assert state.first_bar == (label(live[0]) if live else None)
        assert state.last_bar == (label(live[-1]) if live else None)
        for holding in self.store.holdings([self.key.symbol]):
            assert holding.bar_count == len(live)
            sealed = hours_in(state.sealed)
            assert holding.sealed_count == sum(h in sealed for h in live)
            rows = [h for h in live if h not in sealed]
            ends = self.plain.execute(
                'SELECT count(*), min("timestamp"), max("timestamp")'
                " FROM marketdata.market_data_bars WHERE symbol = %s",
                (self.key.symbol,),
            ).fetchone()
            assert ends == (len(rows), holding.rows_from, holding.rows_to)


def hours_in(spans: list[Span]) -> set[int]:
    return {hour for hour in HOURS if any(s.start <= label(hour) < s.end for s in spans)}


@pytest.fixture(params=["real", "dense"])
def calendar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calendar's months; or months of two days, three of which are a quarter, so that a life of
    nineteen days has whole quarters, and parts of others."""
    if request.param == "dense":
        real = tiling._days()
        first = int(np.searchsorted(real.midnight, MIDNIGHTS[0])) + 3
        months = np.arange(first % 2, len(real.midnight), 2)
        quarters = np.arange(first % 6, len(real.midnight), 6)
        dense = tiling._Days(real.midnight, months, quarters)
        monkeypatch.setattr(tiling, "_days", lambda: dense)
        whole = list(tiling.quarter_spans(Span(MIDNIGHTS[4], MIDNIGHTS[14])))
        assert whole == [Span(MIDNIGHTS[3], MIDNIGHTS[9]), Span(MIDNIGHTS[9], MIDNIGHTS[15])]


@pytest.mark.usefixtures("calendar")
def test_what_is_read_is_what_a_dictionary_holds(database_url: str) -> None:
    with (
        migrated_store(database_url) as store,
        psycopg.connect(database_url, autocommit=True) as plain,
    ):
        run_state_machine_as_test(
            lambda: Machine(store, plain),  # type: ignore[arg-type]
            settings=settings(
                max_examples=50,
                stateful_step_count=18,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
