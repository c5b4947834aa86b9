"""Cash and positions, and what fills and corporate actions do to them. Pure bookkeeping.

Cash is in the currency of the listings and may fall below 0 where the engine lets it; positions
are shares, signed. Nothing here knows prices but those it is told.
"""

from __future__ import annotations

import math

from algorithms.orders import Fill


class Account:
    """An account.

    Attributes
    ----------
    cash : float
        What selling short brought in is in it.
    positions : dict of str to float
        Shares held, signed; a symbol without a position is absent.
    fees : float
        Paid so far.
    """

    __slots__ = ("cash", "fees", "positions")

    def __init__(self, cash: float, positions: dict[str, float] | None = None) -> None:
        self.cash = cash
        self.positions = dict(positions or {})
        self.fees = 0.0

    def apply(self, fill: Fill) -> float:
        """Book a fill; return the position after it."""
        self.cash -= fill.quantity * fill.price + fill.fee
        self.fees += fill.fee
        after = self.positions.get(fill.symbol, 0.0) + fill.quantity
        # Fractions of shares leave dust that is no position.
        if abs(after) < 1e-9:
            self.positions.pop(fill.symbol, None)
            return 0.0
        self.positions[fill.symbol] = after
        return after

    def split(self, symbol: str, ratio: float, price: float, *, fractional: bool) -> float:
        """Turn each share into `ratio`; return the cash paid for what is no whole share.

        Parameters
        ----------
        price : float
            Of a share after the split: fractions are paid out at it, as brokers do.
        """
        held = self.positions.get(symbol)
        if not held:
            return 0.0
        after = held * ratio
        # 3-for-1 of 10/3 shares is 10, not 9.999999999999998.
        if abs(after - round(after)) < 1e-9:
            after = float(round(after))
        paid = 0.0
        if not fractional:
            whole = float(math.trunc(after))
            paid = (after - whole) * price
            after = whole
        self.cash += paid
        if after:
            self.positions[symbol] = after
        else:
            del self.positions[symbol]
        return paid

    def dividend(self, symbol: str, amount: float) -> float:
        """Book `amount` of cash a share; return what was paid (below 0 for a short position)."""
        paid = self.positions.get(symbol, 0.0) * amount
        self.cash += paid
        return paid
