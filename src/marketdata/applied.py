"""Which corporate actions changed an answer, and a word that names them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from marketdata.adjust import NOTHING, Factors
from marketdata.corporate_actions import CorporateAction
from marketdata.types import Adjustment, Bars, Split


class Applied(dict[str, list[CorporateAction]]):
    """By symbol, the actions that changed an answer's bars, ascending by ex-date."""

    def __init__(self, adjustment: Adjustment = "raw") -> None:
        super().__init__()
        self.adjustment = adjustment
        self.factors: dict[str, Factors] = {}
        self.in_effect: dict[str, list[CorporateAction]] = {}
        """By symbol every action in effect, those before the answer's first bar too."""

    def of(self, symbol: str) -> Applied:
        """Return what was applied to one symbol."""
        found = Applied(self.adjustment)
        for kept, known in ((found, self), (found.in_effect, self.in_effect)):
            if symbol in known:
                kept[symbol] = known[symbol]
        if symbol in self.factors:
            found.factors[symbol] = self.factors[symbol]
        return found

    def add(self, other: Applied) -> None:
        """Put in what was applied to other symbols."""
        self.update(other)
        self.factors |= other.factors
        self.in_effect |= other.in_effect

    def adjusted(self, symbol: str, bars: Bars) -> Bars:
        """Return further raw bars of a symbol adjusted like the answer's."""
        return self.factors.get(symbol, NOTHING).apply(bars)


def action_version(applied: Mapping[str, Sequence[CorporateAction]]) -> str:
    """Return a word for the actions that were applied: ``0`` for none; it changes with every
    one of them, its values, and the close that it was measured by."""
    known = applied.factors if isinstance(applied, Applied) else {}
    parts = []
    for symbol in sorted(applied):
        actions = sorted(applied[symbol], key=_values_of)
        if not actions:
            continue
        parts += ["|".join(map(str, (symbol, *_values_of(action)))) for action in actions]
        if symbol in known:
            parts.append(f"{known[symbol].price.tolist()}")
    if not parts:
        return "0"
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def _values_of(action: CorporateAction) -> tuple[str | int, ...]:
    shares = (action.new, action.old, action.cash)
    order = "" if action.order is None else action.order
    return (
        action.ex_date,
        action.kind.value,
        *map(repr, shares),
        action.other_symbol or "",
        str(order),
    )


def split_version(symbol: str, splits: Sequence[Split]) -> str:
    """Return a word for all splits of a symbol, as kept indicators carry it; ``0`` for none."""
    parts = [f"{symbol}:{x.ex_date}:{x.new}:{x.old}" for x in splits]
    return hashlib.blake2b("|".join(parts).encode(), digest_size=6).hexdigest() if parts else "0"
