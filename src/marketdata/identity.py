"""Which instrument a ticker means, and under which symbols that instrument traded when. Pure.

A ticker is held by one instrument after the other. Identity changes cut its time: at a name change
the old symbol ends and the new one begins, at a merger or delisting a symbol ends. Between two cuts
a symbol belongs to one instrument, or to nobody; a name change joins the time before it under the
old symbol with the time after it under the new one. So a rename resolves in both directions::

    FB  -------- name change --- vacant ------ listed anew ---------
                      |                        another company
    META (others')    +-------- META ------------------------------

What is contradictory is never guessed at:

- Of several ends of one symbol within `SAME_EVENT` of each other, with nobody taking it up between,
  a name change counts before anything else, and else the last one: providers report one end as a
  merger and as a delisting, days apart.
- Where a symbol is renamed to two others on one day, or two symbols are renamed to one, nothing is
  joined: each symbol keeps its own time.
- On one day, A to B and B to C are taken at once: B's holder goes to C, A's to B.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from marketdata.corporate_actions import IDENTITY_CHANGES, ActionKind, CorporateAction
from marketdata.spans import Span
from marketdata.types import DAY

ALWAYS: Final = Span(-(2**62), 2**62)
"""From before any bar to after every one."""
SAME_EVENT: Final = 30 * DAY
"""Ends of one symbol nearer to each other than this are reports of one end."""


class Piece(NamedTuple):
    """A stretch of time in which an instrument trades under one symbol."""

    symbol: str
    span: Span
    """Half-open; exchange midnights, open ends those of `ALWAYS`."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """One instrument: its symbols in the order of time."""

    pieces: tuple[Piece, ...]
    """Ascending, each beginning where the one before ends."""
    ended: ActionKind | None = None
    """Why the last piece ends, if it does: nothing trades after that."""

    @property
    def end(self) -> int | None:
        """The first instant without a bar of this instrument, if there is one."""
        return self.pieces[-1].span.end if self.ended is not None else None

    def symbol_at(self, moment_us: int) -> str:
        """Return the symbol at a moment: the last one after the end, the first one before."""
        found = self.pieces[0].symbol
        for piece in self.pieces[1:]:
            if piece.span.start <= moment_us:
                found = piece.symbol
        return found

    def within(self, span: Span) -> list[Piece]:
        """Return what of the pieces lies inside `span`, ascending."""
        clipped = (Piece(p.symbol, p.span.clip(span)) for p in self.pieces)
        return [p for p in clipped if not p.span.empty]


@dataclass(slots=True)
class _Ticker:
    """The cuts in one symbol's time."""

    ends: dict[int, str | None] = field(default_factory=dict)
    """By instant, the symbol under which the holder goes on; None where he does not."""
    why: dict[int, ActionKind] = field(default_factory=dict)
    starts: dict[int, str | None] = field(default_factory=dict)
    """By instant, the symbol from which the holder comes; None where that is contradictory."""
    cuts: list[int] = field(default_factory=list)

    def span(self, number: int) -> Span:
        start = self.cuts[number - 1] if number else ALWAYS.start
        end = self.cuts[number] if number < len(self.cuts) else ALWAYS.end
        return Span(start, end)


class TickerHistory:
    """What the identity changes of one provider say of every symbol. Immutable.

    Parameters
    ----------
    changes : iterable of CorporateAction
        In any order; other kinds are passed over.
    listed : mapping
        Symbols that the provider lists as active, each with the market time of its saying so: who
        is listed after its ticker was given up is another company.
    """

    def __init__(
        self, changes: Iterable[CorporateAction], listed: Mapping[str, int] | None = None
    ) -> None:
        self._listed = dict(listed or {})
        self._tickers = _tickers(c for c in changes if c.kind in IDENTITY_CHANGES)
        self.symbols: frozenset[str] = frozenset(self._tickers)
        """Every symbol with an identity change; all others mean the same at all times."""
        self._known: dict[tuple[str, int], Lineage] = {}

    def lineage(self, symbol: str, at_us: int) -> Lineage:
        """Return the instrument that `symbol` means at `at_us`: its holder then, or the last one
        before where nobody holds it; a symbol without changes is an instrument of its own."""
        ticker = self._tickers.get(symbol)
        if ticker is None:
            return Lineage((Piece(symbol, ALWAYS),))
        number = bisect_right(ticker.cuts, at_us)
        while number and not self._held(symbol, number):
            number -= 1
        found = self._known.get((symbol, number))
        if found is None:
            found = self._known[symbol, number] = self._chain(symbol, number)
        return found

    def is_listed_anew(self, symbol: str, at_us: int) -> bool | None:
        """Return whether somebody else holds a symbol that its holder gave up before `at_us`; None
        where the provider has not said, False also where nobody gave it up."""
        ticker = self._tickers.get(symbol)
        if ticker is None:
            return False
        number = bisect_right(ticker.cuts, at_us)
        if not number or ticker.cuts[number - 1] in ticker.starts:
            return False
        return True if self._held(symbol, number) else None

    def instruments(self) -> Iterator[Lineage]:
        """Yield every instrument that has an identity change, by its first symbol and time."""
        for symbol in sorted(self._tickers):
            ticker = self._tickers[symbol]
            for number in range(len(ticker.cuts) + 1):
                start = ticker.span(number).start
                first_hand = ticker.starts.get(start) is None
                if first_hand and self._held(symbol, number) and self._traded(symbol, number):
                    yield self._chain(symbol, number)

    # ----------------------------------------------------------------------------- inside

    def _held(self, symbol: str, number: int) -> bool:
        """Whether somebody holds the symbol between these two cuts."""
        ticker = self._tickers[symbol]
        span = ticker.span(number)
        if not number or span.start in ticker.starts or span.end in ticker.ends:
            return True
        seen = self._listed.get(symbol)
        return number == len(ticker.cuts) and seen is not None and seen >= span.start + DAY

    def _traded(self, symbol: str, number: int) -> bool:
        """Whether anything is known of a holder: not so before the first one that was renamed to
        the symbol."""
        ticker = self._tickers[symbol]
        return bool(number) or ticker.cuts[0] in ticker.ends

    def _chain(self, symbol: str, number: int) -> Lineage:
        """Join what name changes link; each step goes on in time, so that it ends."""
        name, at = symbol, number
        while True:
            start = self._tickers[name].span(at).start
            before = self._tickers[name].starts.get(start)
            if before is None:
                break
            name, at = before, self._tickers[before].cuts.index(start)
        pieces: list[Piece] = []
        while True:
            ticker = self._tickers[name]
            span = ticker.span(at)
            pieces.append(Piece(name, span))
            after = ticker.ends.get(span.end)
            if after is None:
                # Another symbol's holder may take this one over without its own end being told.
                why = ticker.why.get(span.end)
                if why is None and span.end != ALWAYS.end:
                    why = ActionKind.DELISTING
                return Lineage(tuple(pieces), why)
            name, at = after, self._tickers[after].cuts.index(span.end) + 1


# ------------------------------------------------------------------------------- from the records


def _tickers(changes: Iterable[CorporateAction]) -> dict[str, _Ticker]:
    """Return the cuts of every symbol, with links only where both sides agree on them."""
    told = sorted(
        {_Told(c.ex_date, c.symbol, c.kind, _target(c)) for c in changes if _is_change(c)}
    )
    kept = _one_of_each(told)
    tickers: dict[str, _Ticker] = {}
    for each in kept:
        ticker = tickers.setdefault(each.symbol, _Ticker())
        goes_to = each.target or None
        if each.moment in ticker.ends and ticker.ends[each.moment] != goes_to:
            goes_to = None
        ticker.ends[each.moment] = goes_to
        ticker.why[each.moment] = each.kind
        if each.target:
            taken = tickers.setdefault(each.target, _Ticker())
            comes_from: str | None = each.symbol
            if each.moment in taken.starts and taken.starts[each.moment] != each.symbol:
                comes_from = None
            taken.starts[each.moment] = comes_from
    for symbol, ticker in tickers.items():
        _unlink(symbol, ticker, tickers)
        ticker.cuts = sorted({*ticker.ends, *ticker.starts})
    return tickers


class _Told(NamedTuple):
    """One identity change in brief, ordered by time."""

    moment: int
    symbol: str
    kind: ActionKind
    target: str
    """The new name; empty where there is none."""


def _target(change: CorporateAction) -> str:
    return change.other_symbol or "" if change.kind is ActionKind.NAME_CHANGE else ""


def _is_change(change: CorporateAction) -> bool:
    return not (change.kind is ActionKind.NAME_CHANGE and change.other_symbol == change.symbol)


def _one_of_each(told: Sequence[_Told]) -> list[_Told]:
    """Leave out what reports an end of a symbol once more."""
    taken_up: dict[str, list[int]] = {}
    by_symbol: dict[str, list[_Told]] = {}
    for each in told:
        by_symbol.setdefault(each.symbol, []).append(each)
        if each.target:
            taken_up.setdefault(each.target, []).append(each.moment)
    kept: list[_Told] = []
    for symbol, ends in by_symbol.items():
        starts = taken_up.get(symbol, [])
        groups: list[list[_Told]] = []
        for each in ends:
            last = groups[-1][-1] if groups else None
            anew = last is None or each.moment - last.moment > SAME_EVENT
            if anew or (
                last is not None
                and last.moment != each.moment
                and any(last.moment <= s < each.moment for s in starts)
            ):
                groups.append([])
            groups[-1].append(each)
        for group in groups:
            renamed = [g for g in group if g.target]
            if renamed:
                kept += [g for g in renamed if g.moment == renamed[0].moment]
            else:
                kept.append(group[-1])
    return sorted(kept)


def _unlink(symbol: str, ticker: _Ticker, tickers: Mapping[str, _Ticker]) -> None:
    """Take back links that the other side contradicts."""
    for moment, target in ticker.ends.items():
        if target is not None and tickers[target].starts.get(moment) != symbol:
            ticker.ends[moment] = None
    for moment, source in ticker.starts.items():
        if source is not None and tickers[source].ends.get(moment) != symbol:
            ticker.starts[moment] = None
