"""Each newly closed bar once, in order: `Follower` reads what is new, and sleeps until more is due.

::

    due by the calendar --+
    notice of the daemon -+-> read what closed since -> what is later than the last one given,
    Redis was away -------+   (through the tiers)       a frame for each bar time

Nothing depends on a notice: bars are due by calendar and clock, and a read fetches what the daemon
has not stored. Where notices come, a read waits a little for the daemon's, so that it need not ask
the broker. What was given is remembered as the last label of each symbol, so that no restart of
anything else makes a bar come twice.
"""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from marketdata import caching, frames, planning
from marketdata.answers import Answer
from marketdata.applied import action_version
from marketdata.arrivals import by_time, new_bars, next_due, piece_end
from marketdata.clock import Clock, Deadline
from marketdata.errors import DataUnavailableError, MarketDataError
from marketdata.origin import provenance_of
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.subscriptions import default_owner
from marketdata.types import SECOND, Bars

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.arguments import Request
    from marketdata.cache.notices import ClosedNotice, Ear
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.following")

AGAIN_BARS: Final = 10
"""The newest bars that each read looks at again: one that came late is given if its symbol has
given nothing later."""
PATIENCE: Final = 15 * SECOND
"""Market time for which a due bar is left to the daemon, once its notices have been heard."""
_LOOK: Final = 30.0
_FIXED_LOOK: Final = 0.05
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 30.0


# ------------------------------------------------------------------------------------- waiting


class Waiter(Protocol):
    """How a follower lets time pass; replaced in tests."""

    def until(self, moment_us: int) -> None:
        """Return at this market time, or as soon as `wake` is called, also before the call."""
        ...

    def pause(self, seconds: float) -> None:
        """Let real time pass, after an error."""
        ...

    def wake(self) -> None:
        """End `until` and `pause`; from any thread."""
        ...


class ClockWaiter:
    """Waits on a market clock: all night at once on one that runs, by looking again on a fixed one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._woken = threading.Event()

    def until(self, moment_us: int) -> None:
        while (left := moment_us - self._clock.now_us()) > 0:
            speed = self._clock.speed
            # A machine may sleep or be set right: its time is looked at now and then.
            real = min(left / SECOND / speed, _LOOK) if speed > 0 else _FIXED_LOOK
            if self._woken.wait(real):
                break
        self._woken.clear()

    def pause(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()


class _Heard:
    """What the daemon's notices said since the last look."""

    def __init__(self, query: BarsQuery, bases: frozenset[str], waiter: Waiter) -> None:
        self._series = (query.provider, query.feed)
        self._bases = bases
        self._waiter = waiter
        self._anything = False
        self.until_us = -(2**62)
        """Up to where bars were said to be stored."""

    def hear(self, notice: ClosedNotice | None) -> None:
        if notice is not None:
            if (notice.provider, notice.feed) != self._series:
                return
            if notice.timeframe not in self._bases:
                return
            self.until_us = max(self.until_us, notice.until_us)
        self._anything = True
        self._waiter.wake()

    def anything(self) -> bool:
        """Return whether anything was said, once."""
        told, self._anything = self._anything, False
        return told


# ----------------------------------------------------------------------------------- following


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the frames of one read are made."""

    request: Request
    zone: str | None
    dated: Callable[[Bars], Bars]
    runtime: Runtime
    version: str

    def frame(self, answer: Answer, label: int, bars: Mapping[str, Bars]) -> pd.DataFrame:
        """Return the frame of one bar time, with the provenance of these bars alone."""
        query = self.request.query
        window = Window(label, label + query.timeframe.step, None, explicit_end=True)
        shaped = bars if self.zone is not None else {s: self.dated(b) for s, b in bars.items()}
        if self.request.single:
            frame = frames.single_frame(shaped[query.symbols[0]], self.zone)
        else:
            frame = frames.multi_frame(shaped, self.zone)
        frame.attrs[frames.ATTRS_KEY] = provenance_of(
            replace(self.request, query=replace(query, window=window)),
            Answer({s: answer.series[s] for s in bars}, answer.trace),
            action_version=self.version,
            delayed=self.runtime.delayed(query.feed),
            forming=False,
            simulated=self.runtime.simulated,
        )
        return frame


class FollowProgress(NamedTuple):
    """How far a `Follower` has come.

    Attributes
    ----------
    frames : int
        Frames returned so far.
    until_us : int
        Bars labelled before this instant (microseconds UTC) have been returned by then.
    """

    frames: int
    until_us: int


class Follower:
    """The iterator of `Client.follow`: each newly closed bar once, in order.

    Iterate it, or call `next`; `close` it, use it in ``with``, or let go of it. For one thread;
    `close` may come from any.
    """

    def __init__(
        self,
        request: Request,
        zone: str | None,
        since: int | None,
        *,
        timeout: float,
        connect: Callable[[], Runtime],
        read: Callable[[Request, Deadline], Answer],
        dated: Callable[[Bars], Bars],
        waiter: Waiter,
    ) -> None:
        self._request = request
        self._zone = zone
        self._timeout = timeout
        self._connect = connect
        self._read_bars = read
        self._dated = dated
        self._waiter = waiter
        self._runtime = connect()
        query = request.query
        caps = self._runtime.broker.capabilities(query.feed)
        bases = frozenset(option.base.value for option in caps.bases[query.timeframe])
        self._heard = _Heard(query, bases, waiter)
        self._live = since is None
        if since is None:
            since = self._closed(request.now_us)
        else:
            since = max(since, caps.earliest, self._runtime.calendar().first)
        self._given = dict.fromkeys(query.symbols, since - 1)
        self._from = since
        self._edge = since
        self._attended = False
        self._patient_until: int | None = None
        self._failures = 0
        self._steps: Iterator[tuple[int, dict[str, Bars]]] = iter(())
        self._shape: Callable[[int, dict[str, Bars]], pd.DataFrame] | None = None
        self._pending: tuple[int, dict[str, Bars]] | None = None
        self._progress = FollowProgress(0, since)
        self._closed_by_user = False
        self._ear: Ear | None = None
        self._holder = ""
        self._finalizer: Any = None
        self._join(self._runtime)

    # ------------------------------------------------------------------------- the iterator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pd.DataFrame:
        """Wait for the next closed bar and return its frame.

        Raises
        ------
        MarketDataError
            What a retry cannot cure; the transient ones are retried. Calling again goes on where
            this stopped.
        """
        while not self._closed_by_user:
            step = self._pending
            if step is not None:
                assert self._shape is not None
                frame = self._shape(*step)
                self._pending = next(self._steps, None)
                self._progressed(self._progress.frames + 1)
                return frame
            try:
                self._advance()
            except MarketDataError as error:
                self._wait_out(error)
        raise StopIteration

    def close(self) -> None:
        """End the iteration, also one that waits, and the subscription. Idempotent."""
        self._closed_by_user = True
        self._steps, self._pending = iter(()), None
        self._waiter.wake()
        if self._finalizer is not None and self._finalizer.detach():
            self._ear = None
            self._runtime.leases.release(self._holder)

    @property
    def progress(self) -> FollowProgress:
        """How far it has come; may be read from any thread.

        Quiet times move it on too: where `frames` is the number of frames its caller has dealt
        with, every bar labelled before `until_us` has been dealt with, and no other will come but
        what the broker publishes late.
        """
        return self._progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        query = self._request.query
        return f"<following {len(query.symbols)} x {query.timeframe}>"

    # --------------------------------------------------------------------------- the stack

    def _join(self, runtime: Runtime) -> None:
        """Listen and subscribe on this stack: a closed client and a forked child make a new one."""
        query = self._request.query
        self._runtime = runtime
        self._ear = runtime.listener.listen(self._heard.hear)
        self._holder = runtime.leases.new_holder()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, runtime.leases.forget, self._holder)
        self._finalizer.atexit = False
        runtime.leases.hold(
            default_owner(), query.symbols, query.timeframe, holder=self._holder, wait=False
        )

    def _closed(self, now_us: int) -> int:
        """Return the label before which every bar is closed and settled at `now_us`."""
        runtime, query = self._runtime, self._request.query
        caps = runtime.broker.capabilities(query.feed)
        base = caps.bases[query.timeframe][0].base
        until_now = replace(query, window=Window(None, now_us, None))
        return caching.newest_end(until_now, base, caps, runtime.calendar(), now_us)

    # ---------------------------------------------------------------------------- one round

    def _advance(self) -> None:
        """Read what has closed since the last read; where nothing has, wait until something may."""
        runtime = self._connect()
        if runtime is not self._runtime:
            self._join(runtime)
        now_us = runtime.clock.now_us()
        closed = self._closed(now_us)
        told = self._heard.anything()
        if self._heard.until_us >= self._edge:
            self._attended = True  # also where we were faster than the daemon this time
        if closed > self._edge:
            if self._leaves_it_to_the_daemon(closed, now_us):
                assert self._patient_until is not None
                self._waiter.until(self._patient_until)
                return
        elif not told or not self._live:
            self._wait(now_us)
            return
        self._read(now_us, closed)

    def _wait(self, now_us: int) -> None:
        runtime, query = self._runtime, self._request.query
        due = next_due(
            query.timeframe,
            query.session,
            runtime.broker.capabilities(query.feed),
            runtime.calendar(),
            now_us,
        )
        self._waiter.until(max(due, now_us + SECOND // 2))

    def _leaves_it_to_the_daemon(self, closed: int, now_us: int) -> bool:
        """Whether a due bar is still to be waited for, because a daemon is about to say that it is
        stored."""
        if self._heard.until_us >= closed:
            self._attended = True
        elif self._attended and self._live:
            if self._patient_until is None:
                self._patient_until = now_us + PATIENCE
            if now_us < self._patient_until:
                return True
            self._attended = False
        self._patient_until = None
        return False

    def _read(self, now_us: int, closed: int) -> None:
        query = self._request.query
        calendar = self._runtime.calendar()
        end = min(piece_end(query, self._from, calendar), now_us)
        window = Window(self._from, end, None, explicit_end=end < now_us)
        request = replace(self._request, query=replace(query, window=window), now_us=now_us)
        deadline = Deadline(self._timeout)
        answer = self._read_bars(request, deadline)
        adjuster = self._runtime.adjuster
        if request.adjustment == "raw":
            adjuster.warn_of_splits(request.query, answer, deadline)
        applied = adjuster.adjust(request.query, answer, now_us, deadline, request.adjustment)
        fresh = new_bars({s: a.bars for s, a in answer.series.items()}, self._given)
        for symbol, bars in fresh.items():
            self._given[symbol] = int(bars.timestamp[-1])
        self._failures = 0
        if end < min(now_us, closed):
            self._from = end
        else:
            self._live = True
            # The broker may have taught us meanwhile that its newest bars come later.
            self._edge = max(self._edge, min(closed, self._closed(now_us)))
            recent = planning.limit_start(
                query.timeframe, self._edge, AGAIN_BARS, query.session, calendar
            )
            self._from = max(self._from, recent)
        shaped = _Shape(request, self._zone, self._dated, self._runtime, action_version(applied))
        self._shape = lambda label, bars: shaped.frame(answer, label, bars)
        self._steps = by_time(fresh)
        self._pending = next(self._steps, None)
        self._progressed(self._progress.frames)

    def _progressed(self, frames: int) -> None:
        """Say how far we have come, as one value: others read it meanwhile."""
        until = self._given_until() if self._pending is None else self._pending[0]
        self._progress = FollowProgress(frames, max(until, self._progress.until_us))

    def _given_until(self) -> int:
        """Return the label before which every bar has been given."""
        return self._edge if self._live else max(self._edge, self._from)

    # ------------------------------------------------------------------------------- errors

    def _wait_out(self, error: MarketDataError) -> None:
        """Pause before the next try; raise what trying again cannot cure."""
        # Without a broker the missing minute is another process' to store.
        awaited = isinstance(error, DataUnavailableError) and self._runtime.source.kind == "none"
        if not error.transient and not (awaited and self._live):
            raise error
        self._failures += 1
        pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** min(self._failures, 10))
        pause *= random.uniform(0.5, 1)
        told = error.facts.get("retry_after")
        if isinstance(told, int | float):
            pause = max(pause, min(told, 2 * _RETRY_MOST))
        level = logging.WARNING if self._failures == 5 else logging.INFO
        log.log(level, "trying again in %.1f s: %s", pause, error)
        self._waiter.pause(pause)
