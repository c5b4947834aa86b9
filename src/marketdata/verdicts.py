"""Which symbols the broker says do not exist: asked when there is a reason, remembered briefly."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from marketdata.clock import Deadline
from marketdata.errors import MarketDataError, UnknownSymbolError
from marketdata.protocols import Broker

_SHOWN: Final = 8


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
    SAMPLED: Final = 3
    """Symbols that the list lacks to ask about singly: if one of them exists, the list proves
    nothing of the others."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._unknown: dict[str, float] = {}
        self._undecided: dict[str, float] = {}
        self._silent_until = 0.0
        self._listed: tuple[float, frozenset[str]] | None = None
        self._listing = threading.Lock()
        self._vouched: set[str] = set()

    def vouch(self, symbols: Iterable[str]) -> None:
        """Take symbols as existing without asking: an instrument traded under them once, whatever
        the broker lists today."""
        fresh = set(symbols) - self._vouched
        self._vouched |= fresh
        for symbol in fresh:
            self._unknown.pop(symbol, None)

    def remembered_unknown(self, symbols: Sequence[str]) -> list[str]:
        """Return those of `symbols` that were found unknown less than a minute ago."""
        if not self._unknown:
            return []
        now = time.monotonic()
        return [s for s in symbols if self._unknown.get(s, 0.0) > now]

    def of(self, symbols: Sequence[str], deadline: Deadline) -> Mapping[str, bool | None]:
        """Return for each symbol whether it exists, or None where the broker gave no verdict.

        Up to `ONE_BY_ONE` symbols cost a request each, more of them one list of all symbols, and
        a request for each of the first `SAMPLED` that it lacks: lists are not always complete.
        Where the broker has no list, again a request each.
        """
        found: dict[str, bool | None] = dict.fromkeys(self.remembered_unknown(symbols), False)
        found |= dict.fromkeys(self._vouched.intersection(symbols), True)
        rest = [s for s in symbols if s not in found]
        listed = self._list(deadline) if len(rest) > self.ONE_BY_ONE else frozenset()
        found |= dict.fromkeys(listed.intersection(rest), True)
        rest = [s for s in rest if s not in found]
        doubtful = rest[self.SAMPLED :] if listed else []
        asked = {s: self._ask(s, deadline) for s in rest[: len(rest) - len(doubtful)]}
        believed = all(known is False for known in asked.values())
        found |= asked | dict.fromkeys(doubtful, False if believed else None)
        for symbol in rest:
            if found[symbol] is False:
                self._unknown[symbol] = time.monotonic() + self.MEMORY
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

    def unknown(
        self,
        provider: str,
        names: Sequence[str],
        stored: Sequence[str],
        deadline: Deadline,
        cure: str | None = None,
    ) -> UnknownSymbolError:
        """Return the error for symbols that do not exist, with those spelt like them; `stored` are
        the symbols the store has."""
        hints = []
        for name in names[:_SHOWN]:
            nearest = self.nearest(name, stored, deadline)
            hints.append(f"{name} (did you mean {' or '.join(nearest)}?)" if nearest else name)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return UnknownSymbolError(
            f"{provider} {'do' if ' and ' in provider else 'does'} not know {', '.join(hints)}{more}",
            cure=cure,
            symbols=list(names),
        )

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
