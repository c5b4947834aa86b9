"""What trading costs beside the price: fees, and slippage. Pure.

Both are protocols: any object with the method serves. A fee is paid for a fill and never below 0.
Slippage moves the price of market and stop orders against the trader; a limit order has its price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Fees(Protocol):
    """What a fill costs beside its price."""

    def fee(self, quantity: float, price: float) -> float:
        """Return what is paid for `quantity` shares (signed) at `price`; not below 0."""
        ...


class Slippage(Protocol):
    """How far from the market's price an order fills, and how much of it a bar can take."""

    def price(self, price: float, quantity: float, volume: float) -> float:
        """Return what is paid where the bar says `price`, in a bar of `volume` shares."""
        ...

    def most(self, volume: float) -> float:
        """Return the shares that one order may have of a bar of `volume`; infinite for all."""
        ...


@dataclass(frozen=True, slots=True)
class NoFees:
    """Nothing: US stocks at brokers without commission."""

    def fee(self, quantity: float, price: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class PerShare:
    """An amount for each share, and at least `minimum` for a fill."""

    amount: float = 0.005
    minimum: float = 1.0

    def fee(self, quantity: float, price: float) -> float:
        return max(abs(quantity) * self.amount, self.minimum)


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of the money that changes hands (0.001 is 0.1 %), and at least `minimum`."""

    rate: float
    minimum: float = 0.0

    def fee(self, quantity: float, price: float) -> float:
        return max(abs(quantity) * price * self.rate, self.minimum)


@dataclass(frozen=True, slots=True)
class NoSlippage:
    """The bar's own price, for any quantity."""

    def price(self, price: float, quantity: float, volume: float) -> float:
        return price

    def most(self, volume: float) -> float:
        return float("inf")


@dataclass(frozen=True, slots=True)
class BasisPoints:
    """A fixed share of the price, in hundredths of a percent, for any quantity.

    One basis point is about half the quoted spread of the most liquid US stocks.
    """

    points: float = 1.0

    def price(self, price: float, quantity: float, volume: float) -> float:
        move = price * self.points / 10_000
        return price + move if quantity > 0 else price - move

    def most(self, volume: float) -> float:
        return float("inf")


@dataclass(frozen=True, slots=True)
class VolumeShare:
    """No more than a share of the bar's volume, at a price that moves with the square of it.

    ``price * (1 +- impact * (quantity / volume) ** 2)``; what is left waits for the next bar. The
    model of zipline's ``VolumeShareSlippage``, with its defaults.
    """

    limit: float = 0.025
    impact: float = 0.1

    def price(self, price: float, quantity: float, volume: float) -> float:
        share = abs(quantity) / volume if volume > 0 else self.limit
        move = price * self.impact * share * share
        return price + move if quantity > 0 else price - move

    def most(self, volume: float) -> float:
        return self.limit * volume
