"""Where orders go in live trading: the port to a broker, and the words it speaks.

The paper venue needs no port: there the engine fills its own orders on live bars. A broker fills
them elsewhere, answers late, or not at all, and goes on while nobody watches. What an engine may
rely on is written here as post-conditions; `tests/contracts/test_venue.py` holds every
implementation to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from algorithms.orders import Fill, Order, OrderState, OrderType, TimeInForce

__all__ = [
    "BrokerAccount",
    "BrokerFill",
    "BrokerOrder",
    "BrokerVenue",
]


@dataclass(frozen=True, slots=True)
class BrokerAccount:
    """What an account is worth, in the account's currency, as the broker says it.

    Attributes
    ----------
    cash : float
        Settled or not; the proceeds of short sales are in it.
    equity : float
        Cash and positions at their last prices.
    buying_power : float
        What new positions may cost, less what open orders reserve.
    """

    cash: float
    equity: float
    buying_power: float


@dataclass(frozen=True, slots=True)
class BrokerOrder:
    """An order as the broker knows it.

    Attributes
    ----------
    id : str
        Ours, if it is one of ours; the broker's client order id otherwise.
    broker_id : str
        The broker's own.
    symbol : str
    quantity : float
        Shares, signed. NaN for an order of a sum of money that has not filled.
    type : OrderType
    limit, stop : float or None
    time_in_force : TimeInForce or None
        None for one that this engine does not give.
    state : OrderState
    filled : float
        Shares filled so far, signed.
    filled_price : float
        Their mean price; NaN before the first.
    submitted : int
        Microseconds UTC.
    parent : str or None
        The order it is tied to at the broker: a bracket's entry, or the first of two exits.
    reason : str
        The broker's own word for the state.
    """

    id: str
    broker_id: str
    symbol: str
    quantity: float
    type: OrderType
    limit: float | None
    stop: float | None
    time_in_force: TimeInForce | None
    state: OrderState
    filled: float
    filled_price: float
    submitted: int
    parent: str | None = None
    reason: str = ""


class BrokerFill(NamedTuple):
    """A `Fill`, with the broker's id of it: what was booked once is known again by that.

    Attributes
    ----------
    id : str
        The same in every answer that holds it, and of no other fill.
    """

    time: int
    order_id: str
    symbol: str
    quantity: float
    price: float
    fee: float
    tag: str
    id: str

    @property
    def fill(self) -> Fill:
        """The same without the broker's id."""
        return Fill(*self[:7])


class BrokerVenue(Protocol):
    """A broker. Thread-safe. Every call ends within the venue's time-out.

    All calls raise `algorithms.errors.VenueError`: ``transient`` where the same call may succeed
    later, with ``retry_after`` (seconds) among its facts where the broker said when.
    """

    def account(self) -> BrokerAccount:
        """Return what the account is worth now."""
        ...

    def positions(self) -> dict[str, float]:
        """Return the shares held by symbol, signed; symbols not held are absent."""
        ...

    def remember(self, orders: Iterable[Order]) -> None:
        """Learn again, after a restart, which orders of ours belong together. Sends nothing.

        A broker that keeps an entry's exits itself names them itself: only through their entry
        are they known as the orders that they are here.
        """
        ...

    def submit(self, order: Order, children: Sequence[Order] = ()) -> frozenset[str]:
        """Give an order, and say which orders the broker has from now on.

        Idempotent by ``order.id``: an order that is there already is not given again, whatever
        became of it since.

        Parameters
        ----------
        order : Order
        children : sequence of Order
            Orders that belong to it. Those whose ``parent`` it is wait until it has filled: its
            take-profit and stop-loss. One whose ``twin`` it is (and whose parent it is not) is
            cancelled when it fills, and cancels it; a broker that cannot tie the two takes the
            stop-loss alone, and refuses the take-profit.

        Returns
        -------
        frozenset of str
            ``order.id``, and the ids of those children that the broker keeps itself: they stand
            although nobody of ours is there. Children that are not named are the caller's to give
            when their time comes. All of them or none.

        Raises
        ------
        VenueError
            ``transient``: the outcome is unknown, or the broker could not take it now. Submit the
            same order again: that settles it. Not ``transient``: the order is not at the broker
            and was refused (``refused`` is true among the facts), or another one is there under
            its id.
        """
        ...

    def cancel(self, order_id: str) -> None:
        """Ask for an order to be cancelled; a final one is left as it is, without an error.

        Whether it was cancelled or filled first, `find` tells. Cancelling one order of a group
        that the broker keeps (an entry, or one of its exits) cancels what is left of the group.

        Raises
        ------
        VenueError
            Not ``transient`` if the broker has no such order.
        """
        ...

    def find(self, order_id: str) -> BrokerOrder | None:
        """Return an order by our id, whatever its state; None if the broker has none.

        None does not yet mean that an order of unknown outcome will not arrive: the request may be
        under way. Submitting it again settles that.
        """
        ...

    def open_orders(self) -> list[BrokerOrder]:
        """Return every order that is not final, those of others and held ones included, by the
        time they were submitted."""
        ...

    def fills_since(self, us: int) -> list[BrokerFill]:
        """Return every fill at or after `us`, each once, by time; those of others included.

        Brokers may report a fill a little late, behind others: ask from some time before the
        newest one known, and leave out those whose ``id`` is known.
        """
        ...
