"""A market whose past can be changed: bars corrected, withdrawn, or late to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from zlib import crc32

import numpy as np

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import Clock
from marketdata.sandbox import Action, Asset, GeneratedMarket
from marketdata.sandbox.source import Basis
from marketdata.spans import Span
from marketdata.types import CLOSE, MINUTE, SECOND, VOLUME, Bars


class ChangingMarket:
    """A `MarketSource` that answers as `GeneratedMarket` does, except where it was told otherwise.

    Parameters
    ----------
    symbols : sequence of str, optional
        What the assets endpoint lists.
    clock : Clock, optional
        Makes minutes change as they do in reality: a bar's volume is half for 30 seconds; one close
        in a hundred is corrected, and one bar in two hundred withdrawn, half an hour after the
        session.
    """

    basis: Basis = "raw"

    def __init__(self, symbols: Sequence[str] | None = None, clock: Clock | None = None) -> None:
        self._inner = GeneratedMarket(symbols=symbols)
        self._clock = clock
        self._closes: dict[tuple[str, int], float] = {}
        self._gone: set[tuple[str, int]] = set()
        self._silent: set[str] = set()

    def correct(self, symbol: str, label: int, close: float) -> None:
        """Let the bar labelled `label` close at `close` from now on."""
        self._closes[symbol, label] = close

    def withdraw(self, symbol: str, *labels: int) -> None:
        """Serve these bars no longer."""
        self._gone.update((symbol, label) for label in labels)

    def silence(self, symbol: str) -> None:
        """Serve no bar of `symbol` any more."""
        self._silent.add(symbol)

    def _as_of_now(self, symbol: str, bars: Bars) -> Bars:
        if self._clock is None or not len(bars):
            return bars
        now = self._clock.now_us()
        calendar = calendar_for(EXCHANGE, now)
        session = calendar.session_index(bars.timestamp)
        settled = now >= calendar.extended_close[session] + 30 * MINUTE
        number = bars.timestamp // MINUTE + crc32(symbol.encode())
        values = bars.values.copy()
        values[VOLUME, now < bars.timestamp + MINUTE + 30 * SECOND] *= 0.5
        values[CLOSE, (number % 97 == 0) & ~settled] += 0.01
        return Bars(bars.timestamp, values).take(~((number % 193 == 1) & settled))

    def _changed(self, symbol: str, bars: Bars) -> Bars:
        if symbol in self._silent:
            return Bars.empty()
        labels = bars.timestamp.tolist()
        mine = {at: self._closes.get((symbol, label)) for at, label in enumerate(labels)}
        if any(close is not None for close in mine.values()):
            values = bars.values.copy()
            for at, close in mine.items():
                if close is not None:
                    values[CLOSE, at] = close
            bars = Bars(bars.timestamp, values)
        keep = np.array([(symbol, label) not in self._gone for label in labels], np.bool_)
        return bars if keep.all() else bars.take(keep)

    def assets(self) -> Sequence[Asset]:
        return self._inner.assets()

    def asset(self, symbol: str) -> Asset | None:
        return self._inner.asset(symbol)

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        for bars in self._inner.minutes(symbol, span, feed, newest_first=newest_first):
            yield self._changed(symbol, self._as_of_now(symbol, bars))

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        return self._changed(symbol, self._inner.days(symbol, span, feed))

    def actions(self, symbol: str) -> Sequence[Action]:
        return self._inner.actions(symbol)

    def symbols_with_actions(self) -> Sequence[str]:
        return self._inner.symbols_with_actions()

    def first_day(self, symbol: str) -> date:
        return self._inner.first_day(symbol)
