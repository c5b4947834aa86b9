"""What the corporate actions of one ex-date do together, or why that cannot be said. Pure.

Formulas and sources are those of `adjust`. What has no unambiguous factor becomes a `Doubt`, and
never a factor of zero or below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Final

from marketdata.clock import from_micros
from marketdata.corporate_actions import SHARE_CHANGES, ActionKind, CorporateAction, as_split
from marketdata.errors import DataQualityError, DataUnavailableError, MarketDataError
from marketdata.types import DAY

_NAMED: Final = 4


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
class Step:
    """What the actions of one ex-date do together."""

    ex_date: int
    new: float = 1.0
    old: float = 1.0
    kept: float = 1.0
    """The share of the price that distributions leave."""


def steps(actions: Sequence[CorporateAction], closes: Closes) -> tuple[list[Step], list[Doubt]]:
    """Return what happens at each ex-date of actions in their order, and what is in doubt."""
    done: list[Step] = []
    found: list[Doubt] = []
    for ex_date, group in groupby(actions, key=lambda a: a.ex_date):
        together = list(group)
        try:
            done.append(_step(ex_date, together, closes))
        except _RefusedError as refused:
            found.append(
                Doubt(together[0].symbol, ex_date, refused.why, refused.lacking, refused.of_shares)
            )
    return done, found


def _step(ex_date: int, actions: Sequence[CorporateAction], closes: Closes) -> Step:
    """Return what the actions of one ex-date do together.

    Raises
    ------
    _RefusedError
        They have no factor.
    """
    step = Step(ex_date)
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
