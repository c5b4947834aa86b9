"""Holds stored bars against the broker: reads some of them, or all, once more and compares.

A sample is some whole sessions (for days: months) of some series, drawn anew for each date, so
that night after night other ones are looked at. Only what the broker's correction period is over
for is compared: what differs there is drift, and not a correction that is still to come. What
could not be asked is a failure of this check and never counts as drift.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata import backfill_plan as planner
from marketdata import planning
from marketdata.backfill_pages import WhileWanted
from marketdata.clock import Deadline
from marketdata.drift import Comparison, Unchecked, VerifyReport
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    ConfigurationError,
    MarketDataError,
    RequestError,
    StoreError,
)
from marketdata.planning import Fetch
from marketdata.protocols import BarsRequest, Capabilities, Commit, Priority, ReadRequest
from marketdata.quality import gate, withdrawn_labels
from marketdata.ranges import Moment, read_moment
from marketdata.spans import Span, intersect, subtract
from marketdata.types import (
    Bars,
    Int64s,
    SeriesKey,
    Timeframe,
    unique_symbols,
)

if TYPE_CHECKING:
    from marketdata.action_steps import Doubt
    from marketdata.calendars import TradingCalendar
    from marketdata.protocols import SeriesState
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.verify")

SAMPLE: Final = 20
"""Sessions that are compared unless another number is asked for."""
_MOST_FAILURES: Final = 3
"""Walks that fail before the check gives up, where none succeeds."""
_DOUBTED_AT_ONCE: Final = 50
"""Symbols whose corporate actions are looked at together: each one's days are read."""

OnCompared = Callable[[int, int], None]
"""Takes how many stretches have been compared, of how many."""


def verify(
    runtime: Runtime,
    *,
    symbols: Sequence[str] | None = None,
    timeframes: Sequence[Timeframe] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    feed: str | None = None,
    sample: int | None = SAMPLE,
    correct: bool = False,
    stop: threading.Event | None = None,
    on_compared: OnCompared | None = None,
) -> VerifyReport:
    """Read stored bars from the broker again and compare.

    Parameters
    ----------
    symbols : sequence of str, optional
        By default all that are stored.
    timeframes : sequence of Timeframe, optional
        Of stored series; by default all.
    start, end : optional
        Bars labelled in ``[start, end)``, as for `Client.get_bars`; by default all.
    sample : int or None
        How many sessions (for days: months) of random series; None compares everything.
    correct : bool
        Store what differs as the broker has it, and take out what it no longer has. What was
        compared is final from then on, and may be sealed.
    stop : Event, optional
        Looked at between requests.

    Raises
    ------
    AuthenticationError, ConfigurationError, StoreError
        At once; a retry helps where the error is transient.
    BrokerError
        Several requests in a row failed.
    RequestError
        Symbols or range that cannot be; a retry does not help.
    """
    began = time.monotonic()
    feed = runtime.feed_named(feed)
    if not runtime.broker_for(Priority.VERIFY).health():
        raise ConfigurationError(
            "there is no broker to ask",
            cure="set MARKETDATA_BROKER and its keys; run: marketdata doctor",
        )
    keys = _stored(runtime, feed, symbols, timeframes)
    caps = runtime.broker_for(Priority.VERIFY).capabilities(feed)
    span = _window(runtime, start, end)
    known = runtime.store.states(keys)
    comparable = {
        key: spans for key in keys if (spans := _comparable(runtime, caps, key, known[key], span))
    }
    if sample is None:
        chunks = planner.chunks(comparable, caps, runtime.calendar(), None)
        fetches = [chunk.fetch for chunk in chunks]
    else:
        today = runtime.calendar().today(runtime.clock.now_us())
        drawn = random.Random(f"{today} {runtime.provider} {feed}")
        fetches = _sampled(comparable, sample, drawn, runtime.calendar())
    check = _Check(runtime, caps, correct, stop or threading.Event(), on_compared)
    check.go(fetches)
    report = check.report(time.monotonic() - began)
    report = replace(report, doubts=_doubts(runtime, feed, check.compared))
    return _with_past(runtime, feed, symbols, timeframes, span, report)


def _doubts(runtime: Runtime, feed: str, symbols: Sequence[str]) -> tuple[Doubt, ...]:
    """Return what adjusted reads of these symbols are refused for, by what is stored."""
    now_us, deadline = runtime.clock.now_us(), Deadline(runtime.settings.timeout)
    return tuple(
        doubt
        for some in batched(symbols, _DOUBTED_AT_ONCE)
        for doubt in runtime.adjuster.doubts(runtime.provider, feed, some, now_us, deadline)
    )


def _with_past(
    runtime: Runtime,
    feed: str,
    symbols: Sequence[str] | None,
    timeframes: Sequence[Timeframe] | None,
    span: Span,
    report: VerifyReport,
) -> VerifyReport:
    """Return a report with what is known of earlier changes."""
    past, provider = runtime.store.past, runtime.provider
    names = None if symbols is None else unique_symbols(symbols)

    def asked(timeframe: str) -> bool:
        return timeframes is None or timeframe in {each.value for each in timeframes}

    counts = [c for c in past.counts() if c[:2] == (provider, feed) and asked(c.timeframe)]
    trails = past.lengths(provider, feed, names, span)
    tombstones = past.tombstones(provider, feed, names, span)
    return replace(
        report,
        counts=tuple(counts),
        trails=tuple(each for each in trails if asked(each.key.timeframe.value)),
        tombstones=tuple(each for each in tombstones if asked(each.key.timeframe.value)),
    )


def _stored(
    runtime: Runtime,
    feed: str,
    symbols: Sequence[str] | None,
    timeframes: Sequence[Timeframe] | None,
) -> list[SeriesKey]:
    names = None if symbols is None else unique_symbols(symbols)
    mine = (runtime.provider, feed)
    found = [k for k in runtime.store.series(names) if k[:2] == mine]
    absent = set(names or ()) - {k.symbol for k in found}
    if absent:
        raise RequestError(
            f"nothing is stored of {', '.join(sorted(absent)[:8])}",
            cure="marketdata status lists what is stored",
        )
    return [k for k in found if timeframes is None or k.timeframe in timeframes]


def _window(runtime: Runtime, start: Moment | None, end: Moment | None) -> Span:
    calendar, now_us = runtime.calendar(), runtime.clock.now_us()
    since = calendar.first if start is None else read_moment(start, calendar, now_us, "start")
    until = now_us if end is None else read_moment(end, calendar, now_us, "end")
    if since >= until:
        raise RequestError("start is not before end", cure="exchange --start and --end")
    return Span(since, until)


def _comparable(
    runtime: Runtime, caps: Capabilities, key: SeriesKey, state: SeriesState, span: Span
) -> list[Span]:
    """Return what of a series is covered, past corrections, and still given by the broker."""
    now_us, calendar = runtime.clock.now_us(), runtime.calendar()
    final = planning.settling(calendar, key.timeframe, now_us).final_until
    options = [o for o in caps.bases[key.timeframe] if o.base is key.timeframe]
    ages = [o.max_age for o in options]
    oldest = caps.earliest
    if ages and None not in ages:
        oldest = max(oldest, now_us - max(age for age in ages if age is not None))
    settled = Span(max(span.start, oldest), min(span.end, final))
    if settled.empty or not options:
        return []
    hours = planning.stored_hours(key.timeframe)
    found = []
    for part in intersect(state.coverage, [settled]):
        if trading := calendar.trading_spans(part, hours):
            found.append(Span(trading[0].start, trading[-1].end))
    return found


def _sampled(
    comparable: Mapping[SeriesKey, Sequence[Span]],
    count: int,
    drawn: random.Random,
    calendar: TradingCalendar,
) -> list[Fetch]:
    """Draw whole sessions, for days months, of random series; each once at most."""
    keys = sorted(comparable)
    chosen: dict[tuple[SeriesKey, Span], None] = {}
    for _ in range(4 * count if keys else 0):
        key = drawn.choice(keys)
        hours = planning.stored_hours(key.timeframe)
        parts = comparable[key]
        sessions = [len(calendar.trading_spans(part, hours)) for part in parts]
        at = drawn.randrange(sum(sessions))
        part = next(p for p, n in zip(parts, np.cumsum(sessions), strict=True) if at < n)
        session = drawn.choice(calendar.trading_spans(part, hours))
        if not key.timeframe.intraday:
            session = _month_of(session, part, calendar)
        chosen[key, session] = None
        if len(chosen) == count:
            break
    return [Fetch(key.timeframe, span, (key,), again=True) for key, span in chosen]


def _month_of(session: Span, part: Span, calendar: TradingCalendar) -> Span:
    day = calendar.today(session.start)
    first = calendar.midnight_of(day.replace(day=1))
    after = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1, day=1)
    days = calendar.trading_spans(Span(first, calendar.midnight_of(after)).clip(part), "daily")
    return Span(days[0].start, days[-1].end)


class _Check:
    """One comparison under way."""

    def __init__(
        self,
        runtime: Runtime,
        caps: Capabilities,
        correct: bool,
        stop: threading.Event,
        on_compared: OnCompared | None,
    ) -> None:
        self._runtime = runtime
        self._broker = runtime.broker_for(Priority.VERIFY)
        self._caps = caps
        self._correct = correct
        self._stop = stop
        self._on_compared = on_compared
        self._sent_before = self._sent()
        self._found = Comparison()
        self._failed: list[Unchecked] = []
        self._suspicious: dict[SeriesKey, None] = {}
        self._corrected = self._withdrawn = self._failures = 0
        self._stopped = False

    def _sent(self) -> int:
        sent = self._broker.health().get("requests_sent")
        return sent if isinstance(sent, int) else 0

    def go(self, fetches: Sequence[Fetch]) -> None:
        """Compare all of `fetches`, unless stopped."""
        waiting = deque((fetch, True) for fetch in fetches)
        over = 0
        while waiting and not self._stopped:
            fetch, first = waiting.popleft()
            if self._stop.is_set() or not self._try(fetch, may_wait=first):
                if self._stop.is_set():
                    self._stopped = True
                    return
                waiting.append((fetch, False))
                continue
            over += 1
            if self._on_compared is not None:
                self._on_compared(over, len(fetches))

    def _try(self, fetch: Fetch, *, may_wait: bool) -> bool:
        """Compare one stretch; return whether that is over, one way or another: False where the
        broker answers nobody for the moment, once that moment has passed."""
        try:
            self._compare(fetch)
        except (AuthenticationError, ConfigurationError, StoreError):
            raise
        except MarketDataError as error:
            if self._stop.is_set():
                return False
            nobody = bool(error.facts.get("circuit_open"))
            self._failures += 1
            if not self._found.series and (nobody or self._failures >= _MOST_FAILURES):
                raise
            if nobody and may_wait:
                wait = error.facts.get("retry_after")
                self._stop.wait(float(wait) if isinstance(wait, int | float) else 5.0)
                return False
            self._failed += [Unchecked(key, fetch.span, error) for key in fetch.keys]
            log.warning("%s not compared: %s", fetch.keys[0], error)
        return True

    # ----------------------------------------------------------------------------- comparing

    def _compare(self, fetch: Fetch) -> None:
        observed = self._runtime.clock.now_us()
        given = self._given(fetch)
        if given is None:
            self._stopped = True
            return
        stored = self._runtime.store.read([ReadRequest(key, fetch.span) for key in fetch.keys])
        compared = {key: (stored[key][1], given[key.symbol]) for key in fetch.keys}
        commits = []
        gone = self._gone(compared)
        for key, (ours, theirs) in compared.items():
            wrong = self._found.add(key, fetch.span, ours, theirs)
            settles = bool(subtract([fetch.span], stored[key][0].final))
            if self._correct and (len(wrong) or key in gone or settles):
                labels = gone.get(key)
                commits.append(self._commit(key, fetch.span, wrong, labels, observed))
                self._corrected += len(wrong)
                self._withdrawn += 0 if labels is None else len(labels)
        if commits:
            self._runtime.adopting.commit(commits, before_commit=self._runtime.cache.raise_floor)

    def _given(self, fetch: Fetch) -> dict[str, Bars] | None:
        """Return the broker's bars by symbol, gated; None where the walk was stopped.

        Raises
        ------
        MarketDataError
            The walk failed, or did not prove the whole stretch of every symbol.
        """
        calendar = self._runtime.calendar()
        symbols = tuple(sorted(key.symbol for key in fetch.keys))
        parts: dict[str, list[Bars]] = {s: [] for s in symbols}
        proven = dict.fromkeys(symbols, fetch.span.start)
        request = BarsRequest(symbols, fetch.base, fetch.span, fetch.keys[0].feed)
        for page in self._broker.pages(request, WhileWanted(self._stop)):
            for symbol, bars in page.bars.items():
                clean = gate(
                    bars, span=fetch.span, timeframe=fetch.base, calendar=calendar, now_us=None
                )
                parts.setdefault(symbol, []).append(clean.bars)
            for symbol, span in page.proven.items():
                proven[symbol] = span.end
            for symbol, words in page.refused.items():
                raise BrokerResponseError(f"{self._broker.provider} refuses {symbol}: {words}")
            if self._stop.is_set():
                return None
        short = [s for s in symbols if proven[s] < fetch.span.end]
        if short:
            raise BrokerResponseError(f"the answer for {', '.join(short[:5])} is not complete")
        return {s: Bars.concat(parts[s]) for s in symbols}

    def _gone(self, compared: Mapping[SeriesKey, tuple[Bars, Bars]]) -> dict[SeriesKey, Int64s]:
        """Return what the broker no longer has, as far as that is believed."""
        found = withdrawn_labels(
            {key: ours for key, (ours, _) in compared.items()},
            {key: theirs.timestamp for key, (_, theirs) in compared.items()},
            self._runtime.calendar(),
        )
        self._suspicious.update(dict.fromkeys(found.suspicious))
        return dict(found.sure)

    def _commit(
        self, key: SeriesKey, span: Span, bars: Bars, gone: Int64s | None, observed: int
    ) -> Commit:
        settling = planning.settling(self._runtime.calendar(), key.timeframe, observed)
        return Commit(
            key=key,
            bars=bars,
            covered=span,
            observed_us=observed,
            settled_until=settling.settled_until,
            final_until=settling.final_until,
            withdrawn=gone,
        )

    @property
    def compared(self) -> list[str]:
        """The symbols of which something was compared, ascending."""
        return sorted({key.symbol for key in self._found.series})

    def report(self, seconds: float) -> VerifyReport:
        """Return what was found."""
        found = self._found
        return VerifyReport(
            series=len(found.series),
            stretches=found.stretches,
            bars=found.bars,
            fields=found.fields(),
            drifts=tuple(found.drifts),
            missing_here=sum(d.missing_here for d in found.drifts),
            missing_there=sum(d.missing_there for d in found.drifts),
            corrected=self._corrected,
            withdrawn=self._withdrawn,
            suspicious=tuple(self._suspicious),
            failed=tuple(self._failed),
            stopped=self._stopped,
            calls=self._sent() - self._sent_before,
            seconds=seconds,
        )
