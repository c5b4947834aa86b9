"""Which instrument a symbol means now, from what the store knows; remembered for a few minutes.

A read of a symbol without identity changes costs a look into a set here and no more. Nothing of
this asks a broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, from_micros
from marketdata.corporate_actions import IDENTITY_CHANGES, ActionKind, CorporateAction
from marketdata.errors import StoreError
from marketdata.identity import ALWAYS, Lineage, Piece, TickerHistory
from marketdata.protocols import ActionChange, ActionStore, IdentityStore, SeriesState
from marketdata.spans import Span, normalise, subtract
from marketdata.types import DAY, HOUR, SeriesKey

log = logging.getLogger("marketdata.identities")

_AGAIN_SECONDS: Final = 20.0
_LATELY: Final = 21 * DAY
"""How long a symbol that was given up is looked after: its last sessions become final."""


class Identities:
    """The identity of every symbol, as the store knows it.

    Parameters
    ----------
    store : IdentityStore
    clock : Clock
        Market time.
    calendar : callable
        Returns the trading calendar.
    """

    MEMORY: Final = 180.0
    """Seconds after which what other processes have recorded is looked at."""

    def __init__(
        self, store: IdentityStore, clock: Clock, calendar: Callable[[], TradingCalendar]
    ) -> None:
        self._store = store
        self._clock = clock
        self._calendar = calendar
        self._known: dict[str, tuple[float, TickerHistory]] = {}
        self._forgotten = 0
        self._loading: set[str] = set()
        self._lock = threading.Lock()

    # ----------------------------------------------------------------------------- knowing

    def history(self, provider: str) -> TickerHistory:
        """Return what is known of all symbols of a provider. Never raises: where the store does not
        answer, what was known before holds on."""
        known = self._known.get(provider)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return known[1]
        with self._lock:
            if known is not None and provider in self._loading:
                return known[1]  # one thread looks, the others do not wait for it
            self._loading.add(provider)
            forgotten = self._forgotten
        try:
            loaded = self._load(provider)
            until = now + self.MEMORY
        except StoreError as error:
            log.warning("identity changes are as last seen: %s", error)
            loaded = TickerHistory(()) if known is None else known[1]
            until = now + _AGAIN_SECONDS
        finally:
            with self._lock:
                self._loading.discard(provider)
        with self._lock:
            if forgotten == self._forgotten:
                # Else it may have been loaded before the change that others are to forget it for.
                self._known[provider] = (until, loaded)
        return loaded

    def forget(self, provider: str) -> None:
        """Look at the store with the next question."""
        with self._lock:
            self._forgotten += 1
            self._known.pop(provider, None)

    def _load(self, provider: str) -> TickerHistory:
        changes = self._store.identity_changes(provider)
        last_days = self._store.last_days(provider)
        told = TickerHistory(changes)
        if last_days:
            changes += self._silent_ends(told, last_days)
        listed = {
            asset.symbol: asset.observed_us
            for asset in (self._store.assets(provider, sorted(told.symbols)) if changes else ())
            if asset.status == "active"
        }
        return TickerHistory(changes, listed) if changes else told

    def _silent_ends(
        self, told: TickerHistory, last_days: Mapping[str, int]
    ) -> list[CorporateAction]:
        """Return the ends that nobody announced: the session after the last bar of a symbol that is
        listed as inactive."""
        calendar, now_us = self._calendar(), self._clock.now_us()
        found = []
        for symbol, last_bar in last_days.items():
            lineage = told.lineage(symbol, now_us)
            if lineage.ended is not None or lineage.pieces[-1].symbol != symbol:
                continue
            following = calendar.midnight_of(calendar.today(last_bar + 36 * HOUR))
            if following > lineage.pieces[-1].span.start:
                found.append(CorporateAction(symbol, ActionKind.DELISTING, following))
        return found

    # -------------------------------------------------------------------------- of symbols

    def lineage(self, provider: str, symbol: str, at_us: int | None = None) -> tuple[Piece, ...]:
        """Return the pieces of the instrument that `symbol` means now (or at `at_us`)."""
        return self.instrument(provider, symbol, at_us).pieces

    def instrument(self, provider: str, symbol: str, at_us: int | None = None) -> Lineage:
        """Return the instrument that `symbol` means now, or at a market time."""
        moment = self._clock.now_us() if at_us is None else at_us
        return self.history(provider).lineage(symbol, moment)

    def changed(
        self, provider: str, symbols: Iterable[str], at_us: int | None = None
    ) -> dict[str, Lineage]:
        """Return the instruments of those `symbols` that have not meant the same at all times, or
        do not trade any more; mostly there are none."""
        history = self.history(provider)
        if history.symbols.isdisjoint(symbols):
            return {}
        moment = self._clock.now_us() if at_us is None else at_us
        found = {s: history.lineage(s, moment) for s in symbols if s in history.symbols}
        return {s: lin for s, lin in found.items() if lin.pieces != (Piece(s, ALWAYS),)}

    def current(self, provider: str, symbol: str) -> str:
        """Return the symbol under which the instrument trades now, or traded last."""
        if symbol not in self.history(provider).symbols:
            return symbol
        return self.instrument(provider, symbol).symbol_at(self._clock.now_us())

    def today(self, provider: str, symbols: Sequence[str]) -> dict[str, str]:
        """Return today's symbols of those `symbols` that trade under another name by now."""
        now_us = self._clock.now_us()
        changed = self.changed(provider, symbols).items()
        found = {symbol: lineage.symbol_at(now_us) for symbol, lineage in changed}
        return {symbol: name for symbol, name in found.items() if name != symbol}

    def live(self, provider: str, symbols: Sequence[str]) -> list[str]:
        """Return the symbols under which these instruments trade now, or did so until lately: what
        was traded last may still be corrected."""
        changed, now_us = self.changed(provider, symbols), self._clock.now_us()
        if not changed:
            return list(symbols)
        lately = Span(now_us - _LATELY, now_us)
        found: dict[str, None] = {}
        for symbol in symbols:
            if symbol in changed:
                pieces = changed[symbol].within(lately)
                found |= dict.fromkeys(piece.symbol for piece in reversed(pieces))
            else:
                found[symbol] = None
        return list(found)

    def same_as(self, provider: str, symbol: str) -> str:
        """Return today's symbol of the instrument if it means this instrument today, else
        `symbol`: what is kept by symbol is kept once for both names."""
        if symbol not in self.history(provider).symbols:
            return symbol
        mine = self.instrument(provider, symbol)
        newest = mine.symbol_at(self._clock.now_us())
        same = newest != symbol and self.instrument(provider, newest).pieces == mine.pieces
        return newest if same else symbol

    def is_over(self, provider: str, symbol: str) -> bool:
        """Whether nothing trades any more of what `symbol` means."""
        if symbol not in self.history(provider).symbols:
            return False
        end = self.instrument(provider, symbol).end
        return end is not None and end <= self._clock.now_us()

    def text(self, lineage: Lineage, at_us: int | None = None) -> str:
        """Return a lineage as it is now, or was at a market time, in a few words:
        ``FB<2022-06-09<META``."""
        zone = self._calendar().zone
        moment = self._clock.now_us() if at_us is None else at_us
        words = lineage.pieces[0].symbol
        for piece in lineage.pieces[1:]:
            if piece.span.start > moment:
                break
            words += f"<{from_micros(piece.span.start).astimezone(zone).date()}<{piece.symbol}"
        return words

    # ----------------------------------------------------------------------------- of series

    def symbols_behind(self, provider: str, symbols: Sequence[str]) -> list[str]:
        """Return all symbols under which these instruments have traded by now, today's first."""
        found: dict[str, None] = {}
        changed = self.changed(provider, symbols)
        now_us = self._clock.now_us()
        for symbol in symbols:
            if symbol not in changed:
                found[symbol] = None
                continue
            pieces = changed[symbol].within(Span(ALWAYS.start, now_us))
            found |= dict.fromkeys(piece.symbol for piece in reversed(pieces))
        return list(found)

    def closed(
        self, states: Mapping[SeriesKey, SeriesState], wanted: Collection[str] | None = None
    ) -> dict[SeriesKey, SeriesState]:
        """Return the states with all time as covered, and final, in which a series' symbol is none
        of the wanted instruments': nobody need ask for that.

        Parameters
        ----------
        wanted : collection of str, optional
            The symbols whose instruments are wanted; by default those of the series themselves.
        """
        found = dict(states)
        by_provider: dict[str, list[SeriesKey]] = {}
        for key in states:
            by_provider.setdefault(key.provider, []).append(key)
        for provider, keys in by_provider.items():
            names = {key.symbol for key in keys} if wanted is None else wanted
            changed = self.changed(provider, names)
            if not changed:
                continue
            mine: dict[str, list[Span]] = {}
            for lineage in changed.values():
                for piece in lineage.pieces:
                    mine.setdefault(piece.symbol, []).append(piece.span)
            for key in keys:
                if key.symbol in mine:
                    outside = subtract([ALWAYS], normalise(mine[key.symbol]))
                    state = states[key]
                    found[key] = replace(
                        state,
                        coverage=normalise([*state.coverage, *outside]),
                        final=normalise([*state.final, *outside]),
                    )
        return found

    def rebuild(self, provider: str, symbols: Collection[str] | None = None) -> None:
        """Make the tables of instruments anew from what is known, for all or for those that ever
        held one of `symbols`.

        Raises
        ------
        StoreError
            Nothing has changed.
        """
        history = self.history(provider)
        lineages = list(history.instruments())
        touched: set[str] | None = None
        if symbols is not None:
            touched = set(symbols)
            mine = [lin for lin in lineages if touched & {p.symbol for p in lin.pieces}]
            touched |= {p.symbol for lin in mine for p in lin.pieces}
            lineages = [lin for lin in lineages if touched & {p.symbol for p in lin.pieces}]
            touched |= {p.symbol for lin in lineages for p in lin.pieces}
        now_us = self._clock.now_us()
        self._store.rebuild(
            provider, lineages, now_us, None if touched is None else sorted(touched)
        )


class InstrumentActions:
    """The action store by instrument: what is known of a symbol is what happened to the instrument
    that it means, under whichever symbol. Symbols without identity changes pass through.

    The brokers' answers are recorded as they came, by symbol.
    """

    def __init__(self, store: ActionStore, identities: Identities) -> None:
        self._store = store
        self._identities = identities

    def actions(
        self, provider: str, symbols: Sequence[str], kinds: Collection[ActionKind] | None = None
    ) -> dict[str, list[CorporateAction]]:
        """See `ActionStore.actions`."""
        changed = self._identities.changed(provider, symbols)
        names = _all_names(symbols, changed)
        return _joined(self._store.actions(provider, names, kinds), symbols, changed)

    def history(
        self, provider: str, symbols: Sequence[str], known_us: int
    ) -> dict[str, list[CorporateAction]]:
        """See `ActionStore.history`."""
        changed = self._identities.changed(provider, symbols, known_us)
        names = _all_names(symbols, changed)
        return _joined(self._store.history(provider, names, known_us), symbols, changed)

    def checked(self, provider: str, symbols: Sequence[str]) -> dict[str, tuple[Span, int]]:
        """See `ActionStore.checked`: an instrument was asked about when all its symbols were."""
        changed = self._identities.changed(provider, symbols)
        told = self._store.checked(provider, _all_names(symbols, changed))
        found: dict[str, tuple[Span, int]] = {}
        for symbol in symbols:
            names = _names(changed[symbol]) if symbol in changed else [symbol]
            checks = [told[name] for name in names if name in told]
            if len(checks) < len(names):
                continue
            start = max(span.start for span, _ in checks)
            end = min(span.end for span, _ in checks)
            found[symbol] = (Span(start, max(start, end)), min(moment for _, moment in checks))
        return found

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
    ) -> list[ActionChange]:
        """See `ActionStore.record`; this process knows of a changed identity at once."""
        changes = self._store.record(provider, actions, asked, observed_us)
        renamed = {change.symbol for change in changes if change.kind in IDENTITY_CHANGES}
        # What another process has recorded, or this one in a transaction whose reply was lost, is
        # no change any more, and new here all the same.
        told = {a.symbol for listed in actions.values() for a in listed if _ends_a_name(a)}
        if told - self._identities.history(provider).symbols:
            renamed |= told
        if renamed:
            self._identities.forget(provider)
            try:
                self._identities.rebuild(provider, renamed)
            except StoreError as error:
                log.warning("the tables of instruments are not up to date: %s", error)
        return changes


def _ends_a_name(action: CorporateAction) -> bool:
    """Whether an action is one of those that `TickerHistory` is made of."""
    renamed_to_itself = (
        action.kind is ActionKind.NAME_CHANGE and action.other_symbol == action.symbol
    )
    return action.kind in IDENTITY_CHANGES and not renamed_to_itself


def _names(lineage: Lineage) -> list[str]:
    return list(dict.fromkeys(piece.symbol for piece in lineage.pieces))


def _all_names(symbols: Sequence[str], changed: Mapping[str, Lineage]) -> list[str]:
    names = dict.fromkeys(symbols)
    for lineage in changed.values():
        names |= dict.fromkeys(_names(lineage))
    return list(names)


def _joined(
    told: Mapping[str, Sequence[CorporateAction]],
    symbols: Sequence[str],
    changed: Mapping[str, Lineage],
) -> dict[str, list[CorporateAction]]:
    """Return the actions of each symbol's instrument, ascending, each once."""
    return {
        s: _of_instrument(told, changed[s]) if s in changed else list(told.get(s, ()))
        for s in symbols
    }


def _of_instrument(
    told: Mapping[str, Sequence[CorporateAction]], lineage: Lineage
) -> list[CorporateAction]:
    """Return what happened to an instrument: of each symbol's actions those in its time. On the day
    of a change the provider may name it by either symbol, or by both."""
    found: list[CorporateAction] = []
    on_the_day: set[tuple[object, ...]] = set()
    last = len(lineage.pieces) - 1
    for number, (symbol, span) in enumerate(lineage.pieces):
        seen, on_the_day = on_the_day, set()
        for action in told.get(symbol, ()):
            if span.start <= action.ex_date < span.end:
                if action.ex_date > span.start or _what(action) not in seen:
                    found.append(action)
            elif action.ex_date == span.end and (number < last or action.kind in IDENTITY_CHANGES):
                found.append(action)
                on_the_day.add(_what(action))
    return sorted(found, key=lambda a: a.ex_date)


def _what(action: CorporateAction) -> tuple[object, ...]:
    """Return what makes two reports the same action."""
    if action.kind in IDENTITY_CHANGES:
        return action.kind, action.ex_date, action.symbol, action.other_symbol
    return (
        action.kind,
        action.ex_date,
        action.new,
        action.old,
        action.cash,
        action.other_symbol,
        action.special,
    )
