"""How far two brokers' bars of the same span agree: counted and sized by field. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketdata.types import COLUMNS, Bars, Floats

TOLERANCES: Final[Mapping[str, float]] = {
    "open": 0.001,
    "high": 0.001,
    "low": 0.001,
    "close": 0.001,
    "vwap": 0.001,
    "volume": 0.1,
    "trade_count": 0.1,
}
"""Relative differences that count as agreement. A price may be a tenth of a percent apart: one
broker's close is the last eligible trade, another's the primary exchange's auction. Volumes differ
by nature, for brokers count other trades: a tenth."""

FIELDS: Final = ("open", "high", "low", "close", "volume")
"""The fields that every broker has."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one field of one symbol agrees."""

    symbol: str
    field: str
    tolerance: float
    """Largest relative difference that counts as equal."""
    compared: int
    """Bars in which both have a value."""
    equal: int
    """Of these, how many differ by `tolerance` at most."""
    largest: float
    """The largest relative difference; NaN where nothing was compared."""
    at: int | None
    """Label of the bar with the largest difference; None where nothing differs."""
    values: tuple[float, float]
    """The first broker's value there, and the second's; NaN without `at`."""
    only_first: int
    """Bars that only the first broker has."""
    only_second: int

    @property
    def agrees(self) -> bool:
        """Whether both have the same bars, and all compared values are within the tolerance."""
        return self.equal == self.compared and not self.only_first and not self.only_second


def compare(
    symbol: str, first: Bars, second: Bars, tolerances: Mapping[str, float]
) -> list[Agreement]:
    """Return how two brokers' bars agree, one entry for each field of `tolerances`.

    A relative difference is ``|a - b| / max(|a|, |b|)``, and 0 where both are 0.
    """
    labels, here, there = np.intersect1d(
        first.timestamp, second.timestamp, assume_unique=True, return_indices=True
    )
    only = len(first) - len(labels), len(second) - len(labels)
    found = []
    for name, tolerance in tolerances.items():
        row = COLUMNS.index(name)
        a, b = first.values[row, here], second.values[row, there]
        both = np.isfinite(a) & np.isfinite(b)
        differences = _relative(a[both], b[both])
        worst = int(differences.argmax()) if len(differences) else 0
        differs = bool(len(differences)) and differences[worst] > 0
        found.append(
            Agreement(
                symbol,
                name,
                tolerance,
                len(differences),
                int(np.count_nonzero(differences <= tolerance)),
                float(differences[worst]) if len(differences) else float("nan"),
                int(labels[both][worst]) if differs else None,
                (float(a[both][worst]), float(b[both][worst]))
                if differs
                else (float("nan"), float("nan")),
                *only,
            )
        )
    return found


def _relative(a: Floats, b: Floats) -> Floats:
    scale = np.maximum(np.abs(a), np.abs(b))
    shares: Floats = np.zeros(len(scale))
    np.divide(np.abs(a - b), scale, out=shares, where=scale > 0)
    return shares


def tolerances_of(
    fields: Sequence[str] | None, tolerance: float | Mapping[str, float] | None
) -> dict[str, float]:
    """Return the tolerance of each field that is compared.

    Parameters
    ----------
    fields : sequence of str, optional
        `FIELDS` by default.
    tolerance : float or mapping, optional
        One for all fields, or for some; `TOLERANCES` for the rest.
    """
    chosen = FIELDS if fields is None else fields
    if isinstance(tolerance, int | float):
        return dict.fromkeys(chosen, float(tolerance))
    return {name: {**TOLERANCES, **(tolerance or {})}[name] for name in chosen}


def disagreeing(found: Iterable[Agreement]) -> list[Agreement]:
    """Return those that do not agree, the largest difference first."""
    return sorted(
        (each for each in found if not each.agrees),
        key=lambda each: -each.largest if each.largest == each.largest else float("-inf"),
    )
