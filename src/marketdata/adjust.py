"""Adjustment: raw prices stay stored, factors of corporate actions are applied on read. Pure.

A bar strictly before an action's ex-date (the exchange midnight of that session) is scaled; from
the ex-date's session on (04:00 in New York) bars are left alone. Factors of several actions
multiply. With `P` the raw close of the last session before the ex-date:

========================  =====================  ===============  ==============
action                    terms                  price            volume
========================  =====================  ===============  ==============
split                     new for old shares     old / new        new / old
stock dividend            r = new / old          1 / (1 + r)      1 + r
cash dividend             D a share              1 - D / P        1
spin-off                  V = new / old x price  1 - V / P        1
several on one ex-date    D1, D2, V ...          1 - sum / P      1
========================  =====================  ===============  ==============

Share changes make the adjustment ``split``, distributions ``dividend``, both ``all``. Volumes
follow share changes alone, trade counts nothing. A split and a distribution of one ex-date are
taken in the order that their source states: `P` of the second is on the share basis that the
first leaves. Names, mergers and delistings change no price.

Sources: CRSP, "Data Definitions and Coding Schemes", factor to adjust prices; Yahoo, "What is the
adjusted close?" (help.yahoo.com, SLN28256), whose example is a close of 48.30, a 2:1 split, then
0.08 on 24.96: 0.5 x 0.9968 x 48.30 = 24.07. The value of a spin-off is that of what is spun off
at its first close.

What has no unambiguous factor is refused (`doubts`), and never becomes a factor of zero or below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Final

import numpy as np

from marketdata.clock import from_micros
from marketdata.corporate_actions import (
    DISTRIBUTIONS,
    SHARE_CHANGES,
    ActionKind,
    CorporateAction,
    as_split,
)
from marketdata.errors import DataQualityError, DataUnavailableError, MarketDataError
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    DAY,
    OPEN,
    VOLUME,
    VWAP,
    Adjustment,
    Bars,
    Floats,
    Int64s,
    Split,
)

FAMILIES: Final[Mapping[Adjustment, frozenset[ActionKind]]] = {
    "raw": frozenset(),
    "split": SHARE_CHANGES,
    "dividend": DISTRIBUTIONS,
    "all": SHARE_CHANGES | DISTRIBUTIONS,
}
"""The kinds of action that each adjustment undoes."""
ALWAYS: Final = -(2**62)
"""Before every bar."""
_NAMED: Final = 4

# ------------------------------------------------------------------------------------- factors


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What to multiply raw bars by: steps at ex-dates.

    Attributes
    ----------
    ex_dates : ndarray of int64, shape (n,)
        Ascending, each once; microseconds UTC of exchange midnights.
    price, volume : ndarray of float64, shape (n + 1,)
        For bars before the first ex-date, between this one and the next, and so on; the last is 1.
    """

    ex_dates: Int64s
    price: Floats
    volume: Floats

    def at(self, timestamps: Int64s) -> tuple[Floats, Floats]:
        """Return the factors of price and volume at bars in any order, shape (len(timestamps),)."""
        places = np.searchsorted(self.ex_dates, timestamps, side="right")
        return self.price[places], self.volume[places]

    def apply(self, bars: Bars) -> Bars:
        """Return ascending raw bars adjusted.

        Returns
        -------
        Bars
            With values of its own; `bars` itself where no action follows its first bar. NaN stays
            NaN; nothing is rounded.
        """
        if not len(bars) or not len(self.ex_dates) or self.ex_dates[-1] <= bars.timestamp[0]:
            return bars
        values = bars.values.copy()
        start = 0
        ends = np.searchsorted(bars.timestamp, self.ex_dates).tolist()
        for end, price, volume in zip(ends, self.price[:-1], self.volume[:-1], strict=True):
            if end > start:
                values[OPEN : CLOSE + 1, start:end] *= price
                values[VWAP, start:end] *= price
                values[VOLUME, start:end] *= volume
                start = end
        return Bars(bars.timestamp, values)


NOTHING: Final = Factors(np.empty(0, np.int64), np.ones(1), np.ones(1))
"""Raw bars stay as they are."""


@dataclass(frozen=True, slots=True)
class Closes:
    """The raw prices that distributions are measured by."""

    before: Mapping[int, float] = field(default_factory=dict)
    """By ex-date the close of the last session before it; absent where that session has no bar, NaN
    where nobody asked."""
    spun: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """By symbol and ex-date the first close of what was spun off; absent where there is none."""

    @property
    def unknown(self) -> set[int]:
        """The ex-dates before which nobody asked for the close."""
        return {ex_date for ex_date, close in self.before.items() if math.isnan(close)}


def factors(
    actions: Iterable[CorporateAction],
    closes: Closes,
    adjustment: Adjustment,
    after: int = ALWAYS,
) -> Factors:
    """Return the factors of one series.

    Parameters
    ----------
    actions : iterable of CorporateAction
        All in effect, in any order; those the adjustment does not undo have no influence.
    closes : Closes
        Needed for distributions only.
    adjustment : {"raw", "split", "dividend", "all"}
    after : int
        Label of the first bar to be adjusted, microseconds UTC: only actions with a later ex-date
        are looked at, so that a doubtful one before it refuses nothing.

    Raises
    ------
    DataQualityError
        An action contradicts itself, another one or the prices; a retry does not help.
    DataUnavailableError
        A price that it is measured by is missing; a retry does not help.
    """
    steps, found = _steps(concerned(actions, adjustment, after), closes)
    if found:
        raise refusal(found)
    return _cumulated(steps, adjustment)


def concerned(
    actions: Iterable[CorporateAction], adjustment: Adjustment, after: int
) -> list[CorporateAction]:
    """Return the actions that change bars from the label `after` on, ascending by ex-date and
    always in the same order."""
    family = FAMILIES[adjustment]
    wanted = (a for a in actions if a.kind in family and a.ex_date > after)
    if adjustment == "dividend":
        # A share change of the same ex-date may come first, and then decides what is measured.
        told = [a for a in actions if a.ex_date > after]
        days = {a.ex_date for a in told if a.kind in family}
        wanted = (a for a in told if a.kind in FAMILIES["all"] and a.ex_date in days)
    return sorted(wanted, key=_rank)


def _rank(action: CorporateAction) -> tuple[object, ...]:
    """Return a total order, so that sums and products do not depend on how actions arrive."""
    return (
        action.ex_date,
        -1 if action.order is None else action.order,
        action.kind.value,
        action.other_symbol or "",
        *(-1.0 if x is None else x for x in (action.new, action.old, action.cash)),
        action.id,
    )


def _cumulated(steps: Sequence[_Step], adjustment: Adjustment) -> Factors:
    if not steps:
        return NOTHING
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        new = _products_from([step.new for step in steps])
        old = _products_from([step.old for step in steps])
        kept = _products_from([step.kept for step in steps])
        if adjustment == "dividend":
            old = new = np.ones(len(steps) + 1)
        elif adjustment == "split":
            kept = np.ones(len(steps) + 1)
        # Each of the quotients is rounded once only.
        price, volume = old / new * kept, new / old
    if not ((price > 0) & np.isfinite(price) & (volume > 0) & np.isfinite(volume)).all():
        raise DataQualityError(
            "the factors of its corporate actions together are beyond any number",
            cure="ask for adjustment='raw', or correct the table corporate_actions",
        )
    return Factors(np.array([step.ex_date for step in steps], np.int64), price, volume)


def _products_from(terms: Sequence[float]) -> Floats:
    """Return for each position the product from there to the end, 1.0 past it.

    Built from the end: what lies before the bars asked for has no influence on any digit.
    """
    products: Floats = np.cumprod(np.array([1.0, *reversed(terms)]), dtype=np.float64)
    return products[::-1]


# -------------------------------------------------------------------------------------- doubts


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the actions of one ex-date have no factor."""

    symbol: str
    ex_date: int
    why: str
    lacking: bool = False
    """Whether a price is missing, rather than something wrong."""
    of_shares: bool = False
    """Whether it stands against adjustment ``split`` too."""

    @property
    def day(self) -> date:
        return _day(self.ex_date)

    def __str__(self) -> str:
        return f"{self.symbol} on {self.day}: {self.why}"


def doubts(actions: Iterable[CorporateAction], closes: Closes) -> list[Doubt]:
    """Return what an adjusted read across these actions would be refused for, ascending.

    Parameters
    ----------
    actions : iterable of CorporateAction
        Of one series, in any order.
    closes : Closes
    """
    return _steps(concerned(actions, "all", ALWAYS), closes)[1]


def refusal(found: Sequence[Doubt]) -> MarketDataError:
    """Return the error that names what is in doubt, and the way round it."""
    shown = "; ".join(str(doubt) for doubt in found[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    spared = not any(doubt.of_shares for doubt in found)
    other = 'adjustment="split" or "raw"' if spared else 'adjustment="raw"'
    kind = DataUnavailableError if all(doubt.lacking for doubt in found) else DataQualityError
    return kind(
        f"no factor for {shown}{more}",
        cure=f"ask for {other}; marketdata actions {found[0].symbol} lists what is known, to be "
        "corrected in the table corporate_actions",
        symbols=sorted({doubt.symbol for doubt in found}),
        ex_dates=sorted({str(doubt.day) for doubt in found}),
    )


class _RefusedError(Exception):
    def __init__(self, why: str, *, lacking: bool = False, of_shares: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.lacking = lacking
        self.of_shares = of_shares


@dataclass(slots=True)
class _Step:
    """What the actions of one ex-date do together."""

    ex_date: int
    new: float = 1.0
    old: float = 1.0
    kept: float = 1.0
    """The share of the price that distributions leave."""


def _steps(actions: Sequence[CorporateAction], closes: Closes) -> tuple[list[_Step], list[Doubt]]:
    steps: list[_Step] = []
    found: list[Doubt] = []
    for ex_date, group in groupby(actions, key=lambda a: a.ex_date):
        together = list(group)
        try:
            steps.append(_step(ex_date, together, closes))
        except _RefusedError as refused:
            found.append(
                Doubt(together[0].symbol, ex_date, refused.why, refused.lacking, refused.of_shares)
            )
    return steps, found


def _step(ex_date: int, actions: Sequence[CorporateAction], closes: Closes) -> _Step:
    """Return what the actions of one ex-date do together.

    Raises
    ------
    _RefusedError
        They have no factor.
    """
    step = _Step(ex_date)
    close = closes.before.get(ex_date, math.nan)
    for stage in _stages(actions):
        if stage[0].kind in SHARE_CHANGES:
            for action in stage:
                new, old = _shares(action)
                step.new *= new
                step.old *= old
                close *= old / new
            continue
        value = sum(_value(action, closes) for action in stage)
        if not value:
            continue
        if math.isnan(close):
            raise _RefusedError(_missing_close(stage), lacking=True)
        if not close > value:
            raise _RefusedError(
                f"{_named(stage)} of {value:.6g} is no less than the close of {close:.6g}"
            )
        step.kept *= (close - value) / close
        close -= value
    return step


def _stages(actions: Sequence[CorporateAction]) -> Iterator[list[CorporateAction]]:
    """Yield what happens at once, in order: share changes, or distributions."""
    changes = [a for a in actions if a.kind in SHARE_CHANGES]
    if not changes or len(changes) == len(actions):
        yield list(actions)
        return
    for _, group in groupby(actions, key=lambda a: a.order):
        stage = list(group)
        families = {a.kind in SHARE_CHANGES for a in stage}
        if stage[0].order is None or len(families) > 1:
            rest = [a for a in actions if a not in changes]
            raise _RefusedError(
                f"{_named(changes)} and {_named(rest)} share the ex-date, and which of them comes "
                "first is not stated"
            )
        yield stage


def _shares(action: CorporateAction) -> tuple[float, float]:
    _check_rates(action)
    split = as_split(action)
    assert split is not None
    return split.new, split.old


def _value(action: CorporateAction, closes: Closes) -> float:
    """Return what a distribution takes out of one share."""
    if action.kind is ActionKind.CASH_DIVIDEND:
        cash = action.cash
        if cash is None or not math.isfinite(cash) or cash < 0:
            raise _RefusedError(
                f"a dividend of {'nothing' if cash is None else f'{cash:g}'} a share"
            )
        return cash
    _check_rates(action)
    assert action.new is not None
    assert action.old is not None
    price = closes.spun.get((action.other_symbol or "", action.ex_date), math.nan)
    if not (math.isfinite(price) and price > 0):
        raise _RefusedError(
            f"the spin-off of {action.other_symbol or 'an unnamed company'} has no price: no daily "
            "close of it right after the ex-date is known",
            lacking=True,
        )
    return action.new / action.old * price


def _check_rates(action: CorporateAction) -> None:
    rates = (action.new, action.old)
    if not all(x is not None and math.isfinite(x) and x > 0 for x in rates):
        new, old = ("?" if x is None else f"{x:g}" for x in rates)
        of_shares = action.kind in SHARE_CHANGES
        raise _RefusedError(f"{_named([action])} of {new} shares for {old}", of_shares=of_shares)


def _missing_close(stage: Sequence[CorporateAction]) -> str:
    return f"{_named(stage)} is measured by the close of the session before, which has no bar"


def _named(actions: Sequence[CorporateAction]) -> str:
    return " and ".join(f"a {name}" for name in sorted({_NAMES[a.kind] for a in actions}))


_NAMES: Final = {
    ActionKind.SPLIT: "split",
    ActionKind.STOCK_DIVIDEND: "stock dividend",
    ActionKind.CASH_DIVIDEND: "dividend",
    ActionKind.SPIN_OFF: "spin-off",
}


def _day(ex_date: int) -> date:
    return from_micros(ex_date + DAY // 2).date()


# -------------------------------------------------------------------------------------- splits


def share_factors(splits: Sequence[Split]) -> Factors:
    """Return the factors of splits alone, in any order; several on one date multiply.

    Raises
    ------
    DataQualityError
        A split of zero, negative or non-finite shares; a retry does not help.
    """
    if not splits:
        return NOTHING
    steps: dict[int, _Step] = {}
    for split in sorted(splits, key=lambda s: (s.ex_date, s.new, s.old)):
        _check(split)
        step = steps.setdefault(split.ex_date, _Step(split.ex_date))
        step.new *= split.new
        step.old *= split.old
    return _cumulated(list(steps.values()), "split")


def split_factors(splits: Sequence[Split], timestamps: Int64s) -> tuple[Floats, Floats]:
    """Return what to multiply raw prices and raw volumes by.

    Parameters
    ----------
    splits : sequence of Split
        In any order; several on one date multiply.
    timestamps : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, in any order.

    Returns
    -------
    price_factor, volume_factor : ndarray of float64, shape (n,)
        Each is 1.0 where no split follows; their product is 1 up to rounding.

    Raises
    ------
    DataQualityError
        As `share_factors`.
    """
    return share_factors(splits).at(timestamps)


def adjust_bars(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return ascending raw bars on the share basis after all of `splits`; see `Factors.apply`.

    Raises
    ------
    DataQualityError
        As `share_factors`.
    """
    return share_factors(splits).apply(bars) if _concerned(bars, splits) else bars


def unsplit_bars(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return raw bars from ones that the source has already adjusted: the inverse of `adjust_bars`.

    Parameters
    ----------
    bars : Bars
        On today's share basis, as Yahoo gives them; ascending.
    splits : sequence of Split
        Every split from the first bar to today: the source has applied all of them, also those
        after the last bar.

    Raises
    ------
    DataQualityError
        As `share_factors`.
    """
    if not _concerned(bars, splits):
        return bars
    applied = share_factors(splits)
    # The two factors are each other's inverse, and each is rounded once only.
    return Factors(applied.ex_dates, applied.volume, applied.price).apply(bars)


def effective(splits: Sequence[Split], now_us: int) -> list[Split]:
    """Return the splits that have taken effect by `now_us`; announced ones change nothing yet."""
    return [s for s in splits if s.ex_date <= now_us]


def splits_within(splits: Sequence[Split], span: Span) -> list[Split]:
    """Return the splits with an ex-date in `span`, ascending."""
    found = [s for s in splits if span.start <= s.ex_date < span.end]
    return sorted(found, key=lambda s: s.ex_date)


def _concerned(bars: Bars, splits: Sequence[Split]) -> bool:
    return len(bars) > 0 and any(s.ex_date > bars.timestamp[0] for s in splits)


def _check(split: Split) -> None:
    if not all(math.isfinite(shares) and shares > 0 for shares in (split.new, split.old)):
        raise DataQualityError(
            f"a split of {split.new:g} shares for {split.old:g} has no factor",
            cure="ask for adjustment='raw', or correct the table corporate_actions",
        )
