"""Finds symbols by symbol, company name or near spelling, over what is stored and what is listed."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from marketdata.clock import Deadline, from_micros
from marketdata.errors import MarketDataError
from marketdata.identity import ALWAYS, Lineage, Piece
from marketdata.protocols import Broker, KnownAsset
from marketdata.spans import Span
from marketdata.types import DAY

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.store.holdings import SymbolMetadata
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.identities")

LISTED_AGAIN: Final = DAY
"""Market time after which the provider's list of assets is asked for again."""
_PATIENCE: Final = 20.0
_WORDS: Final = re.compile(r"[^\W_]+")
_CLOSE: Final = 0.7
_SHORT_WORD: Final = 3
_NEAR, _FURTHEST = 7, 8


@dataclass(frozen=True, slots=True)
class FoundSymbol:
    """One instrument, by today's symbol."""

    symbol: str
    name: str | None
    exchange: str | None
    status: str
    """``active``, ``inactive`` or ``delisted``; ``unknown`` where the provider lists nothing."""
    former: tuple[str, ...]
    """Symbols under which it traded before, the newest first."""
    first: datetime | None
    """Open of the first stored bar of any timeframe."""
    last: datetime | None


@dataclass(slots=True)
class _Known:
    """What is known to search in."""

    assets: Mapping[str, KnownAsset]
    stored: Mapping[str, SymbolMetadata]
    lineages: Sequence[Lineage]
    now_us: int
    own: set[str] = field(default_factory=set)
    """Symbols that are no renamed, ended or re-used instrument's."""

    def __post_init__(self) -> None:
        pieces = {p.symbol for lineage in self.lineages for p in lineage.pieces}
        self.own = {*self.assets, *self.stored} - pieces

    def every(self) -> Iterable[FoundSymbol]:
        for lineage in self.lineages:
            yield self._of(lineage)
        for symbol in self.own:
            yield self._of(Lineage((Piece(symbol, ALWAYS),)))

    def _of(self, lineage: Lineage) -> FoundSymbol:
        pieces = lineage.within(Span(ALWAYS.start, self.now_us))
        symbol = lineage.symbol_at(self.now_us)
        asset = self.assets.get(symbol) or self._listed_before(pieces)
        stored = self.stored.get(symbol)
        over = lineage.end is not None and lineage.end <= self.now_us
        ends = [self._ends(piece) for piece in pieces]
        former = dict.fromkeys(p.symbol for p in reversed(pieces) if p.symbol != symbol)
        return FoundSymbol(
            symbol,
            asset.name if asset and asset.name else (stored.name if stored else None),
            asset.exchange if asset else None,
            "delisted" if over else (asset.status if asset else "unknown"),
            tuple(former),
            min((first for first, _ in ends if first), default=None),
            max((last for _, last in ends if last), default=None),
        )

    def _listed_before(self, pieces: Sequence[Piece]) -> KnownAsset | None:
        """Return what the provider listed under the symbol before today's, if that was while it was
        this instrument's: the list may be older than the rename."""
        for piece in reversed(pieces[:-1]):
            listed = self.assets.get(piece.symbol)
            if listed is not None:
                return listed if listed.observed_us < piece.span.end else None
        return None

    def _ends(self, piece: Piece) -> tuple[datetime | None, datetime | None]:
        """Return the first and the last stored bar under one symbol, as far as they are of the
        instrument: the same symbol may have been another's before and after."""
        stored = self.stored.get(piece.symbol)
        if stored is None or stored.earliest_data_date is None:
            return None, None
        first, last = stored.earliest_data_date, stored.latest_data_date
        if piece.span.start != ALWAYS.start:
            first = max(first, from_micros(piece.span.start))
        if piece.span.end != ALWAYS.end and last is not None:
            last = min(last, from_micros(piece.span.end))
        return (first, last) if last is not None and first <= last else (None, None)


def find(
    runtime: Runtime, text: str, limit: int, active: bool | None, deadline: Deadline
) -> list[FoundSymbol]:
    """Return what `text` may mean, the best first; at most `limit`.

    The provider's list is asked for where it is a day old; where that fails, what is stored is
    searched.
    """
    refresh(runtime, deadline)
    provider = runtime.provider
    known = _Known(
        {asset.symbol: asset for asset in runtime.identity_store.assets(provider)},
        {row.symbol: row for row in runtime.store.metadata()},
        list(runtime.identities.history(provider).instruments()),
        runtime.clock.now_us(),
    )
    return ranked(known.every(), text, limit, active)


def refresh(runtime: Runtime, deadline: Deadline, broker: Broker | None = None) -> bool:
    """Ask for the provider's whole list where it is a day old, as a courtesy; return whether it was
    asked for and came.

    Parameters
    ----------
    broker : Broker, optional
        Whom to ask; by default whom reads ask.
    """
    provider, now_us = runtime.provider, runtime.clock.now_us()
    checked = runtime.identity_store.assets_checked(provider)
    if checked is not None and now_us - checked < LISTED_AGAIN:
        return False
    try:
        listed = (broker or runtime.broker).assets(Deadline(deadline.cap(_PATIENCE)))
        if not listed:
            return False
        runtime.identity_store.record_assets(provider, listed, now_us, complete=True)
        runtime.identities.forget(provider)
        runtime.identities.rebuild(provider)
    except MarketDataError as error:
        log.info("assets are as last listed: %s", error)
        return False
    return True


def ranked(
    every: Iterable[FoundSymbol], text: str, limit: int, active: bool | None
) -> list[FoundSymbol]:
    """Return those that match `text`, the best first: the symbol itself, a former one, symbols and
    names that begin so, names that hold it, and what is spelt like it."""
    wanted = text.strip().upper().replace("-", ".").replace("/", ".")
    words = [w.lower() for w in _WORDS.findall(text)]
    found: list[tuple[tuple[object, ...], FoundSymbol]] = []
    for each in every:
        trades = each.status in ("active", "unknown")
        if active is not None and trades is not active:
            continue
        rank = _rank(each, wanted, words)
        if rank < _FURTHEST:
            # What is stored comes first among equals, then what trades, then the shorter symbol.
            place = (rank, each.first is None, not trades, len(each.symbol), each.symbol)
            found.append((place, each))
    found.sort(key=lambda pair: pair[0])
    return [each for _, each in found[:limit]]


def _rank(each: FoundSymbol, wanted: str, words: Sequence[str]) -> int:
    """Return how well an instrument matches, 0 the best; `_FURTHEST` is not at all."""
    name = [w.lower() for w in _WORDS.findall(each.name or "")]
    whole = " ".join(name)
    matches = (
        each.symbol == wanted,
        wanted in each.former,
        bool(wanted) and each.symbol.startswith(wanted),
        bool(words) and name[: len(words)] == list(words),
        bool(words) and all(any(n.startswith(w) for n in name) for w in words),
        bool(wanted) and any(old.startswith(wanted) for old in each.former),
        bool(words) and all(w in whole for w in words),
    )
    if any(matches):
        return matches.index(True)
    near = any(_alike(wanted, symbol) for symbol in (each.symbol, *each.former))
    long = [w for w in words if len(w) > _SHORT_WORD]
    return _NEAR if near or any(_alike(w, n) for w in long for n in name) else _FURTHEST


def _alike(one: str, other: str) -> bool:
    if not one or abs(len(one) - len(other)) > 2 or len(one) < 2:
        return False
    matcher = difflib.SequenceMatcher(None, one, other)
    return matcher.real_quick_ratio() >= _CLOSE and matcher.ratio() >= _CLOSE


def frame_of(found: Sequence[FoundSymbol]) -> pd.DataFrame:
    """Return the found symbols as a frame, one row each."""
    import pandas as pd

    def texts(values: Iterable[str | None]) -> pd.api.extensions.ExtensionArray:
        return pd.array(list(values), dtype="str")

    return pd.DataFrame(
        {
            "symbol": texts(f.symbol for f in found),
            "name": texts(f.name for f in found),
            "exchange": texts(f.exchange for f in found),
            "status": texts(f.status for f in found),
            "former": texts(" ".join(f.former) for f in found),
            "first_bar": _moments(f.first for f in found),
            "last_bar": _moments(f.last for f in found),
        }
    )


def _moments(values: Iterable[datetime | None]) -> pd.DatetimeIndex:
    import pandas as pd

    moments = pd.Series(list(values), dtype="datetime64[us, UTC]")
    return pd.DatetimeIndex(moments)
