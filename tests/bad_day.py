"""A trading day on simulated time with a broker at its worst, and what everybody saw of it.

Budget, pauses, breakers and retries run on the market's time, as does the sandbox; time-outs of
requests and the deadlines of reads are real, and short. The market's time moves when the test says
so, when the live cycle sleeps, and slowly by itself, so that nobody waits for it in vain.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from marketdata.brokers import alpaca_client
from marketdata.client import Client
from marketdata.clock import FixedClock, from_micros, to_micros
from marketdata.errors import BrokerError, MarketDataError
from marketdata.protocols import Broker, Priority
from marketdata.spans import Span
from marketdata.store.budget import PostgresBudget
from marketdata.types import MINUTE, SECOND, Int64s
from marketdata.wiring import Runtime
from tests.changing_market import ChangingMarket

TIMEOUT = 0.2
"""Seconds of real time after which a request that is not answered is given up."""
PATIENCE = 3.0
"""Seconds of real time that a read may take."""
_PASSIVE = 0.2
_BEAT = 0.005
_PER_BEAT = timedelta(milliseconds=50)


class MarketTime:
    """The market's clock as a source of seconds and of sleep."""

    def __init__(self, clock: FixedClock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._over = threading.Event()

    def seconds(self) -> float:
        return self.clock.now_us() / SECOND

    def moment(self) -> datetime:
        return from_micros(self.clock.now_us())

    def reach(self, moment: datetime) -> None:
        """Move on to `moment`, never back."""
        with self._lock:
            self.clock.set(max(moment, self.moment()))

    def sleep_and_move(self, seconds: float) -> None:
        """Sleep as who moves the time: the live cycle, for which everything waits."""
        self.reach(self.moment() + timedelta(seconds=seconds))

    def sleep(self, seconds: float) -> None:
        """Sleep until others have moved the time; not for long, if they do not."""
        end, give_up = self.seconds() + seconds, time.monotonic() + _PASSIVE
        while self.seconds() < end and time.monotonic() < give_up:
            if self._over.wait(0.002):
                return

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let time pass slowly by itself meanwhile."""

        def run() -> None:
            while not self._over.wait(_BEAT):
                self.reach(self.moment() + _PER_BEAT)

        thread = threading.Thread(target=run, name="market-time")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


class Stop(threading.Event):
    """A stop signal whose waits are of market time."""

    def __init__(self, market: MarketTime) -> None:
        super().__init__()
        self._market = market

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None and not self.is_set():
            self._market.sleep(timeout)
        return self.is_set()


class SimulatedSeconds:
    """What the seam to the broker takes for the machine's clock: reset headers are read by it."""

    def __init__(self, market: MarketTime) -> None:
        self._market = market

    def __call__(self) -> FixedClock:
        return self._market.clock


def put_on_market_time(runtime: Runtime, market: MarketTime) -> None:
    """Let a stack's budget, and the brokers of every priority, live on the market's time."""
    runtime.store._budget = PostgresBudget(runtime.store.database, market.moment)
    for priority in Priority:
        broker = runtime.broker_for(priority)
        moves = priority is Priority.LIVE
        _hurry(broker, market, market.sleep_and_move if moves else market.sleep)


def _hurry(broker: Broker, market: MarketTime, sleep: Any) -> None:
    known: Any = broker
    known._transport._connect = known._transport._read = TIMEOUT
    for endpoint in (known._data, known._corporate, known._trading):
        caller = endpoint.caller
        caller._sleep = caller.gate._sleep = sleep
        caller.gate._monotonic = caller.breaker._monotonic = market.seconds


def use_simulated_seconds(monkeypatch: Any, market: MarketTime) -> None:
    monkeypatch.setattr(alpaca_client, "SystemClock", SimulatedSeconds(market))


# --------------------------------------------------------------------------------- the readers


class Truth:
    """What the market says of its bars, at any time of the day."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._clock = FixedClock(datetime(2000, 1, 1, tzinfo=UTC))
        self._market = ChangingMarket(symbols=symbols, clock=self._clock)
        self._lock = threading.Lock()

    def minutes(self, symbol: str, span: Span, at: int) -> pd.DataFrame:
        """Return the market's regular bars of `span` as it gave them at `at`."""
        with self._lock:
            self._clock.set(from_micros(at))
            parts = [b for b in self._market.minutes(symbol, span, "sip") if len(b)]
        if not parts:
            return pd.DataFrame()
        labels: Int64s = np.concatenate([b.timestamp for b in parts])
        index = pd.DatetimeIndex(labels.astype("datetime64[us]"), tz="UTC")
        return pd.DataFrame(np.concatenate([b.values for b in parts], axis=1).T, index=index)


@dataclass
class Seen:
    """What a reader saw."""

    answers: int = 0
    bars: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Reader:
    """Somebody who asks at random for bars, in a thread, and holds each answer against the truth."""

    def __init__(
        self,
        client: Client,
        symbols: Sequence[str],
        market: MarketTime,
        truth: Truth,
        seed: int,
        since: int,
    ) -> None:
        self._client = client
        self._symbols = list(symbols)
        self._market = market
        self._truth = truth
        self._random = random.Random(seed)
        self._since = since
        self.seen = Seen()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0.02, 0.12)):
            symbol = self._random.choice(self._symbols)
            limit = self._random.choice([1, 5, 30, 200])
            try:
                self.read(symbol, limit)
            except Exception as error:
                self.seen.wrong.append(f"{symbol}: {type(error).__name__}: {error}")

    def read(self, symbol: str, limit: int) -> MarketDataError | None:
        """Ask once; note what is wrong with the answer, return the error."""
        before, began = self._market.clock.now_us(), time.monotonic()
        try:
            frame = self._client.get_bars(symbol, "1min", limit=limit, timeout=PATIENCE)
        except MarketDataError as error:
            if not isinstance(error, BrokerError) or not error.transient:
                self.seen.wrong.append(f"{symbol} at {self._at(before)}: {error!r}")
            self.seen.errors[type(error).__name__] += 1
            return error
        finally:
            self.seen.slowest = max(self.seen.slowest, time.monotonic() - began)
        after = self._market.clock.now_us()
        self.seen.answers += 1
        self.seen.bars += len(frame)
        if self.seen.answers % 3 == 0 or len(frame) < limit:
            problem = self._problem(symbol, limit, frame, before, after)
            if problem:
                self.seen.wrong.append(f"{symbol} limit {limit} at {self._at(before)}: {problem}")
        return None

    def _at(self, micros: int) -> str:
        return from_micros(micros).isoformat()

    def _problem(
        self, symbol: str, limit: int, frame: pd.DataFrame, before: int, after: int
    ) -> str | None:
        """Return what is wrong with an answer that was made between two moments."""
        if len(frame) != limit:
            return f"{len(frame)} bars"
        first = to_micros(frame.index[0].to_pydatetime())
        last = to_micros(frame.index[-1].to_pydatetime())
        if last + MINUTE + 3 * SECOND > after:
            return f"a bar that had not closed: {frame.index[-1]}"
        whole = Span(first, max(after, first + 1))
        early = self._versions(symbol, whole, after)
        due = [t for t in early[-1].index if _micros(t) + MINUTE + 3 * SECOND <= before]
        regular = [t for t in due if _regular(t)]
        if regular and regular[-1] > frame.index[-1]:
            return f"lacks {regular[-1]}, ends at {frame.index[-1]}"
        allowed = [t for t in early[-1].index if _regular(t) and t <= frame.index[-1]]
        if list(frame.index) != allowed:
            differ = sorted(set(frame.index) ^ set(allowed))[:3]
            return f"not the market's labels: {differ}"
        good = np.zeros(len(frame), np.bool_)
        for version in early:
            there = version.reindex(frame.index).to_numpy()
            good |= np.asarray((there == frame.to_numpy()).all(axis=1))
        if not good.all():
            return f"not the market's values: {frame[~good].head(2)}"
        return None

    def _versions(self, symbol: str, span: Span, after: int) -> list[pd.DataFrame]:
        """Return the bars as they were in their first half minute, and as they are."""
        bars = self._truth.minutes(symbol, span, after)
        halved = bars.copy()
        halved.iloc[:, 4] *= 0.5
        whole = self._truth.minutes(symbol, span, after + MINUTE)
        whole_halved = whole.copy()
        whole_halved.iloc[:, 4] *= 0.5
        return [halved, whole, whole_halved, bars]


def _micros(moment: Any) -> int:
    return to_micros(moment.to_pydatetime())


def _regular(moment: Any) -> bool:
    local = moment.tz_convert("America/New_York")
    return bool(9 * 60 + 30 <= local.hour * 60 + local.minute < 16 * 60)
