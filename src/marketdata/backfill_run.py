"""One run of a backfill: chunk after chunk, within its limits, whatever single series do."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from marketdata import backfill_plan as planner
from marketdata import planning
from marketdata.backfill_plan import Chunk
from marketdata.backfill_price import next_wall_time
from marketdata.backfill_report import (
    BackfillPlan,
    BackfillProgress,
    BackfillReport,
    Ended,
    Failed,
    Filled,
    Limits,
    OnProgress,
)
from marketdata.backfill_walk import ChunkWalk, Tally, Walked
from marketdata.clock import Deadline, from_micros
from marketdata.errors import (
    AuthenticationError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    ConfigurationError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
    StoreError,
)
from marketdata.protocols import BarsRequest, Priority
from marketdata.spans import Span, intersect, normalise
from marketdata.types import DAY, SeriesKey, Timeframe
from marketdata.verdicts import Verdicts

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.backfill")

_MOST_OUTAGES: Final = 6
"""Waits in a row for a broker that answers nobody, before the run gives up."""
_LONGEST_WAIT: Final = 60.0
_SPLIT_INTO: Final = 16
_OTHERS_WAIT: Final = 0.5
_WITNESS_TIMEOUT: Final = 10.0
_LANES: Final = 3
_PLENTY: Final = 600
"""Calls a minute that one walk after the other does not use up."""
_FEW_SESSIONS: Final = 2
_MANY_QUIET: Final = 0.1


def lanes_of(limits: Limits, calls_a_minute: int) -> int:
    """Return how many walks go on at once: several where the broker lets us, because most of a
    request's time is its way there and back; one where calls are counted out."""
    return _LANES if limits.max_calls is None and calls_a_minute >= _PLENTY else 1


class Run:
    """One run under way."""

    def __init__(
        self,
        runtime: Runtime,
        plan: BackfillPlan,
        limits: Limits,
        stop: threading.Event,
        on_progress: OnProgress | None,
    ) -> None:
        self._runtime = runtime
        self._plan = plan
        self._limits = limits
        self._stop = stop
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._broker = runtime.broker_for(Priority.BACKFILL)
        self._sent_before = self._sent()
        now_us, calendar = runtime.clock.now_us(), runtime.calendar()
        self._until_us: int | None = None
        if limits.until is not None:
            self._until_us = next_wall_time(limits.until, calendar, now_us)
        self._walk = ChunkWalk(
            runtime.adopting,
            runtime.store,
            runtime.cache,
            self._broker,
            Verdicts(self._broker),
            runtime.clock,
            runtime.calendar,
            lambda: self._limit() is None,
            lambda: self._limit() in ("stopped", "until"),
        )
        self._tallies: dict[SeriesKey, Tally] = {}
        self._failed: dict[SeriesKey, Failed] = {}
        self._troubled: set[SeriesKey] = set()
        self._rejected: Counter[str] = Counter()
        self._bars = 0
        self._planned_done = 0
        self._outages = 0
        self._seconds = 0.0
        self._ended: Ended | None = None

    # -------------------------------------------------------------------------------- limits

    def _sent(self) -> int:
        sent = self._broker.health().get("requests_sent")
        return sent if isinstance(sent, int) else 0

    @property
    def _calls(self) -> int:
        return self._sent() - self._sent_before

    def _limit(self) -> Ended | None:
        """Return which limit is reached, if one is."""
        if self._stop.is_set():
            return "stopped"
        if self._until_us is not None and self._runtime.clock.now_us() >= self._until_us:
            return "until"
        most = self._limits.max_calls
        if most is not None and self._calls >= most:
            return "max-calls"
        return None

    # ------------------------------------------------------------------------------- the loop

    def go(self) -> None:
        """Work off the plan's chunks."""
        waiting = deque(self._plan.chunks)
        while waiting and self._ended is None:
            self._ended = self._limit()
            if self._ended is not None:
                break
            chunk = waiting.popleft()
            wanted = [k for k in chunk.fetch.keys if k not in self._troubled]
            if wanted:
                again = self._one(self._of(chunk, wanted))
                self._requeue(waiting, again)
            else:
                self._planned_done += chunk.bars
        self._seconds = time.monotonic() - self._began

    def _requeue(self, waiting: deque[Chunk], again: Sequence[Chunk]) -> None:
        """Put parts of a chunk back: behind the next one, so that a part that cannot be fetched
        is not asked for over and over."""
        following = [waiting.popleft()] if waiting and len(again) == 1 else []
        waiting.extendleft(reversed([*following, *again]))

    def _of(self, chunk: Chunk, keys: Sequence[SeriesKey]) -> Chunk:
        if len(keys) == len(chunk.fetch.keys):
            return chunk
        caps = self._broker.capabilities(keys[0].feed)
        lanes = lanes_of(self._limits, self._plan.calls_a_minute)
        return planner.narrowed(chunk, keys, caps, self._runtime.calendar(), lanes)

    def _one(self, chunk: Chunk) -> list[Chunk]:
        """Fetch one chunk; return what of it is to be tried again."""
        before = self._planned_done
        walked = self._walk.walk(chunk, self._show)
        self._take(walked)
        if walked.cut:
            self._ended = self._limit() or "stopped"
            return []
        if walked.error is None:
            self._planned_done = before + chunk.bars
            return self._elsewhere(walked)
        return [*self._after_error(walked, walked.error), *self._elsewhere(walked)]

    def _take(self, walked: Walked) -> None:
        """Count what was stored."""
        for key, tally in [*walked.done.items(), *walked.partly.items()]:
            held = self._tallies.setdefault(key, Tally())
            held.merge(tally)
        self._bars += walked.bars
        self._rejected.update(walked.rejected)
        span = walked.chunk.fetch.span
        fetched = [*walked.done, *walked.already]
        if fetched and self._plan.failed_before.intersection(fetched):
            self._runtime.backfill_log.fetched(fetched, span)
        if walked.pages:
            self._outages = 0
        for key in walked.unknown:
            self._fail_symbol(key.symbol, f"{key.provider} knows no symbol {key.symbol}")
        for key, words in walked.refused.items():
            self._fail_symbol(key.symbol, f"{key.provider} refuses the symbol: {words}")

    def _elsewhere(self, walked: Walked) -> list[Chunk]:
        """Return what another backfill was fetching: to be looked at again in a moment."""
        if not walked.elsewhere:
            return []
        self._stop.wait(_OTHERS_WAIT)
        return [self._of(walked.chunk, walked.elsewhere)]

    def _fail_symbol(self, symbol: str, error: str) -> None:
        """Give up all that was to be fetched of a symbol there is not."""
        for key, spans in self._plan.audit.missing.items():
            if key.symbol == symbol and key not in self._failed:
                self._fail(key, Span(spans[0].start, spans[-1].end), error)

    def _fail(self, key: SeriesKey, span: Span, error: str) -> None:
        now_us = self._runtime.clock.now_us()
        failure = self._runtime.backfill_log.failed(key, span, error, now_us, planner.next_retry)
        self._troubled.add(key)
        self._failed[key] = Failed(key, failure.error, failure.retry_us)
        log.info("%s: %s; next try %s", key, error, from_micros(failure.retry_us).isoformat())

    # ---------------------------------------------------------------------------- after errors

    def _after_error(self, walked: Walked, error: MarketDataError) -> list[Chunk]:
        """Return the parts of a failed chunk that are to be tried again; raise what concerns all."""
        if isinstance(error, AuthenticationError | ConfigurationError | StoreError):
            raise self._with_cure(error)
        left = walked.left
        if not left:
            return []
        rest = self._of(walked.chunk, left)
        if isinstance(error, DataUnavailableError) and "settle_delay" in error.facts:
            return self._shorter(rest)
        if isinstance(error, RateLimitError):
            return self._wait_out(rest, error)
        silent = isinstance(error, BrokerUnavailableError | BrokerTimeoutError)
        if silent and not walked.pages and not self._answers_others(left, error):
            return self._wait_out(rest, error)
        if len(left) > 1:
            return self._apart(rest)
        self._fail(left[0], rest.fetch.span, f"{type(error).__name__}: {error.message}")
        return []

    def _answers_others(self, failed: Sequence[SeriesKey], error: MarketDataError) -> bool:
        """Whether the broker answers about series that it has answered before, so that it is these
        that fail and not the broker; where there are none, whether it knows a symbol of them."""
        good = next((k for k in self._tallies if k not in failed), None)
        for _ in range(2):
            if error.facts.get("circuit_open"):
                self._stop.wait(_retry_after(error))
            try:
                if good is None:
                    verdict = self._broker.verdict(failed[0].symbol, Deadline(_WITNESS_TIMEOUT))
                    return verdict.known is not None
                now_us = self._runtime.clock.now_us()
                span = Span(now_us - 8 * DAY, now_us - 7 * DAY)
                request = BarsRequest((good.symbol,), Timeframe.DAY_1, span, good.feed)
                return any(True for _ in self._broker.pages(request, Deadline(_WITNESS_TIMEOUT)))
            except MarketDataError as failure:
                error = failure
        return False

    def _shorter(self, chunk: Chunk) -> list[Chunk]:
        """Return `chunk` up to where the broker, as it has just said, gives this key data."""
        caps = self._broker.capabilities(chunk.fetch.keys[0].feed)
        now_us, calendar = self._runtime.clock.now_us(), self._runtime.calendar()
        edge = planning.frontier(calendar, chunk.fetch.base, caps, now_us)
        span = Span(chunk.fetch.span.start, min(chunk.fetch.span.end, edge))
        if span.empty or span == chunk.fetch.span:
            return []
        return [replace(chunk, fetch=replace(chunk.fetch, span=span))]

    def _apart(self, chunk: Chunk) -> list[Chunk]:
        """Return `chunk` in parts, so that the series that fails comes to stand alone."""
        keys = chunk.fetch.keys
        size = 1 if len(keys) <= _SPLIT_INTO else -(-len(keys) // _SPLIT_INTO)
        log.info("taking %d series apart", len(keys))
        return [self._of(chunk, keys[at : at + size]) for at in range(0, len(keys), size)]

    def _wait_out(self, chunk: Chunk, error: MarketDataError) -> list[Chunk]:
        """Wait for a broker that answers nobody; raise its error when that lasts."""
        self._outages += 1
        if self._outages > _MOST_OUTAGES:
            raise self._with_cure(error)
        seconds = _retry_after(error)
        log.warning("%s; waiting %.0f s", error.message, seconds)
        self._stop.wait(seconds)
        return [chunk]

    def _with_cure(self, error: MarketDataError) -> MarketDataError:
        error.facts.update(bars_kept=self._bars, calls=self._calls)
        again = "run it again to go on from there"
        error.cure = f"{error.cure}; {again}" if error.cure else again
        return error

    # -------------------------------------------------------------------------------- showing

    def _show(self, walked: Walked) -> None:
        if self._on_progress is None:
            return
        chunk = walked.chunk
        keys = chunk.fetch.keys
        finished = len(walked.done) + len(walked.already) + len(walked.unknown)
        done = self._planned_done + chunk.bars * finished // len(keys)
        month = from_micros(chunk.fetch.span.end - 1).astimezone(self._runtime.calendar().zone)
        names = keys[0].symbol if len(keys) == 1 else f"{len(keys)} symbols"
        when = f" {month:%Y-%m}" if chunk.fetch.base.intraday else ""
        self._on_progress(
            BackfillProgress(
                f"{chunk.fetch.base}{when} {names}",
                min(1.0, done / max(self._plan.this_run.bars, 1)),
                self._calls,
                self._bars + walked.bars,
                time.monotonic() - self._began,
                len(self._failed),
            )
        )

    # ------------------------------------------------------------------------------ reporting

    def report(self, after: BackfillPlan) -> BackfillReport:
        """Return what was done, against what the store holds `after` it."""
        left = after.this_run.plus(after.later)
        ended = self._ended or ("max-symbols" if self._plan.later.chunks else "complete")
        if ended != "stopped" and not left.chunks:
            ended = "complete"  # the limit was reached with the last page
        gaps = self._gaps_left(after) if self._ended is None else ()
        # What failed before and waits for its time is as little there as what failed now.
        waiting = (gap.failure for gap in after.audit.waiting if gap.failure is not None)
        failed = {f.key: Failed(f.key, f.error, f.retry_us) for f in waiting} | self._failed
        return BackfillReport(
            ended=ended,
            filled=tuple(_filled(k, t) for k, t in sorted(self._tallies.items())),
            failed=tuple(failed[k] for k in sorted(failed)),
            gaps_left=gaps,
            rejected=dict(self._rejected),
            calls=self._calls,
            planned_calls=self._plan.this_run.calls,
            bars=self._bars,
            seconds=self._seconds,
            left=left,
            forecast=after.forecast,
        )

    def _gaps_left(self, after: BackfillPlan) -> tuple[SeriesKey, ...]:
        """Return the series that this run was to complete and that have gaps there all the same."""
        planned: dict[SeriesKey, list[Span]] = {}
        for chunk in self._plan.chunks:
            for key in chunk.fetch.keys:
                planned.setdefault(key, []).append(chunk.fetch.span)
        return tuple(
            key
            for key in sorted(planned.keys() - self._failed.keys())
            if intersect(list(after.audit.missing.get(key, ())), normalise(planned[key]))
        )


def _filled(key: SeriesKey, tally: Tally) -> Filled:
    """Return what was stored of a series, held against the calendar."""
    expected = tally.expected_sessions()
    quiet = expected - tally.sessions
    doubt = "" if tally.bars else "no bars"
    if quiet > max(_FEW_SESSIONS, _MANY_QUIET * expected):
        doubt = f"{quiet} of {expected} sessions without a bar"
    return Filled(key, tally.bars, tally.sessions, expected, doubt)


def _retry_after(error: MarketDataError) -> float:
    wait = error.facts.get("retry_after")
    return min(float(wait) if isinstance(wait, int | float) else 5.0, _LONGEST_WAIT)
