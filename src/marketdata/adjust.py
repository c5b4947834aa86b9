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

What has no unambiguous factor is refused (`doubts`, `action_steps`), and never becomes a factor of zero or below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketdata.action_steps import Closes, Doubt, Step, refusal, steps
from marketdata.corporate_actions import (
    DISTRIBUTIONS,
    SHARE_CHANGES,
    ActionKind,
    CorporateAction,
)
from marketdata.errors import DataQualityError
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
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
    steps : tuple of Step
        What happens at each ex-date by itself, without what the adjustment does not undo.
    """

    ex_dates: Int64s
    price: Floats
    volume: Floats
    steps: tuple[Step, ...] = ()

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
    done, found = steps(concerned(actions, adjustment, after), closes)
    if found:
        raise refusal(found)
    return _cumulated(done, adjustment)


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


def _cumulated(done: Sequence[Step], adjustment: Adjustment) -> Factors:
    if not done:
        return NOTHING
    if adjustment == "dividend":
        done = [Step(step.ex_date, kept=step.kept) for step in done]
    elif adjustment == "split":
        done = [Step(step.ex_date, step.new, step.old) for step in done]
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        new = _products_from([step.new for step in done])
        old = _products_from([step.old for step in done])
        kept = _products_from([step.kept for step in done])
        # Each of the quotients is rounded once only.
        price, volume = old / new * kept, new / old
    if not ((price > 0) & np.isfinite(price) & (volume > 0) & np.isfinite(volume)).all():
        raise DataQualityError(
            "the factors of its corporate actions together are beyond any number",
            cure="ask for adjustment='raw', or correct the table corporate_actions",
        )
    ex_dates = np.array([step.ex_date for step in done], np.int64)
    return Factors(ex_dates, price, volume, tuple(done))


def _products_from(terms: Sequence[float]) -> Floats:
    """Return for each position the product from there to the end, 1.0 past it.

    Built from the end: what lies before the bars asked for has no influence on any digit.
    """
    products: Floats = np.cumprod(np.array([1.0, *reversed(terms)]), dtype=np.float64)
    return products[::-1]


def doubts(actions: Iterable[CorporateAction], closes: Closes) -> list[Doubt]:
    """Return what an adjusted read across these actions would be refused for, ascending.

    Parameters
    ----------
    actions : iterable of CorporateAction
        Of one series, in any order.
    closes : Closes
    """
    return steps(concerned(actions, "all", ALWAYS), closes)[1]


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
    days: dict[int, Step] = {}
    for split in sorted(splits, key=lambda s: (s.ex_date, s.new, s.old)):
        _check(split)
        step = days.setdefault(split.ex_date, Step(split.ex_date))
        step.new *= split.new
        step.old *= split.old
    return _cumulated(list(days.values()), "split")


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
