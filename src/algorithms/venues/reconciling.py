"""What we believe and what the broker says: the differences, and what to do about each.

Reading (`read_venue`) and judging (`reconcile`, pure) are apart. Nothing is done here: whoever asked
acts on the remedies, in the order in which `Remedy` lists them.

====================================================  ==========  ===================================
difference                                            remedy      why
====================================================  ==========  ===================================
more filled there than booked here                    book        the broker's fills are what happened
final there, waiting here; alive there, held here     mark        the broker's state is what counts
waiting there, over here                              cancel      nobody would notice its fill
waiting here, not there, nothing filled               resubmit    it never arrived; its id settles it
waiting there, not known here, but of our making      adopt       an earlier process gave it
not known here, and not of our making                 report      other users of the account
booked here, not there; other shares or prices        report      nobody but a person knows why
a position that the above does not explain            report      splits, transfers, other users
====================================================  ==========  ===================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from algorithms.orders import Order, OrderState
from algorithms.venues import BrokerFill, BrokerOrder, BrokerVenue

_DUST: Final = 1e-9
"""Shares that are no difference; brokers count nine decimal places."""
_READINGS: Final = 3


class Remedy(StrEnum):
    """What to do about a difference; in the order in which to do it."""

    BOOK = "book"
    MARK = "mark"
    CANCEL = "cancel"
    ADOPT = "adopt"
    RESUBMIT = "resubmit"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that we and the broker see differently.

    Attributes
    ----------
    remedy : Remedy
    subject : str
        The id of an order, or the symbol of a position.
    says : str
        What differs, for people.
    order : Order or None
        As it is here.
    there : BrokerOrder or None
        As it is at the broker.
    quantity : float
        Shares, signed, that the broker has more of than we: filled, or held.
    fills : tuple of BrokerFill
        Of an order to book: its fills that were not booked.
    """

    remedy: Remedy
    subject: str
    says: str
    order: Order | None = None
    there: BrokerOrder | None = None
    quantity: float = 0.0
    fills: tuple[BrokerFill, ...] = ()


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """All differences, by remedy."""

    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        return not self.differences

    def of(self, remedy: Remedy) -> list[Difference]:
        """Return the differences of one remedy."""
        return [d for d in self.differences if d.remedy is remedy]

    def __str__(self) -> str:
        lines = [f"{d.remedy}: {d.subject}: {d.says}" for d in self.differences]
        return "\n".join(lines) or "nothing differs"


@dataclass(frozen=True, slots=True)
class VenueReading:
    """What a broker said, of one moment.

    Attributes
    ----------
    orders : mapping of str to BrokerOrder
        Every open order, and every order asked about that the broker has.
    positions : mapping of str to float
    fills : tuple of BrokerFill
    steady : bool
        Whether the positions stood still while all was read. Where they did not, what is said of
        positions may be the past already.
    """

    orders: Mapping[str, BrokerOrder]
    positions: Mapping[str, float]
    fills: tuple[BrokerFill, ...]
    steady: bool = True


def read_venue(venue: BrokerVenue, orders: Iterable[Order], since_us: int) -> VenueReading:
    """Read what `venue` has: open orders, the state of `orders`, positions, fills since a moment.

    Something may fill while it is read: it is read again, three times at most.

    Raises
    ------
    VenueError
        See `BrokerVenue`.
    """
    asked = list(orders)
    venue.remember(asked)
    for reading in range(1, _READINGS + 1):
        before = venue.positions()
        found = {o.id: o for o in venue.open_orders()}
        for order in asked:
            # An exit that the broker keeps shows for as long as its entry waits there.
            waits = order.state is OrderState.HELD and order.parent in found
            if order.id not in found and not (waits and not found[str(order.parent)].state.final):
                there = venue.find(order.id)
                if there is not None:
                    found[order.id] = there
        fills = tuple(venue.fills_since(since_us))
        after = venue.positions()
        if before == after or reading == _READINGS:
            break
    return VenueReading(found, after, fills, steady=before == after)


def reconcile(
    expected_orders: Iterable[Order],
    expected_positions: Mapping[str, float],
    reading: VenueReading,
    *,
    booked: Collection[str] = (),
    ours: Callable[[str], bool] = lambda order_id: False,
) -> Reconciliation:
    """Compare what we believe with what a broker said. Pure.

    Parameters
    ----------
    expected_orders : iterable of Order
        Orders of ours; waiting ones, and those that ended since the last comparison.
    expected_positions : mapping of str to float
        Shares by symbol, signed, that follow from the fills booked so far.
    reading : VenueReading
        See `read_venue`.
    booked : collection of str
        Ids of the fills that are booked already.
    ours : callable
        Whether an order id is one that this engine makes, for orders that are not expected.
    """
    orders = {o.id: o for o in expected_orders}
    found: list[Difference] = []
    for order in orders.values():
        there = reading.orders.get(order.id)
        if there is None:
            found.extend(_not_there(order))
        else:
            found.extend(_both(order, there, reading.fills, booked))
    for ident, there in reading.orders.items():
        if ident not in orders and not there.state.final:
            found.append(_not_here(there, adopt=ours(ident)))
    found.extend(_positions(expected_positions, reading, found))
    rank = list(Remedy)
    return Reconciliation(tuple(sorted(found, key=lambda d: rank.index(d.remedy))))


def _not_there(order: Order) -> Iterator[Difference]:
    if order.state is not OrderState.OPEN:
        return
    if abs(order.filled) > _DUST:
        says = f"{order.filled:g} shares are booked of an order that the broker does not have"
        yield Difference(Remedy.REPORT, order.id, says, order=order)
    else:
        yield Difference(Remedy.RESUBMIT, order.id, "the broker does not have it", order=order)


def _not_here(there: BrokerOrder, *, adopt: bool) -> Difference:
    says = f"{there.quantity:g} {there.symbol} {there.type} waits at the broker, not here"
    remedy = Remedy.ADOPT if adopt else Remedy.REPORT
    return Difference(remedy, there.id, says, there=there, quantity=there.filled)


def _both(
    order: Order, there: BrokerOrder, fills: tuple[BrokerFill, ...], booked: Collection[str]
) -> Iterator[Difference]:
    def differ(remedy: Remedy, says: str, **facts: object) -> Difference:
        return Difference(remedy, order.id, says, order=order, there=there, **facts)  # type: ignore[arg-type]

    more = there.filled - order.filled
    if abs(more) > _DUST:
        says = f"{there.filled:g} shares have filled there, {order.filled:g} are booked here"
        if more * order.quantity > 0:
            missed = tuple(f for f in fills if f.order_id == order.id and f.id not in booked)
            yield differ(Remedy.BOOK, says, quantity=more, fills=missed)
        else:
            yield differ(Remedy.REPORT, says, quantity=more)
    ended = there.state.final and order.is_open
    if ended and not (there.state is OrderState.FILLED and abs(more) > _DUST):
        yield differ(Remedy.MARK, f"it is {there.state} there ({there.reason})")
    elif order.state is OrderState.HELD and there.state is OrderState.OPEN:
        yield differ(Remedy.MARK, "it has come to life there")
    elif order.state.final and order.state is not OrderState.FILLED and not there.state.final:
        yield differ(Remedy.CANCEL, f"it is {order.state} here and waits there")
    if order.is_open and not there.state.final and abs(there.quantity - order.quantity) > _DUST:
        yield differ(Remedy.REPORT, f"it is for {there.quantity:g} there, {order.quantity:g} here")


def _positions(
    expected: Mapping[str, float], reading: VenueReading, found: list[Difference]
) -> Iterator[Difference]:
    """Yield what fills to be booked do not explain."""
    shares = dict(expected)
    for difference in found:
        if difference.remedy is Remedy.BOOK and difference.there is not None:
            symbol = difference.there.symbol
            shares[symbol] = shares.get(symbol, 0.0) + difference.quantity
    for symbol in sorted(shares.keys() | reading.positions.keys()):
        here, there = shares.get(symbol, 0.0), reading.positions.get(symbol, 0.0)
        if abs(there - here) > _DUST:
            says = f"{there:g} shares there, {here:g} here with what is to be booked"
            yield Difference(Remedy.REPORT, symbol, says, quantity=there - here)
