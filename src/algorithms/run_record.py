"""What a run leaves behind, as plain arrays and lists: filled by the engine, read by `result`.

Nothing here computes. Instants are microseconds UTC, money is in the currency of the listings,
quantities are shares, signed. A record can be pickled, and copied to another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from algorithms.orders import Fill, Order

Floats = NDArray[np.float64]
Instants = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AppliedAction:
    """A corporate action as it was applied to the account.

    The engine records every action of the run's symbols within the run, also where nothing was
    held (then `cash` and `paid_out` are 0): charts need the splits.

    Attributes
    ----------
    time : int
        When it took effect: exchange midnight of the ex-date. A fill at that instant (the open of
        the ex-date's daily bar) comes after it.
    symbol : str
    kind : str
        ``split``, ``cash_dividend``, ... as `md.get_actions` names it.
    cash : float
        What it added to the account's cash, in all; below 0 where a short position paid.
    ratio : float
        Shares after it for one before; 1 where the number of shares stays.
    paid_out : float
        Shares it took away against `cash`, signed like the position and counted after `ratio`:
        the fraction of a share that a split left, or the whole position in a merger for cash. 0
        where `cash` is a distribution on shares that stay.
    """

    time: int
    symbol: str
    kind: str
    cash: float = 0.0
    ratio: float = 1.0
    paid_out: float = 0.0


@dataclass(frozen=True, slots=True)
class BacktestRun:
    """One run: what was asked, what was traded, and the account at every moment.

    A moment is the close of at least one bar of the main timeframe, from the first call of
    ``on_bar`` on. All arrays have one value per moment and hold what was true after it.

    Attributes
    ----------
    symbols, timeframe, params, algorithm
        What ran: `algorithm` is its name, `params` its parameters' values.
    cash : float
        What the account began with.
    times : int64 array
        The moments, ascending.
    equity, cash_curve : float64 array
        The account's value and its cash.
    positions, closes : dict of float64 array
        Shares held, and the last raw close known; NaN before a symbol's first.
    fills : list of Fill
        In order of time.
    orders : list of Order
        All that were given, in that order, as they ended.
    actions : list of AppliedAction
        In order of time.
    fingerprint : str
        Of the data, as `get_bars` reports it.
    seconds : float
        How long the run took.
    bars : int
        How many bars the algorithm saw.
    simulated : bool
        Whether any price came from the sandbox.
    warnings : list of str
    buy_and_hold : float64 array
        The same cash spread evenly over the symbols and held; NaN where it could not be had.
    settings : mapping
        What else decided the outcome: fees, slippage, adjustment, session, ...
    """

    symbols: tuple[str, ...]
    timeframe: str
    cash: float
    times: Instants
    equity: Floats
    cash_curve: Floats
    positions: dict[str, Floats]
    closes: dict[str, Floats]
    fills: list[Fill]
    orders: list[Order]
    actions: list[AppliedAction]
    params: Mapping[str, object]
    algorithm: str
    fingerprint: str
    seconds: float
    bars: int
    simulated: bool
    warnings: list[str]
    buy_and_hold: Floats
    settings: Mapping[str, object] = field(default_factory=dict)
