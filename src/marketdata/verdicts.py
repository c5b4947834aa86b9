"""Which symbols the broker says do not exist: asked when there is a reason, remembered briefly."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from marketdata.clock import Deadline
from marketdata.errors import MarketDataError
from marketdata.protocols import Broker


class Verdicts:
    """Remembers for a short while which symbols the broker says do not exist; never an error."""

    MEMORY: Final = 60.0
    """Seconds a symbol stays unknown without being asked again."""
    LIST_MEMORY: Final = 3600.0
    """Seconds the broker's list of symbols serves."""
    PATIENCE: Final = 5.0
    """Seconds one question may take; one that took half of it without an answer is not followed
    by others for a minute."""
    ONE_BY_ONE: Final = 20
    """Most symbols to ask about singly: for more, one list costs less."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._unknown: dict[str, float] = {}
        self._undecided: dict[str, float] = {}
        self._silent_until = 0.0
        self._listed: tuple[float, frozenset[str]] | None = None
        self._listing = threading.Lock()

    def remembered_unknown(self, symbols: Sequence[str]) -> list[str]:
        """Return those of `symbols` that were found unknown less than a minute ago."""
        if not self._unknown:
            return []
        now = time.monotonic()
        return [s for s in symbols if self._unknown.get(s, 0.0) > now]

    def of(self, symbols: Sequence[str], deadline: Deadline) -> Mapping[str, bool | None]:
        """Return for each symbol whether it exists, or None where the broker gave no verdict.

        Up to `ONE_BY_ONE` symbols cost a request each, more of them one list of all symbols;
        where the broker has no list, again a request each.
        """
        found: dict[str, bool | None] = dict.fromkeys(self.remembered_unknown(symbols), False)
        rest = [s for s in symbols if s not in found]
        listed = self._list(deadline) if len(rest) > self.ONE_BY_ONE else frozenset()
        for symbol in rest:
            known = symbol in listed if listed else self._ask(symbol, deadline)
            if known is False:
                self._unknown[symbol] = time.monotonic() + self.MEMORY
            found[symbol] = known
        return found

    def _ask(self, symbol: str, deadline: Deadline) -> bool | None:
        """Ask about one symbol, briefly; no verdict is remembered too, for a verdict is a
        courtesy and must not use up the caller's time or budget."""
        began = time.monotonic()
        if max(self._silent_until, self._undecided.get(symbol, 0.0)) > began:
            return None
        known = self._broker.verdict(symbol, Deadline(deadline.cap(self.PATIENCE))).known
        if known is None:
            ended = time.monotonic()
            self._undecided[symbol] = ended + self.MEMORY
            if ended - began > self.PATIENCE / 2:
                self._silent_until = ended + self.MEMORY
        return known

    def nearest(self, symbol: str, known: Sequence[str], deadline: Deadline) -> list[str]:
        """Return up to three symbols spelt like `symbol`, from the store and the broker's list."""
        names = sorted({*known, *self._list(deadline)} - {symbol})
        return difflib.get_close_matches(symbol, names, n=3, cutoff=0.6)

    def _list(self, deadline: Deadline) -> frozenset[str]:
        """Return the broker's list of symbols; empty where it has none, or gives none now."""
        with self._listing:
            if self._listed is None or self._listed[0] < time.monotonic():
                try:
                    listed = frozenset(self._broker.symbols(deadline))
                    kept = self.LIST_MEMORY
                except MarketDataError:
                    listed, kept = frozenset(), self.MEMORY
                self._listed = (time.monotonic() + kept, listed)
            return self._listed[1]
