"""Takes live series on: bar by bar, or anew from their history; then PostgreSQL, then Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_seeding import Seed, Seeder, bars_between
from marketdata.indicator_state import LiveSeries, computed, early_sessions
from marketdata.indicator_values import NOTHING_BEFORE, History, Newest, Steps, Tail
from marketdata.indicators import Indicator
from marketdata.types import Bars, Bools, Int64s, SeriesKey, Split, Timeframe

if TYPE_CHECKING:
    from marketdata.wiring import Runtime


@dataclass(frozen=True, slots=True)
class Actions:
    """The splits of one symbol, and what is known of that knowledge."""

    splits: Sequence[Split]
    """Those that have taken effect."""
    version: int
    asked_us: int
    valid_until: int
    """When the next one takes effect."""


@dataclass(slots=True)
class Work:
    """What one update has to do."""

    keys: list[SeriesKey] = field(default_factory=list)
    """Series that take steps, and for each of these:"""
    numbers: list[int] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    anew: dict[SeriesKey, int] = field(default_factory=dict)
    """Series to begin, with the revision stored."""
    rebuilt: set[SeriesKey] = field(default_factory=set)
    """Those of `anew` that had state."""

    def begin_anew(self, key: SeriesKey, revision: int) -> None:
        self.anew[key] = revision
        self.rebuilt.add(key)

    def step(self, key: SeriesKey, number: int, bars: Bars, revision: int, covered: int) -> None:
        self.keys.append(key)
        self.numbers.append(number)
        self.bars.append(bars)
        self.revisions.append(revision)
        self.covered.append(covered)


class Stepper:
    """Computes what follows from new bars, and stores it.

    Parameters
    ----------
    runtime : Runtime
    indicators : sequence of Indicator
    needed : mapping
        Bars of history by timeframe.
    seeder : Seeder
        Knows which stored series bars come from.
    """

    def __init__(
        self,
        runtime: Runtime,
        indicators: Sequence[Indicator],
        needed: Mapping[Timeframe, int],
        seeder: Seeder,
    ) -> None:
        self._runtime = runtime
        self._indicators = tuple(indicators)
        self._needed = needed
        self._seeder = seeder
        self.live = LiveSeries(indicators, early_sessions(runtime.calendar()))
        self.kept = frozenset(runtime.settings.indicator_history)
        self.store, self.cache = runtime.indicator_tiers(self.live.columns)

    # ----------------------------------------------------------------------------------- steps

    def take(self, work: Work, actions: Mapping[str, Actions]) -> int:
        """Give each series its bars, one a round, and store what follows; return how many had any."""
        if not work.keys:
            return 0
        live = self.live
        numbers = np.array(work.numbers, np.int64)
        lengths = np.array([len(bars) for bars in work.bars])
        covered = np.array(work.covered, np.int64)
        live.actions_us[numbers] = [actions[key.symbol].asked_us for key in work.keys]
        live.valid_until[numbers] = [actions[key.symbol].valid_until for key in work.keys]
        rounds: list[Steps] = []
        quiet = np.flatnonzero(lengths == 0)
        if len(quiet):
            none = np.zeros(len(quiet), np.bool_)
            rounds.append(self._steps(work, quiet, covered[quiet], none))
        older: dict[SeriesKey, list[Newest]] = {}
        for depth in range(int(lengths.max())):
            here = np.flatnonzero(lengths > depth)
            at = np.array([work.bars[n].timestamp[depth] for n in here.tolist()], np.int64)
            again = at == live.last[numbers[here]]
            for revised in (True, False):
                part, stamps = here[again == revised], at[again == revised]
                if not len(part):
                    continue
                rows = np.stack([work.bars[n].values[:, depth] for n in part.tolist()], axis=1)
                sessions = self._runtime.calendar().session_index(stamps)
                live.step(numbers[part], stamps, rows, sessions, revised=revised)
                final = lengths[part] == depth + 1
                # Nothing may pass for the newest values while more bars are to come.
                until = np.where(final, covered[part], stamps + 1)
                rounds.append(self._steps(work, part, until, np.ones(len(part), np.bool_)))
                self._note_older(rounds[-1].records, final, older)
        touched = np.flatnonzero(lengths)
        newest = self._records([work.keys[n] for n in touched.tolist()], numbers[touched])
        self.store.save(newest, [_joined(records) for records in older.values()], self.kept)
        for steps in rounds:
            self.cache.step(steps)
        return len(touched)

    def _records(self, keys: Sequence[SeriesKey], numbers: Int64s) -> Newest:
        live = self.live
        return Newest(
            keys,
            live.last[numbers],
            live.values(numbers),
            live.revision[numbers],
            live.actions_us[numbers],
            live.action_version[numbers],
        )

    def _steps(self, work: Work, places: Int64s, covered: Int64s, fresh: Bools) -> Steps:
        """Return the step that some series of `work` have just taken, for the cache; their state
        rests on the new revision from here on."""
        live, chosen = self.live, places.tolist()
        keys = [work.keys[n] for n in chosen]
        numbers = np.array([work.numbers[n] for n in chosen], np.int64)
        known = live.revision[numbers]
        live.revision[numbers] = [work.revisions[n] for n in chosen]
        return Steps(
            self._records(keys, numbers),
            live.previous[numbers],
            known,
            fresh,
            [self.derived_from(key) for key in keys],
            covered,
            live.valid_until[numbers],
            self._runtime.clock.now_us(),
        )

    def derived_from(self, key: SeriesKey) -> Timeframe | None:
        """Return the stored timeframe that bars of `key` derive from, or None for their own."""
        base = self._seeder.base_of(key).timeframe
        return None if base is key.timeframe else base

    def _note_older(
        self, records: Newest, final: Bools, older: dict[SeriesKey, list[Newest]]
    ) -> None:
        """Keep records that are not the newest, of the timeframes with a history."""
        if not self.kept:
            return
        for n in np.flatnonzero(~final).tolist():
            if records.keys[n].timeframe in self.kept:
                older.setdefault(records.keys[n], []).append(records.take(np.array([n])))

    # ------------------------------------------------------------------------------- beginning

    def begin(self, seeds: Sequence[Seed], actions: Mapping[str, Actions]) -> int:
        """Begin series with their history, and store their newest values; return how many."""
        if not seeds:
            return 0
        live, calendar = self.live, self._runtime.calendar()
        tails: dict[SeriesKey, Tail] = {}
        history: list[History] = []
        for seed in seeds:
            known = actions[seed.key.symbol]
            self._load(seed, known)
            stamps = seed.bars.timestamp
            values = computed(self._indicators, seed.bars, calendar).T
            start = max(seed.first, len(stamps) - CAPACITY)
            tails[seed.key] = Tail(
                stamps[start:],
                values[start:],
                seed.covered_until,
                seed.revision,
                known.asked_us,
                known.version,
                int(stamps[start - 1]) if start else NOTHING_BEFORE,
                seed.fetched_us,
                self.derived_from(seed.key),
                known.valid_until,
            )
            if seed.key.timeframe in self.kept:
                kept = slice(seed.first, None)
                rests_on = (seed.revision, known.asked_us, known.version)
                history.append(
                    History(seed.key, stamps[kept], values[kept], *rests_on, replaces=True)
                )
        keys = list(tails)
        numbers = np.array([live.number(key) for key in keys], np.int64)
        self.store.save(self._records(keys, numbers), history)
        self.cache.put(tails)
        return len(tails)

    def _load(self, seed: Seed, known: Actions) -> None:
        live, count = self.live, len(seed.bars)
        number = live.number(seed.key)
        most = self._needed[seed.key.timeframe] + CAPACITY
        bars = bars_between(seed.bars, max(0, count - most), count)
        live.load(number, bars, self._runtime.calendar().session_index(bars.timestamp))
        live.revision[number] = seed.revision
        live.actions_us[number] = known.asked_us
        live.action_version[number] = known.version
        live.valid_until[number] = known.valid_until
        live.last[number] = bars.timestamp[-1]
        live.previous[number] = bars.timestamp[-2] if len(bars) > 1 else NOTHING_BEFORE


def _joined(records: Sequence[Newest]) -> History:
    """Return records of one series, each alone, as a stretch of its history."""
    last = records[-1]
    return History(
        last.keys[0],
        np.concatenate([each.timestamp for each in records]),
        np.concatenate([each.values for each in records]),
        int(last.revision[0]),
        int(last.actions_us[0]),
        int(last.action_version[0]),
    )
