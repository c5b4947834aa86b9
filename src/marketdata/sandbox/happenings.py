"""What happens in a generated market: splits, spin-offs, renames, ends, and what is told of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import SystemClock
from marketdata.sandbox.source import ENDS, SPLITS, Action, Asset, Ledger, day_number
from marketdata.sandbox.tickers import WHOLE, Tickers, day_before
from marketdata.sandbox.universe import Listing
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, Bars, Floats, Int64s


@dataclass(frozen=True, slots=True)
class _Effect:
    """What an action does to prices from its ex-date on: shares are `ratio` times as many, and
    `left` of a share's value stays in it."""

    ex_date: date
    ratio: float = 1.0
    left: float = 1.0


class Happenings(ABC):
    """Corporate actions and names of a market whose prices follow from them.

    Parameters
    ----------
    listed : sequence of str
        Symbols the assets endpoint lists.
    """

    def __init__(self, listed: Sequence[str]) -> None:
        self._listed = tuple(listed)
        self._tickers = Tickers()
        self._ledger = Ledger()
        self._added: list[Action] = []
        self._effects: dict[str, list[_Effect]] = {}
        self._actions: dict[str, list[Action]] = {}

    @abstractmethod
    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        """Return the daily bars labelled in `span`."""

    @abstractmethod
    def _dividends(self, listing: Listing) -> list[Action]:
        """Return the cash dividends that a listing pays anyway."""

    # ----------------------------------------------------------------------------- assets

    def assets(self) -> Sequence[Asset]:
        symbols = {*self._listed, *self._tickers.changed()}
        found = (self.asset(s) for s in sorted(symbols))
        return [a for a in found if a is not None]

    def asset(self, symbol: str) -> Asset | None:
        held = self._tickers.held(symbol)
        if not held:
            return None
        listing = held[-1].listing
        spans = self._tickers.listed_between(symbol)
        name = f"{listing.name} (SIMULATED)"
        return Asset(symbol, name, listing.exchange, listing.kind, spans)

    def first_day(self, symbol: str) -> date:
        held = self._tickers.held(symbol)
        return held[0].first if held else date(1990, 1, 2)

    def whole(self, symbol: str, day: date) -> str:
        """Return what the whole history of the instrument that `symbol` names on `day` is called
        here, whatever its names have been."""
        holder = self._tickers.holder(symbol, day)
        return symbol if holder is None else WHOLE + holder.listing.symbol

    # ---------------------------------------------------------------------------- actions

    def add_split(
        self,
        symbol: str,
        ex_date: date,
        new: float,
        old: float = 1.0,
        *,
        process_date: date | None = None,
        announced: date | None = None,
    ) -> Action:
        """Let a split happen: raw prices fall from `ex_date` on, earlier ones stay as they were.

        With `announced` after `ex_date` the corporate action is late, as it can be in reality.
        """
        return self.add_action(Action(symbol, ex_date, new, old, 0.0, process_date, announced))

    def rename(self, old: str, new: str, day: date, **told: Any) -> Action:
        """Let what `old` names be called `new` from `day` on; see `Tickers.rename`.

        Parameters
        ----------
        **told
            Further fields of the `Action`, such as `announced` or `process_date`.
        """
        return self.add_action(Action(old, day, kind="name_change", other_symbol=new, **told))

    def list_new(self, symbol: str, day: date, *, like: str = "S00001") -> None:
        """Let `symbol`, free by then, name a new instrument from `day` on, with figures like those
        of `like`: a symbol used again, or what is spun off."""
        self._tickers.begin(symbol, day, like)
        self._forget()

    def add_action(self, action: Action, *, happens: bool = True) -> Action:
        """Let a corporate action happen, and be told of; return it.

        A split or stock dividend moves raw prices and volumes from its ex-date on, a spin-off
        prices by what leaves (`Action.amount` a share, or else what `other_symbol` trades at). A
        name change moves the symbol, a merger, redemption or removal ends it. A cash dividend
        moves nothing here. Earlier bars stay as they were.

        Parameters
        ----------
        happens : bool
            False only tells of it.
        """
        if happens:
            renamed = action.other_symbol if action.type in ("name_change", *SPLITS) else None
            effect = self._effect_of(action)
            holder = self._tickers.holder(action.symbol, day_before(action.ex_date))
            if effect is not None and holder is not None:
                self._effects.setdefault(holder.listing.symbol, []).append(effect)
            if renamed:
                self._tickers.rename(action.symbol, renamed, action.ex_date)
            if action.type in ENDS:
                self._tickers.end(action.symbol, action.ex_date)
        self._added.append(action)
        self._forget()
        return action

    def correct_action(self, action: Action | str, **changes: Any) -> Action:
        """Tell of an action with other values from now on; prices stay. Takes an id too."""
        found = self._ledger.correct(self._action(action), changes)
        self._actions = {}
        return found

    def withdraw_action(self, action: Action | str) -> None:
        """Tell of an action no longer; prices stay."""
        self._ledger.withdraw(self._action(action))
        self._actions = {}

    def _action(self, action: Action | str) -> Action:
        if isinstance(action, Action):
            return action
        every = (a for s in self.symbols_with_actions() for a in self._happened(s))
        found = next((a for a in every if a.id == action), None)
        if found is None:
            raise ValueError(f"no action has the id {action}")
        return found

    def _effect_of(self, action: Action) -> _Effect | None:
        if action.is_split:
            return _Effect(action.ex_date, action.ratio)
        if action.type != "spin_off":
            return None
        own = self._close_around(action.symbol, action.ex_date, before=True)
        leaves = action.amount
        if not leaves and action.other_symbol:
            other = self._close_around(action.other_symbol, action.ex_date, before=False)
            leaves = other * action.new / action.old
        return _Effect(action.ex_date, left=1 - leaves / own) if 0 < leaves < own else None

    def _close_around(self, symbol: str, day: date, *, before: bool) -> float:
        """Return the close of the last session before `day`, or of the first from it on."""
        midnight = calendar_for(EXCHANGE, SystemClock().now_us()).midnight_of(day)
        reach = (
            Span(midnight - 10 * DAY, midnight) if before else Span(midnight, midnight + 10 * DAY)
        )
        closes = self.days(symbol, reach, "sip").values[CLOSE]
        return float(closes[-1 if before else 0]) if len(closes) else 0.0

    def _forget(self) -> None:
        """Forget what an action or a new name may have changed."""
        self._actions = {}

    def actions(self, symbol: str) -> Sequence[Action]:
        found = self._actions.get(symbol)
        if found is None:
            found = self._actions[symbol] = self._ledger.told(self._happened(symbol))
        return found

    def _happened(self, symbol: str) -> list[Action]:
        found = []
        for held in self._tickers.held(symbol):
            listing = held.listing
            built_in = [Action(listing.symbol, day, new, old) for day, new, old in listing.splits]
            for action in built_in + self._dividends(listing):
                name = self._tickers.name_on(listing, day_before(action.ex_date))
                if name == symbol or symbol.startswith(WHOLE):
                    found.append(replace(action, symbol=name))
            if symbol.startswith(WHOLE):
                names = {each.symbol for each in self._tickers.names(listing)}
                found += [a for a in self._added if a.symbol in names]
        return found + [a for a in self._added if symbol in a.names]

    def symbols_with_actions(self) -> Sequence[str]:
        return sorted({*self._listed, *(name for a in self._added for name in a.names)})

    # ------------------------------------------------------------------------ what they do

    def _share_factors(self, listing: Listing, days: Int64s) -> Floats:
        """Return raw over typical price: built-in splits to come, added splits behind."""
        factors = np.ones(len(days))
        for ex_date, new, old in listing.splits:
            factors[days < day_number(ex_date)] *= new / old
        for effect in self._effects.get(listing.symbol, []):
            factors[days >= day_number(effect.ex_date)] /= effect.ratio
        return factors

    def _left(self, listing: Listing, days: Int64s) -> Floats:
        """Return the part of a share's value that spin-offs have left in it."""
        left = np.ones(len(days))
        for effect in self._effects.get(listing.symbol, []):
            left[days >= day_number(effect.ex_date)] *= effect.left
        return left
