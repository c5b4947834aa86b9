"""Applies corporate actions to what a read found, or warns that a raw read crosses a split.

Bars are adjusted in the timeframe in which they are stored as far as that matters: sessions are
never cut by an action, weeks and months can be, so those are made anew from adjusted days.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

import numpy as np

from marketdata import resample
from marketdata.action_steps import Closes, Doubt, refusal
from marketdata.actions import Actions
from marketdata.adjust import (
    ALWAYS,
    FAMILIES,
    concerned,
    doubts,
    factors,
    splits_within,
)
from marketdata.answers import Answer, ReadsBars, SeriesAnswer
from marketdata.applied import Applied
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline, from_micros
from marketdata.corporate_actions import (
    DISTRIBUTIONS,
    ActionKind,
    CorporateAction,
    known_at,
    splits_of,
)
from marketdata.errors import StoreError
from marketdata.protocols import ActionStore
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.reference_closes import Absent, ReferenceCloses
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, Adjustment, Bars, Split, Timeframe
from marketdata.warning_types import LIBRARY, SplitInRangeWarning

log = logging.getLogger("marketdata.adjusting")

_WORTH_ASKING: Final = 28 * DAY


class Adjuster:
    """Knows the corporate actions and what they do to an answer.

    Parameters
    ----------
    actions : Actions
    store : ActionStore
        By instrument, as `actions` has it; for what was known at an earlier moment.
    reader : Reader
        Reads days that weeks and months are made of.
    closes : ReferenceCloses
    calendar : callable
    """

    def __init__(
        self,
        actions: Actions,
        store: ActionStore,
        reader: ReadsBars,
        closes: ReferenceCloses,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._actions = actions
        self._store = store
        self._reader = reader
        self._closes = closes
        self._calendar = calendar
        self._warned: set[str] = set()

    # ---------------------------------------------------------------------------- adjusting

    def adjust(
        self,
        query: BarsQuery,
        answer: Answer,
        now_us: int,
        deadline: Deadline,
        adjustment: Adjustment,
        as_of_us: int | None = None,
    ) -> Applied:
        """Adjust the answer's closed bars in place.

        Parameters
        ----------
        adjustment : {"raw", "split", "dividend", "all"}
        as_of_us : int, optional
            Only what had taken effect, and was known, by this moment counts; now by default.

        Returns
        -------
        Applied
            For every symbol of the answer.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreError
            Actions, or closes that a distribution is measured by, are not known and cannot be had.
        DataQualityError, DataUnavailableError
            An action after some symbol's first bar has no unambiguous factor; it is named, and a
            retry does not help. No bar is changed.
        """
        if adjustment == "raw":
            return _nothing_of(answer)
        filled = _filled(answer)
        first = {symbol: int(a.bars.timestamp[0]) for symbol, a in filled.items()}
        if query.timeframe in (Timeframe.WEEK_1, Timeframe.MONTH_1):
            # The bar that is forming may be cut too.
            running = resample.bar_span(now_us, query.timeframe, self._calendar()).start
            first = {symbol: min(first.get(symbol, running), running) for symbol in answer.series}
        applied = self.found(
            query.provider,
            query.feed,
            {symbol: first.get(symbol, now_us) for symbol in answer.series},
            now_us,
            deadline,
            adjustment,
            as_of_us,
            {s: a.bars for s, a in filled.items()} if query.timeframe is Timeframe.DAY_1 else {},
        )
        cut = [s for s, a in filled.items() if self._cut_by(applied[s], a.bars, query.timeframe)]
        days = self._days(query, cut, answer, deadline)
        for symbol, found in filled.items():
            if as_of_us is not None:
                found.late_actions = sum((a.fetched_us or 0) > as_of_us for a in applied[symbol])
            if symbol in days:
                found.bars = resample.resample(
                    applied.adjusted(symbol, days[symbol]),
                    Timeframe.DAY_1,
                    query.timeframe,
                    self._calendar(),
                    query.session,
                )
            else:
                found.bars = applied.adjusted(symbol, found.bars)
        return applied

    def found(
        self,
        provider: str,
        feed: str,
        first: Mapping[str, int],
        now_us: int,
        deadline: Deadline,
        adjustment: Adjustment,
        as_of_us: int | None = None,
        days: Mapping[str, Bars] | None = None,
        *,
        fetch: bool = True,
        until_us: int | None = None,
    ) -> Applied:
        """Return the actions that change bars from a first one on, and their factors.

        Parameters
        ----------
        first : mapping
            By symbol the label of its first bar.
        days : mapping, optional
            By symbol raw daily bars at hand, without a hole between first and last.
        fetch : bool
            Whether what is not stored is asked of the broker. Otherwise the caller has made sure
            that the actions are known.
        until_us : int, optional
            Leave out what happens from this ex-date on, and what may be in doubt about it.

        Raises
        ------
        MarketDataError
            As `adjust`.
        """
        moment = now_us if as_of_us is None else as_of_us
        applied = Applied(adjustment)
        if fetch:
            start = min(first.values(), default=moment)
            self._actions.ensure(provider, list(first), start, deadline)
        told = self._told(provider, list(first), adjustment, as_of_us)
        last = moment if until_us is None else min(moment, until_us - 1)
        applied.in_effect = {s: [a for a in told[s] if a.ex_date <= last] for s in first}
        looked_at = {
            symbol: concerned(actions, adjustment, first[symbol])
            for symbol, actions in applied.in_effect.items()
        }
        absent: Absent = "fetch" if fetch else "raise"
        measured = self._measured(
            provider,
            feed,
            looked_at,
            days or {},
            deadline,
            moment,
            absent=absent,
            as_of_us=as_of_us,
        )
        refused: list[Doubt] = []
        for symbol, actions in looked_at.items():
            applied[symbol] = [a for a in actions if a.kind in FAMILIES[adjustment]]
            doubted = doubts(actions, measured[symbol]) if actions else []
            if not doubted:
                applied.factors[symbol] = factors(actions, measured[symbol], adjustment)
            refused += [replace(doubt, symbol=symbol) for doubt in doubted]
        if refused:
            raise refusal(refused)
        return applied

    def _told(
        self,
        provider: str,
        symbols: Sequence[str],
        adjustment: Adjustment,
        as_of_us: int | None,
    ) -> dict[str, list[CorporateAction]]:
        """Return the actions that matter to an adjustment, as known now or at an earlier moment."""
        if as_of_us is not None:
            told = self._store.history(provider, symbols, as_of_us)
            return {symbol: known_at(actions, as_of_us) for symbol, actions in told.items()}
        # A share change decides what a dividend of the same day is measured by.
        kinds = FAMILIES["all" if adjustment == "dividend" else adjustment]
        return self._store.actions(provider, symbols, kinds)

    # --------------------------------------------------------------------- reference closes

    def _measured(
        self,
        provider: str,
        feed: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        at_hand: Mapping[str, Bars],
        deadline: Deadline,
        moment: int,
        *,
        absent: Absent,
        as_of_us: int | None = None,
    ) -> dict[str, Closes]:
        """Return the closes that the distributions among `actions` are measured by."""
        sessions: dict[str, dict[int, int]] = {symbol: {} for symbol in actions}
        spun: dict[tuple[str, int], list[int]] = {}
        for symbol, told in actions.items():
            for action in told:
                before = self._closes.session_before(action.ex_date)
                if action.kind in DISTRIBUTIONS and before is not None:
                    sessions[symbol][action.ex_date] = before
                if action.kind is ActionKind.SPIN_OFF and action.other_symbol:
                    key = action.other_symbol, action.ex_date
                    spun[key] = self._closes.first_sessions(action.ex_date, moment)
        own: dict[str, set[int]] = {}
        for symbol, days in sessions.items():
            held = at_hand.get(symbol)
            own[symbol] = {d for d in days.values() if held is None or not _holds(held, d)}
        found = self._closes.find(provider, feed, own, deadline, absent=absent, as_of_us=as_of_us)
        others: dict[str, set[int]] = {}
        for (other, _), labels in spun.items():
            others.setdefault(other, set()).update(labels)
        # Under the name of that day: who is called so now may be somebody else.
        prices = self._closes.under(
            provider, feed, others, deadline, absent=absent, as_of_us=as_of_us
        )
        values = {
            key: price
            for key, labels in spun.items()
            if (price := _first_of(prices.get(key[0], {}), labels)) is not None
        }
        measured = {}
        for symbol, days in sessions.items():
            held = at_hand.get(symbol)
            closes = {
                ex_date: _close_on(held, day)
                if held is not None and _holds(held, day)
                else found.get(symbol, {}).get(day)
                for ex_date, day in days.items()
            }
            before_them = {ex_date: close for ex_date, close in closes.items() if close is not None}
            measured[symbol] = Closes(before_them, values)
        return measured

    def doubts(
        self,
        provider: str,
        feed: str,
        symbols: Sequence[str],
        now_us: int,
        deadline: Deadline,
        as_of_us: int | None = None,
    ) -> list[Doubt]:
        """Return what adjusted reads of these symbols would be refused for, by the actions and
        prices that are stored; asks no broker. A dividend whose reference close is not stored
        yet is in no doubt, a spin-off is in doubt until what it spun off has a stored close.

        Parameters
        ----------
        as_of_us : int, optional
            By the actions that had taken effect and were known by this moment; prices are those
            that are stored now.

        Raises
        ------
        StoreError
            PostgreSQL failed; a retry can help.
        """
        moment = now_us if as_of_us is None else as_of_us
        told = self._told(provider, symbols, "all", as_of_us)
        actions = {
            s: concerned([a for a in told[s] if a.ex_date <= moment], "all", ALWAYS)
            for s in symbols
        }
        measured = self._measured(provider, feed, actions, {}, deadline, moment, absent="skip")
        return [
            replace(doubt, symbol=symbol)
            for symbol in symbols
            for doubt in doubts(actions[symbol], measured[symbol])
            if not (doubt.lacking and doubt.ex_date in measured[symbol].unknown)
        ]

    # ----------------------------------------------------------------------- weeks, months

    def _cut_by(self, actions: Sequence[CorporateAction], bars: Bars, timeframe: Timeframe) -> bool:
        """Whether an action takes effect inside one of these bars, not at its beginning."""
        if timeframe not in (Timeframe.WEEK_1, Timeframe.MONTH_1):
            return False
        first, last = int(bars.timestamp[0]), int(bars.timestamp[-1])
        end = resample.bar_span(last, timeframe, self._calendar()).end
        return any(
            first < a.ex_date < end and not np.isin(a.ex_date, bars.timestamp) for a in actions
        )

    def _days(
        self, query: BarsQuery, symbols: Sequence[str], answer: Answer, deadline: Deadline
    ) -> dict[str, Bars]:
        """Return the raw days of the weeks or months of some symbols."""
        calendar = self._calendar()
        spans = {}
        for symbol in symbols:
            stamps = answer.series[symbol].bars.timestamp
            labels = Span(int(stamps[0]), int(stamps[-1]) + 1)
            spans[symbol] = resample.base_span(labels, query.timeframe, calendar)
        found: dict[str, Bars] = {}
        for days, group in groupby(sorted(symbols, key=lambda s: spans[s]), key=lambda s: spans[s]):
            daily = replace(
                query,
                symbols=tuple(group),
                timeframe=Timeframe.DAY_1,
                window=Window(days.start, days.end, None, explicit_end=True),
            )
            read = self._reader.read(daily, deadline)
            found |= {symbol: each.bars for symbol, each in read.series.items()}
        return found

    # ----------------------------------------------------------------------------- warning

    def warn_of_splits(
        self,
        query: BarsQuery,
        answer: Answer,
        deadline: Deadline,
        as_of_us: int | None = None,
    ) -> None:
        """Warn once a symbol that raw prices jump at a known split inside the answer.

        A long stretch that was just fetched is worth one more request: who reads years of raw
        prices for the first time is the one who needs the warning.
        """
        filled = _filled(answer)
        if not filled:
            return
        start = min(int(a.bars.timestamp[0]) for a in filled.values())
        if answer.trace.fetched and answer.trace.longest >= _WORTH_ASKING:
            self._actions.look_up(query.provider, list(filled), start, deadline)
        try:
            known = self._actions.known(query.provider, list(filled))
        except StoreError as error:
            # What Redis covers is served without PostgreSQL; a warning is no reason to fail.
            log.info("not warning of splits: %s", error)
            return
        for symbol, actions in known.items():
            splits = splits_of(actions if as_of_us is None else known_at(actions, as_of_us))
            if not splits or symbol in self._warned:
                continue
            stamps = filled[symbol].bars.timestamp
            inside = splits_within(splits, Span(int(stamps[0]) + 1, int(stamps[-1]) + 1))
            if inside:
                self._warned.add(symbol)
                self._warn(symbol, inside)

    def _warn(self, symbol: str, splits: Sequence[Split]) -> None:
        zone = self._calendar().zone
        days = ", ".join(
            f"{s.new:g}:{s.old:g} on {from_micros(s.ex_date).astimezone(zone).date()}"
            for s in splits[-3:]
        )
        warnings.warn(
            f"raw prices of {symbol} jump at its split {days}; for comparable prices pass "
            'adjustment="split"',
            SplitInRangeWarning,
            skip_file_prefixes=LIBRARY,
        )


# --------------------------------------------------------------------------------------- pieces


def _filled(answer: Answer) -> dict[str, SeriesAnswer]:
    return {s: a for s, a in answer.series.items() if len(a.bars)}


def _nothing_of(answer: Answer) -> Applied:
    applied = Applied()
    applied.update({symbol: [] for symbol in answer.series})
    return applied


def _holds(bars: Bars, day: int) -> bool:
    """Whether a session lies between the first and the last of some daily bars."""
    return len(bars) > 0 and bool(bars.timestamp[0] <= day <= bars.timestamp[-1])


def _close_on(held: Bars, day: int) -> float | None:
    at = int(np.searchsorted(held.timestamp, day))
    return float(held.values[CLOSE, at]) if held.timestamp[at] == day else None


def _first_of(closes: Mapping[int, float], labels: Sequence[int]) -> float | None:
    return next((closes[label] for label in labels if label in closes), None)
