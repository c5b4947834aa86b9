"""What a runner has done, in figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cycles:
    """What a runner has done, for whoever watches it.

    Attributes
    ----------
    count, stored, steps, moments, orders, fills : int
        Cycles, transactions, calls, and what they brought.
    seconds : float
        Of the last cycle: from its bars to the end of the last call.
    stored_seconds : float
        Of its transaction.
    longest : float
        Of all cycles.
    """

    count: int = 0
    stored: int = 0
    steps: int = 0
    moments: int = 0
    orders: int = 0
    fills: int = 0
    seconds: float = 0.0
    stored_seconds: float = 0.0
    longest: float = 0.0
