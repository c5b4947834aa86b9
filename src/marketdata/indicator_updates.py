"""Keeps the newest indicator values of live series up to date, in memory, store and cache.

::

    bars just stored -> what each series' state rests on now (revision, coverage, splits)
      -> the next bar, or the newest one revised: one step for thousands of series
      -> anything else (first sight, an older bar corrected, bars of others between, a new split):
         begin anew from stored bars, in bulk
      -> PostgreSQL, then Redis

State is worth keeping only while it is known to rest on what is stored. The store counts a series'
commits: a step is taken where nothing but the bars given lies between the revision that the state
rests on and the one stored now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import batched, groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata import planning, resample
from marketdata.actions import RECHECK
from marketdata.adjust import adjust_bars, effective
from marketdata.clock import Deadline
from marketdata.corporate_actions import SHARE_CHANGES, splits_of
from marketdata.errors import BrokerError, DataUnavailableError
from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_reading import bars_needed
from marketdata.indicator_seeding import Seeder
from marketdata.indicator_stepping import Actions, Stepper, Work
from marketdata.indicator_values import valid_until
from marketdata.indicators import Indicator
from marketdata.kept_indicators import KEPT, version_number
from marketdata.protocols import ReadRequest
from marketdata.spans import Span
from marketdata.types import HOUR, Bars, SeriesKey, Timeframe

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.indicators")

Revisions = Mapping[SeriesKey, tuple[int, int]]
Wanted = Callable[[], Sequence[tuple[str, Timeframe, int]]]

_SAVED_AT_ONCE: Final = 1000
_CAUGHT_UP_AT_ONCE: Final = 500
_WANTED_SECONDS: Final = 30.0
_WAITING_SECONDS: Final = 600.0
_ASK_AGAIN_SECONDS: Final = 120.0
_RECHECK: Final = RECHECK + HOUR
"""An hour later than a read would ask: the job that asks about all symbols at once comes first."""
_UNTOLD: Final = -2
"""The revision before commits that were not the caller's alone: no state rests on it."""


class IndicatorUpdater:
    """Computes the newest values of the series that somebody keeps fresh, and stores them.

    One updater belongs to one daemon; calls from several threads follow each other.

    Parameters
    ----------
    runtime : Runtime
        The stack to work on; not closed.
    indicators : sequence of Indicator, optional
        The kept ones by default; reads are served from the cache only for those.
    wanted : callable, optional
        Returns the live subscriptions, each beginning with symbol and timeframe: stored bars then
        update every timeframe wanted of their symbol. Without it, a series updates itself alone.

    Attributes
    ----------
    counts : Counter
        Since this was made: series ``stepped`` and ``begun``; and ``waiting`` now (too little
        history is stored); ``unadjusted``, left out because their splits are not known.
    """

    def __init__(
        self,
        runtime: Runtime,
        indicators: Sequence[Indicator] | None = None,
        *,
        wanted: Wanted | None = None,
    ) -> None:
        self._runtime = runtime
        chosen = KEPT if indicators is None else tuple(indicators)
        self._needed = {t: bars_needed(chosen, t, "regular") for t in Timeframe}
        self._seeder = Seeder(runtime, self._needed)
        self._stepper = Stepper(runtime, chosen, self._needed, self._seeder)
        self._live = self._stepper.live
        self._wanted = wanted
        self._lock = threading.Lock()
        self._waiting: dict[SeriesKey, tuple[int, float]] = {}
        self._targets: dict[SeriesKey, tuple[Timeframe, ...]] = {}
        self._targets_until = 0.0
        self._ask_splits_at = 0.0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of series with state."""
        return len(self._live)

    def update(self, closed: Mapping[SeriesKey, Bars], revisions: Revisions | None = None) -> int:
        """Bring the values of series up to date with bars that have just been stored.

        Parameters
        ----------
        closed : mapping
            New and changed bars as they are stored, extended hours included or not, by stored
            series of one provider (or by derived one, then in its timeframe). A series whose
            coverage has grown over quiet time comes with empty bars.
        revisions : mapping, optional
            By stored series, its revision before and after the commits of these bars; a series is
            left out where others have committed in between, and then begins anew. Without the
            mapping, one commit since the last update is taken for that of the bars, and several
            make the series begin anew.

        Returns
        -------
        int
            Series whose newest values are other ones now.

        Raises
        ------
        StoreError
            PostgreSQL failed: the series of this update begin anew with the next one.
        """
        with self._lock:
            pairs = list(self._pairs(closed))
            if not pairs:
                return 0
            try:
                actions = self._actions([key for key, _ in pairs])
                work = self._planned(pairs, closed, revisions, actions)
                stepped = self._stepper.take(work, actions)
                self.counts["stepped"] += stepped
                return stepped + self._begin(work, actions)
            except BaseException:
                self._live.forget(key for key, _ in pairs)
                raise

    def fill(self, stop: threading.Event, seconds: float = 20.0, at_once: int = 50) -> int:
        """Begin wanted series whose bars somebody else stored, or a process that ended before it
        had their values; then read the history of series that wait for it, as a call for bars
        would: from the broker where it is not stored. Return how many were begun.

        Parameters
        ----------
        stop : threading.Event
            Looked at between batches.
        seconds : float
            No batch begins later than this.
        at_once : int
            Series of one batch.

        Raises
        ------
        StoreError
            PostgreSQL failed. What the broker does not give is left for the next time.
        """
        ends = time.monotonic() + seconds
        begun = self._catch_up(stop, ends)
        with self._lock:
            waiting = sorted(self._waiting, key=lambda k: (k.timeframe, k.feed, k.symbol))
        for _, group in groupby(waiting, key=lambda k: (k.timeframe, k.feed)):
            for part in batched(group, at_once):
                if stop.is_set() or time.monotonic() > ends:
                    return begun
                begun += self._fill(part)
        return begun

    def _catch_up(self, stop: threading.Event, ends: float) -> int:
        """Begin series without state whose stored values are none, or older than their bars; and
        those whose share changes are known otherwise by now, with state or without."""
        with self._lock:
            targets = self._wanted_targets() or {}
            lost = [
                (key, base)
                for base, timeframes in targets.items()
                for key in map(base.with_timeframe, timeframes)
                if not self._live.known(key) and key not in self._waiting
            ]
        if not targets:
            return 0
        store, runtime = self._stepper.store, self._runtime
        behind = store.behind([key for key, _ in lost], [base for _, base in lost])
        bases = dict.fromkeys(lost[n][1] for n in behind)
        outdated = store.outdated(runtime.provider, runtime.clock.now_us())
        bases |= dict.fromkeys(
            base for base in map(self._seeder.base_of, outdated) if base in targets
        )
        begun = 0
        for part in batched(bases, _CAUGHT_UP_AT_ONCE):
            if stop.is_set() or time.monotonic() > ends:
                break
            # Of no commit: state of the same symbol's other timeframes takes no step for it.
            begun += self.update(dict.fromkeys(part, Bars.empty()), {})
        return begun

    # ------------------------------------------------------------------------ what is to be done

    def _pairs(self, closed: Mapping[SeriesKey, Bars]) -> Iterator[tuple[SeriesKey, SeriesKey]]:
        """Yield each series to update with the one whose bars were given."""
        targets = self._wanted_targets()
        for key in closed:
            if targets is None:
                yield key, key
            else:
                for timeframe in targets.get(key, ()):
                    yield key.with_timeframe(timeframe), key

    def _wanted_targets(self) -> Mapping[SeriesKey, tuple[Timeframe, ...]] | None:
        """Return the wanted timeframes of each stored series; forget state nobody wants."""
        if self._wanted is None:
            return None
        if time.monotonic() > self._targets_until:
            provider, feed = self._runtime.provider, self._runtime.source.feed
            found: dict[SeriesKey, tuple[Timeframe, ...]] = {}
            live: set[SeriesKey] = set()
            wanted = [(symbol, Timeframe(name)) for symbol, name, *_ in self._wanted()]
            today = self._runtime.identities.today(provider, [symbol for symbol, _ in wanted])
            for symbol, timeframe in wanted:
                key = SeriesKey(provider, feed, today.get(symbol, symbol), timeframe)
                if key in live:
                    continue
                base = self._seeder.base_of(key)
                found[base] = (*found.get(base, ()), key.timeframe)
                live.add(key)
            self._targets = found
            self._live.forget(self._live.keys() - live)
            self._waiting = {k: at for k, at in self._waiting.items() if k in live}
            self._targets_until = time.monotonic() + _WANTED_SECONDS
        return self._targets

    def _planned(
        self,
        pairs: Sequence[tuple[SeriesKey, SeriesKey]],
        closed: Mapping[SeriesKey, Bars],
        revisions: Revisions | None,
        actions: Mapping[str, Actions],
    ) -> Work:
        """Decide for each series whether its state can take a step, or must begin anew."""
        work, live = Work(), self._live
        bases = [self._seeder.base_of(key) for key, _ in pairs]
        stored, covered = (a.tolist() for a in self._stepper.store.heads(bases))
        regular = self._regular(closed)
        edges: dict[tuple[Timeframe, int], int] = {}
        derived: list[tuple[SeriesKey, SeriesKey, int, int]] = []
        for (key, given), base, now, until in zip(pairs, bases, stored, covered, strict=True):
            known = actions.get(key.symbol)
            if known is None or not now:
                self.counts["unadjusted"] += known is None
                continue
            before, after = _commits(base, now, revisions)
            if not live.known(key):
                self._consider(key, before, after, now, work)
                continue
            number = live.number(key)
            rests_on = int(live.revision[number])
            if known.version != live.action_version[number] or not _follows(rests_on, before, now):
                work.begin_anew(key, now)
                continue
            if rests_on == now and known.asked_us == live.actions_us[number]:
                continue
            edge = edges.get((key.timeframe, until))
            if edge is None:
                edge = edges[key.timeframe, until] = self._edge(key, base, until)
            revision = now if rests_on == now else after
            bars, own = regular[given], key.timeframe is given.timeframe
            if own and len(bars) and known.splits:
                bars = adjust_bars(bars, known.splits)
            last = int(live.last[number])
            if own and len(bars) and bars.timestamp[0] <= last:
                bars = live.unseen(number, bars)
            if len(bars) and bars.timestamp[0] < last:
                work.begin_anew(key, now)
            elif own:
                work.step(key, number, bars, revision, edge)
            elif self._seeder.began_within(key, last):
                # Its newest week or month has days under an earlier name.
                work.begin_anew(key, now)
            else:
                derived.append((key, base, revision, edge))
        self._add_derived(derived, work, actions)
        return work

    def _consider(
        self, key: SeriesKey, before: int | None, after: int, now: int, work: Work
    ) -> None:
        """Begin a series without state, unless it waits for history that no commit has brought."""
        waits = self._waiting.get(key)
        if (
            waits is not None
            and time.monotonic() - waits[1] < _WAITING_SECONDS
            and _follows(waits[0], before, now)
        ):
            self._waiting[key] = (after, waits[1])
        else:
            work.anew[key] = now

    def _add_derived(
        self,
        derived: Sequence[tuple[SeriesKey, SeriesKey, int, int]],
        work: Work,
        actions: Mapping[str, Actions],
    ) -> None:
        """Make the newest bins of derived series from stored bars, their newest closed one too."""
        calendar, live = self._runtime.calendar(), self._live
        requests = [
            ReadRequest(
                base,
                resample.base_span(
                    Span(int(live.last[live.number(key)]), edge), key.timeframe, calendar
                ),
            )
            for key, base, _, edge in derived
        ]
        found = self._read(requests)
        for (key, base, revision, edge), stored in zip(derived, found, strict=True):
            number = live.number(key)
            bars = adjust_bars(stored, actions[key.symbol].splits)
            bars = resample.resample(bars, base.timeframe, key.timeframe, calendar, "regular")
            bars = bars.within(Span(int(live.last[number]), edge))
            work.step(key, number, live.unseen(number, bars), revision, edge)

    def _read(self, requests: Sequence[ReadRequest]) -> list[Bars]:
        """Read spans of stored series; a series may come up more than once."""
        found = [Bars.empty()] * len(requests)
        rest = dict(enumerate(requests))
        while rest:
            now = {request.key: n for n, request in reversed(rest.items())}
            read = self._runtime.store.read([rest[n] for n in now.values()])
            for key, n in now.items():
                found[n] = read[key][1]
                del rest[n]
        return found

    def _edge(self, key: SeriesKey, base: SeriesKey, covered: int) -> int:
        """Return the label before which no closed bar of `key` is missing from the store."""
        runtime = self._runtime
        calendar = runtime.calendar()
        caps = runtime.broker.capabilities(key.feed)
        edge = planning.frontier(calendar, base.timeframe, caps, runtime.clock.now_us())
        edge = min(edge, covered)
        if base.timeframe is key.timeframe:
            return edge
        return planning.closed_labels(calendar, key.timeframe, edge)

    def _regular(self, closed: Mapping[SeriesKey, Bars]) -> dict[SeriesKey, Bars]:
        """Return the bars of regular hours; one search for all."""
        found = dict(closed)
        intraday = [key for key, bars in closed.items() if key.timeframe.intraday and len(bars)]
        if not intraday:
            return found
        stamps = np.concatenate([closed[key].timestamp for key in intraday])
        inside = self._runtime.calendar().mask(stamps, "regular")
        if inside.all():
            return found
        at = 0
        for key in intraday:
            here = inside[at : at + len(closed[key])]
            at += len(here)
            if not here.all():
                found[key] = closed[key].take(here)
        return found

    # --------------------------------------------------------------------------------- actions

    def _actions(self, keys: Sequence[SeriesKey]) -> dict[str, Actions]:
        """Return the splits of each symbol that are known, asking the broker where that is due."""
        provider = keys[0].provider
        symbols = list(dict.fromkeys(key.symbol for key in keys))
        # When they were asked for is read before what was answered: known at least since then.
        known = self._stepper.store.asked(provider, symbols)
        if self._ask_for_splits(provider, symbols, known, self._history_start(keys)):
            known = self._stepper.store.asked(provider, symbols)
        told = self._runtime.action_store.actions(provider, symbols, SHARE_CHANGES)
        now_us = self._runtime.clock.now_us()
        identities = self._runtime.identities
        renamed = identities.changed(provider, symbols)
        actions = {}
        for symbol, (_, asked_us) in known.items():
            splits = splits_of(told[symbol])
            found = effective(splits, now_us)
            lineage = identities.text(renamed[symbol]) if symbol in renamed else ""
            version = version_number(symbol, found, lineage) if found or lineage else 0
            until = valid_until(splits, now_us)
            actions[symbol] = Actions(found, version, asked_us, until)
        return actions

    def _ask_for_splits(
        self,
        provider: str,
        symbols: Sequence[str],
        known: Mapping[str, tuple[int, int]],
        start: int,
    ) -> bool:
        """Ask about symbols never asked about, or not lately; return whether anybody was asked."""
        runtime = self._runtime
        now_us = runtime.clock.now_us()
        due = [
            s
            for s in symbols
            if s not in known or known[s][0] > start or now_us - known[s][1] > _RECHECK
        ]
        if not due or time.monotonic() < self._ask_splits_at:
            return False
        try:
            runtime.actions.ensure(provider, due, start, Deadline(runtime.settings.timeout))
        except (BrokerError, DataUnavailableError) as error:
            log.warning("splits of %d symbols not known: %s", len(due), error)
            self._ask_splits_at = time.monotonic() + _ASK_AGAIN_SECONDS
        return True

    def _history_start(self, keys: Sequence[SeriesKey]) -> int:
        """Return from when on splits matter to the series among `keys` that are new."""
        calendar, now_us = self._runtime.calendar(), self._runtime.clock.now_us()
        new = {key.timeframe for key in keys if not self._live.known(key)}
        if new & self._stepper.kept:
            return calendar.first
        starts = [
            planning.limit_start(t, now_us, self._needed[t] + CAPACITY, "regular", calendar)
            for t in new
        ]
        return min(starts, default=now_us)

    # ------------------------------------------------------------------------------- beginning

    def _begin(self, work: Work, actions: Mapping[str, Actions]) -> int:
        """Begin series from stored bars; those with too little history wait."""
        if not work.anew:
            return 0
        keys = list(work.anew)
        self._live.forget(keys)
        splits = {symbol: known.splits for symbol, known in actions.items()}
        now = time.monotonic()
        waiting = {key: (revision, now) for key, revision in work.anew.items()}
        done = 0
        seeds = self._seeder.seeds(keys, splits, self._whole(work, actions))
        for part in batched(seeds, _SAVED_AT_ONCE):
            done += self._stepper.begin(part, actions)
            for seed in part:
                waiting.pop(seed.key, None)
                self._waiting.pop(seed.key, None)
        self._waiting |= waiting
        self._count(done)
        return done

    def _whole(self, work: Work, actions: Mapping[str, Actions]) -> frozenset[SeriesKey]:
        """Return the series whose kept history has to be computed from its first bar on."""
        kept = [key for key in work.anew if key.timeframe in self._stepper.kept]
        versions = self._stepper.store.kept_versions(kept)
        return frozenset(
            key
            for key in kept
            if key in work.rebuilt or versions.get(key) != actions[key.symbol].version
        )

    def _count(self, begun: int) -> None:
        self.counts["begun"] += begun
        self.counts["waiting"] = len(self._waiting)

    def _fill(self, keys: Sequence[SeriesKey]) -> int:
        """Begin series of one timeframe with history from any tier."""
        actions = self._actions(keys)
        known = [key for key in keys if key.symbol in actions]
        splits = {symbol: each.splits for symbol, each in actions.items()}
        seeds = self._seeder.read_through(known, splits) if known else []
        with self._lock:
            fresh = [seed for seed in seeds if not self._live.known(seed.key)]
            try:
                done = self._stepper.begin(fresh, actions)
            except BaseException:
                self._live.forget(seed.key for seed in fresh)
                raise
            for seed in seeds:
                self._waiting.pop(seed.key, None)
            self._count(done)
        return done


def _commits(base: SeriesKey, now: int, revisions: Revisions | None) -> tuple[int | None, int]:
    """Return the revision before the commits of the bars given, if that is known, and after."""
    if revisions is None:
        return None, now
    return revisions.get(base, (_UNTOLD, now))


def _follows(rests_on: int, before: int | None, now: int) -> bool:
    """Whether nothing but the bars given lies between what state rests on and what is stored."""
    if rests_on == now:
        return True
    return rests_on + 1 == now if before is None else rests_on == before
