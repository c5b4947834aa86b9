"""Whatever happens around a live series, in whatever order: what is served is what is stored."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from marketdata.clock import from_micros
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.types import Bars, SeriesKey, Timeframe
from tests.integration.test_indicator_updates import correct, fetched, fresh, near, stored_latest
from tests.stack import Stack, runtime, tiers

SYMBOLS = ["AAPL", "UGA", "WMT"]
"""Busy, sparse, and with a split in its history."""
WANTED = [(symbol, timeframe, 0) for symbol in SYMBOLS for timeframe in (Timeframe.MIN_1,)] + [
    ("AAPL", Timeframe.MIN_5, 0),
    ("WMT", Timeframe.MIN_15, 0),
]


class World:
    """A stack, its daemon's updater, and what can happen to them."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack = stack
        self.chance = random.Random(seed)
        self.last = stack.clock.now_us()
        for symbol, timeframe, _ in WANTED:
            stack.client.get_bars(symbol, timeframe, limit=900, adjustment="split")
        self.served = 0
        self.reborn()

    def reborn(self) -> None:
        self.updater = IndicatorUpdater(runtime(self.stack.client), wanted=lambda: WANTED)

    def minutes_pass(self) -> None:
        """A cycle of the daemon, a few minutes after the last one."""
        self.stack.clock.advance(minutes=self.chance.choice([1, 1, 1, 1, 2, 7]))
        self._read(SYMBOLS, self.chance.random() < 0.7)
        self.check_stored()

    def a_quiet_cycle(self) -> None:
        self._read(SYMBOLS, told=True)

    def somebody_reads(self) -> None:
        """Another process brings the newest minutes into the store: the daemon never sees them."""
        self.stack.clock.advance(minutes=self.chance.choice([1, 3]))
        fetched(self.stack, [self.chance.choice(SYMBOLS)], 4)

    def a_bar_is_corrected(self) -> None:
        symbol = self.chance.choice(SYMBOLS)
        keys = [SeriesKey("sandbox", "sip", symbol, Timeframe.MIN_1)]
        before = self._revisions(keys)
        found = correct(self.stack, symbol, -self.chance.choice([1, 2, 3, 20, 90]))
        if self.chance.random() < 0.6:
            self._hand_on(found, before)

    def the_daemon_begins_again(self) -> None:
        self.reborn()

    def redis_is_emptied(self) -> None:
        self.stack.flush_redis()

    def the_session_ends(self) -> None:
        """On to the next morning, early."""
        now = from_micros(self.stack.clock.now_us())
        day = now + timedelta(days=3 if now.weekday() == 4 else 1)
        self.stack.clock.set(day.replace(hour=14, minute=self.chance.randrange(5, 50)))
        self._read(SYMBOLS, told=False)

    def _read(self, symbols: list[str], told: bool) -> None:
        keys = [SeriesKey("sandbox", "sip", symbol, Timeframe.MIN_1) for symbol in symbols]
        before = self._revisions(keys)
        passed = (self.stack.clock.now_us() - self.last) // 60_000_000
        self.last = self.stack.clock.now_us()
        self._hand_on(fetched(self.stack, symbols, passed + 3), before if told else None)

    def _revisions(self, keys: list[SeriesKey]) -> dict[SeriesKey, int]:
        states = runtime(self.stack.client).store.states(keys)
        return {key: states[key].revision for key in keys}

    def _hand_on(self, bars: dict[SeriesKey, Bars], before: dict[SeriesKey, int] | None) -> None:
        if before is None:
            self.updater.update(bars)
            return
        after = self._revisions(list(bars))
        self.updater.update(bars, {key: (before[key], after[key]) for key in bars})

    def check_stored(self) -> None:
        """After a cycle PostgreSQL holds the newest values."""
        for symbol, timeframe, _ in WANTED:
            anew = fresh(self.stack, symbol, timeframe, 1)
            stamp, values = stored_latest(self.stack, symbol, timeframe)
            assert stamp == anew.index[-1]
            near(np.array([values[name] for name in anew.columns]), anew.iloc[-1].to_numpy())

    def check(self) -> None:
        """What Redis serves, and PostgreSQL holds, is what a fresh computation gives."""
        for symbol, timeframe, _ in WANTED:
            limit = self.chance.choice([1, 5, 40])
            get = self.stack.client.get_indicators
            frame = get(symbol, None, timeframe, limit=limit)
            self.served += tiers(frame) == "redis:1"
            anew = get(symbol, None, timeframe, limit=limit, end="now")
            pd.testing.assert_index_equal(frame.index, anew.index)
            near(frame.to_numpy(), anew.to_numpy())


@pytest.mark.parametrize("seed", range(2))
def test_what_is_served_is_what_is_stored(make_stack: Callable[..., Stack], seed: int) -> None:
    world = World(make_stack(at="2024-03-14T13:00:30-04:00"), seed)
    events: list[tuple[Callable[[], None], int]] = [
        (world.minutes_pass, 10),
        (world.a_quiet_cycle, 2),
        (world.somebody_reads, 2),
        (world.a_bar_is_corrected, 3),
        (world.the_daemon_begins_again, 1),
        (world.redis_is_emptied, 1),
        (world.the_session_ends, 1),
    ]
    calls, weights = zip(*events, strict=True)
    for _ in range(18):
        event = world.chance.choices(calls, weights)[0]
        event()
        world.check()
    assert world.served > 15
    assert world.updater.counts["unadjusted"] == 0
