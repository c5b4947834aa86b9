"""Fills years of history, a chunk at a time, and goes on where it was stopped.

The life of one run:

1. *Audit*: what is covered of each series comes from the store, what failed before from the log;
   the broker is not asked (`Backfill.plan`, `backfill_plan`).
2. *Price*: calls, bars, bytes and minutes, and the night by which nightly runs will be done.
3. *Run*: one chunk after the other (`backfill_walk`), days of all symbols first, then minutes,
   newest month first. What is committed is coverage, so that there is no other state to resume
   from; a chunk that fails is taken apart until the series that fails stands alone.
4. *Verify*: what was planned is covered now, and its bars are plausible by the calendar.
5. *Report*.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from marketdata import backfill_plan as planner
from marketdata.backfill_plan import Failure, Scope
from marketdata.backfill_price import Forecast, Nightly, Price, forecast, next_wall_time, price
from marketdata.backfill_report import (
    NIGHT_ENDS,
    NIGHTLY,
    BackfillPlan,
    BackfillReport,
    Limits,
    OnProgress,
    Wanted,
)
from marketdata.backfill_run import Run, lanes_of
from marketdata.clock import from_micros
from marketdata.errors import ConfigurationError, RequestError
from marketdata.protocols import Priority
from marketdata.ranges import read_moment
from marketdata.spans import Span
from marketdata.types import MINUTE, SeriesKey, Timeframe, unique_symbols

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

__all__ = ["Backfill", "BackfillPlan", "BackfillReport", "Limits", "Wanted"]

DEFAULT_TIMEFRAMES: Final = (Timeframe.DAY_1, Timeframe.MIN_1)


class Backfill:
    """Plans and runs backfills of one database. Market time throughout.

    Parameters
    ----------
    runtime : Runtime
        The running stack. Requests go out through its `broker_for(Priority.BACKFILL)`: they use
        what live cycles and reads leave of the request budget.
    stop : Event, optional
        Looked at between pages, and while waiting: a run ends within seconds of its being set,
        with everything committed that was complete.
    """

    def __init__(self, runtime: Runtime, stop: threading.Event | None = None) -> None:
        self._runtime = runtime
        self._stop = stop or threading.Event()

    # ------------------------------------------------------------------------------ planning

    def plan(self, wanted: Wanted | None = None, limits: Limits | None = None) -> BackfillPlan:
        """Return what a run would do. Reads the store; asks no broker and changes nothing.

        Raises
        ------
        RequestError
            Symbols, timeframes, range or limits that cannot be; a retry does not help.
        """
        wanted, limits = wanted or Wanted(), limits or NIGHTLY
        runtime = self._runtime
        now_us, calendar = runtime.clock.now_us(), runtime.calendar()
        scope = self._scope(wanted, now_us)
        caps = runtime.broker_for(Priority.BACKFILL).capabilities(self._feed(wanted))
        keys = planner.stored_keys(scope, caps)
        failures = self.failures(keys)
        respected = [] if wanted.retry_failed else failures
        names = {symbol for symbol, _ in self._pairs(wanted)}
        states = runtime.identities.closed(runtime.store.states(keys), names)
        found = planner.audit(scope, states, caps, calendar, now_us, respected)
        taken, rest = planner.limited(found, limits.max_symbols)
        edge = self._seal_edge(now_us)
        rate = self.calls_a_minute()
        lanes = lanes_of(limits, rate)
        chunks = tuple(planner.chunks(taken, caps, calendar, edge, lanes))
        later = planner.chunks(rest, caps, calendar, edge, lanes)
        whole = price([*chunks, *later], rate)
        intraday = len({k.symbol for k in found.missing if k.timeframe.intraday})
        return BackfillPlan(
            scope,
            found,
            chunks,
            price(chunks, rate),
            price(later, rate),
            rate,
            self._forecast(whole, intraday, limits, now_us),
            frozenset(f.key for f in failures),
        )

    def failures(self, keys: Sequence[SeriesKey]) -> list[Failure]:
        """Return what earlier runs could not fetch of these stored series."""
        return self._runtime.backfill_log.failures(keys)

    def reset(self, wanted: Wanted | None = None) -> int:
        """Forget what failed, of the symbols wanted; return how many stretches there were."""
        wanted = wanted or Wanted()
        scope = self._scope(wanted, self._runtime.clock.now_us())
        caps = self._runtime.broker_for(Priority.BACKFILL).capabilities(self._feed(wanted))
        return self._runtime.backfill_log.reset(planner.stored_keys(scope, caps))

    def calls_a_minute(self) -> int:
        """Return the requests a minute that background work may send where nobody else does."""
        allowed = self._runtime.broker_for(Priority.BACKFILL).health().get("requests_per_minute")
        return allowed if isinstance(allowed, int) else 0

    def _feed(self, wanted: Wanted) -> str:
        return self._runtime.feed_named(wanted.feed)

    def _scope(self, wanted: Wanted, now_us: int) -> Scope:
        runtime, calendar = self._runtime, self._runtime.calendar()
        series = self._series(wanted)
        end = now_us if wanted.end is None else read_moment(wanted.end, calendar, now_us, "end")
        start = self._start(wanted, now_us)
        if start >= end:
            raise RequestError(
                f"nothing lies between {from_micros(start)} and {from_micros(end)}",
                cure="give start before end",
            )
        keep = runtime.settings.retention
        kept_from = calendar.first
        if isinstance(keep, int):
            kept_from = calendar.midnight_of(calendar.today(now_us) - timedelta(days=keep))
        return Scope(series, Span(start, end), kept_from)

    def _start(self, wanted: Wanted, now_us: int) -> int:
        calendar = self._runtime.calendar()
        if wanted.start is not None:
            return max(calendar.first, read_moment(wanted.start, calendar, now_us, "start"))
        years = self._runtime.settings.backfill_years if wanted.years is None else wanted.years
        if not 0 < years <= 50:
            raise RequestError(f"years={years!r} is not between 0 and 50", cure="give --years 2")
        day = calendar.today(now_us) - timedelta(days=round(years * 365.25))
        return max(calendar.first, calendar.midnight_of(day))

    def _series(self, wanted: Wanted) -> tuple[SeriesKey, ...]:
        """Return the series wanted; of renamed instruments those of all their symbols."""
        runtime, feed, pairs = self._runtime, self._feed(wanted), self._pairs(wanted)
        changed = runtime.identities.changed(runtime.provider, {symbol for symbol, _ in pairs})
        found: dict[SeriesKey, None] = {}
        for symbol, timeframe in pairs:
            names = [symbol]
            if symbol in changed:
                names = runtime.identities.symbols_behind(runtime.provider, [symbol])
            found |= dict.fromkeys(SeriesKey(runtime.provider, feed, s, timeframe) for s in names)
        return tuple(found)

    def _pairs(self, wanted: Wanted) -> list[tuple[str, Timeframe]]:
        """Return the symbols and timeframes wanted, as they are named."""
        runtime, feed = self._runtime, self._feed(wanted)
        timeframes = wanted.timeframes or DEFAULT_TIMEFRAMES
        pairs: list[tuple[str, Timeframe]] = []
        if wanted.symbols is not None:
            symbols = unique_symbols(wanted.symbols)
            pairs = [(s, t) for t in timeframes for s in symbols]
        else:
            leases = runtime.subscriptions.wanted()
            held = {lease.symbol: False for lease in leases}
            for lease in leases:
                held[lease.symbol] |= lease.timeframe.intraday
            if not held:
                mine = (runtime.provider, feed)
                held = {k.symbol: True for k in runtime.store.series() if k[:2] == mine}
            explicit = wanted.timeframes is not None
            pairs = [
                (symbol, t)
                for t in timeframes
                for symbol, minutes in held.items()
                if explicit or minutes or not t.intraday
            ]
        return pairs

    def _seal_edge(self, now_us: int) -> int | None:
        keep = self._runtime.settings.seal_after
        return planner.seal_edge(
            self._runtime.calendar(), now_us, keep if isinstance(keep, int) else None
        )

    def _forecast(self, whole: Price, intraday: int, limits: Limits, now_us: int) -> Forecast:
        """Return when runs of these limits, one a night, will be done."""
        calendar, settings = self._runtime.calendar(), self._runtime.settings
        begins = next_wall_time(settings.backfill_at, calendar, now_us)
        ends = next_wall_time(limits.until or NIGHT_ENDS, calendar, begins)
        nightly = Nightly(limits.max_symbols, limits.max_calls, (ends - begins) / MINUTE)
        return forecast(whole, intraday, nightly, calendar.today(ends))

    # -------------------------------------------------------------------------------- running

    def run(
        self,
        wanted: Wanted | None = None,
        limits: Limits | None = None,
        on_progress: OnProgress | None = None,
        plan: BackfillPlan | None = None,
    ) -> BackfillReport:
        """Fill what is missing, until done, stopped, or at one of the limits.

        May be ended at any moment, by `stop` or a kill: run again, it goes on from what is stored
        and asks again for one chunk at most. A series that fails is reported, recorded with the
        time of its next retry, and does not end the run.

        Parameters
        ----------
        wanted : Wanted, optional
            By default what a nightly run fills: two years of what is subscribed to.
        limits : Limits, optional
            By default those of a nightly run.
        on_progress : callable, optional
            Called after each page.
        plan : BackfillPlan, optional
            Of the same arguments, where one was just made.

        Raises
        ------
        AuthenticationError, ConfigurationError, StoreError
            At once; a retry goes on from there.
        BrokerError
            The broker answers nobody, for half a minute and longer; a retry goes on from there.
        """
        wanted, limits = wanted or Wanted(), limits or NIGHTLY
        if not self._runtime.broker_for(Priority.BACKFILL).health():
            raise ConfigurationError(
                "there is no broker to ask",
                cure="set MARKETDATA_BROKER and its keys; run: marketdata doctor",
            )
        plan = plan or self.plan(wanted, limits)
        under_way = Run(self._runtime, plan, limits, self._stop, on_progress)
        under_way.go()
        after = self.plan(replace(wanted, retry_failed=False), limits)
        return under_way.report(after)
