"""The orders of one strategy: what waits, what each bar does to it, and what came of it.

In a back-test and with the paper venue the bars fill the orders here, by the rules of `matching`;
with a broker the fills come from outside (`Blotter.book`) and only the bookkeeping is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from algorithms.account import Account
from algorithms.costs import BasisPoints, Fees, NoFees, Slippage
from algorithms.errors import OrderError
from algorithms.lines import NEVER, Cursor
from algorithms.matching import price_in_bar, slips, stop_after_entry
from algorithms.orders import Fill, Order, OrderState, TimeInForce

_DUST = 1e-9
MOST_GIVEN: Final = 10_000
"""Orders of one moment after which a strategy counts as broken: it would fill the memory."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What trading costs, and how far the account may reach.

    Attributes
    ----------
    fees : Fees
    slippage : Slippage
    leverage : float
        The most that positions may be worth together, long and short, as a multiple of equity. An
        order that would reach beyond is filled as far as it may, and the rest is cancelled.
    """

    fees: Fees = field(default_factory=NoFees)
    slippage: Slippage = field(default_factory=BasisPoints)
    leverage: float = 1.0


class Bar:
    """The prices of one bar, as orders meet it; columns of all bars are read in place."""

    __slots__ = ("_columns", "_labels")

    def __init__(self, labels: Any, columns: list[Any]) -> None:
        self._labels = labels
        self._columns = columns

    def at(self, index: int) -> tuple[int, float, float, float, float]:
        """Return label, open, high, low and volume of a bar."""
        opened, high, low, _, volume = self._columns
        return self._labels[index], opened[index], high[index], low[index], volume[index]


class Blotter:
    """The orders of one strategy.

    Attributes
    ----------
    account : Account
    waiting : dict of str to Order
        Held and open orders by id, as they came to wait.
    given : list of Order
        Given since the last `accept`.
    orders : list of Order
        Every order accepted or refused so far, oldest first.
    fills : list of Fill
    moments : list of int
        The close of the bar each fill happened in.
    changed : dict of str to Order
        What changed since it was last taken, for whoever keeps a journal.
    """

    def __init__(
        self,
        account: Account,
        costs: Costs,
        cursors: dict[str, Cursor],
        mark: Callable[[str, int], float],
        *,
        fractional: bool = False,
        prefix: str = "",
        matches: bool = True,
    ) -> None:
        self.account = account
        self.costs = costs
        self.fractional = fractional
        self.prefix = prefix
        self.matches = matches
        self.count = 0
        self.waiting: dict[str, Order] = {}
        self.given: list[Order] = []
        self.orders: list[Order] = []
        self.fills: list[Fill] = []
        self.moments: list[int] = []
        self.changed: dict[str, Order] = {}
        self.expiry = NEVER
        self._cursors = cursors
        self._mark = mark
        self._now = 0

    # ------------------------------------------------------------------------------- giving

    def give(
        self,
        now: int,
        symbol: str,
        quantity: float,
        limit: float | None,
        stop: float | None,
        force: TimeInForce,
        tag: str,
        take_profit: float | None,
        stop_loss: float | None,
    ) -> Order:
        """Make an order, and those that follow its fill; they wait for `accept`."""
        if len(self.given) >= MOST_GIVEN:
            raise OrderError(
                f"{MOST_GIVEN:,} orders were given at one moment",
                cure="an order is given once and waits: look at ctx.orders before giving more",
            )
        entry = Order(self._new_id(), symbol, quantity, limit, stop, force, now, tag=tag)
        self.given.append(entry)
        if take_profit is None and stop_loss is None:
            return entry
        # The stop-loss first: where a bar reaches both, it is the one that counts.
        children = [
            Order(
                self._new_id(), symbol, -quantity, profit, loss, TimeInForce.GTC, now,
                parent=entry.id, tag=tag, state=OrderState.HELD,
            )
            for loss, profit in ((stop_loss, None), (None, take_profit))
            if (loss, profit) != (None, None)
        ]  # fmt: skip
        if len(children) == 2:
            children[0].twin, children[1].twin = children[1].id, children[0].id
        self.given.extend(children)
        return entry

    def accept(
        self, day_end: Callable[[], int], refuse: Callable[[Order], str | None] | None
    ) -> list[Order]:
        """Let what was given wait from now on; return it, the refused with its reason."""
        given, self.given = self.given, []
        refused: set[str] = set()
        for order in given:
            self.orders.append(order)
            self.changed[order.id] = order
            waits = order.state is OrderState.OPEN
            if not waits and order.state.final:
                continue
            reason = refuse(order) if refuse is not None and order.parent is None else None
            if order.parent in refused:
                reason = "its entry was refused"
            if reason:
                order.state, order.reason = OrderState.REJECTED, reason
                refused.add(order.id)
                continue
            if waits and order.time_in_force is TimeInForce.DAY:
                order.expires = day_end()
                self.expiry = min(self.expiry, order.expires)
            self.waiting[order.id] = order
            if waits:
                self._cursors[order.symbol].waiting.append(order)
        return given

    def adopt(self, orders: list[Order]) -> None:
        """Let orders of an earlier process wait again."""
        for order in orders:
            self.waiting[order.id] = order
            self.orders.append(order)
            if order.state is OrderState.OPEN:
                self._cursors[order.symbol].waiting.append(order)
            if order.expires is not None:
                self.expiry = min(self.expiry, order.expires)

    # ------------------------------------------------------------------------------ filling

    def meet(self, cursor: Cursor, bar: Bar, index: int, now: int) -> list[Fill]:
        """Let the orders of a symbol meet the bar of this index; return the fills."""
        if not self.matches:
            return []
        self._now = now
        label, opened, high, low, volume = bar.at(index)
        fills: list[Fill] = []
        waiting = cursor.waiting.copy()
        for order in waiting:
            if order.state is not OrderState.OPEN or label < order.created:
                continue
            if order.expires is not None and order.expires <= label:
                self._end(order, OrderState.EXPIRED, "its session ended")
                continue
            triggered = order.triggered
            price = price_in_bar(order, opened, high, low)
            if order.triggered != triggered:
                self.changed[order.id] = order
            if price is None:
                continue
            lapses = order.expires is not None and order.expires < cursor.closes[index]
            if lapses and price != opened:
                # The bar has more days than the order: only its open surely was on the first.
                self._end(order, OrderState.EXPIRED, "its session ended")
                continue
            fill = self._fill(order, price, label, volume)
            if fill is None:
                continue
            fills.append(fill)
            at_open = price == opened
            for child in self._children(order):
                if child in waiting:
                    continue  # an earlier part of the entry woke it: it meets the bar itself
                met = self._meet_child(
                    child, at_open, fill.price, (label, opened, high, low, volume)
                )
                if met is not None:
                    fills.append(met)
        return fills

    def _meet_child(
        self,
        child: Order,
        at_open: bool,
        entry: float,
        bar: tuple[int, float, float, float, float],
    ) -> Fill | None:
        """Let an order that its parent's fill has just brought to life meet the same bar."""
        label, opened, high, low, volume = bar
        if child.state is not OrderState.OPEN:
            return None
        if at_open:
            price = price_in_bar(child, opened, high, low)
        else:
            price = stop_after_entry(child, entry, high, low)
        return None if price is None else self._fill(child, price, label, volume)

    def _fill(self, order: Order, price: float, label: int, volume: float) -> Fill | None:
        """Fill as much of an order as may be at the bar's price; return the fill."""
        slippage = self.costs.slippage
        quantity = order.remaining
        if order.parent is not None:
            quantity = self._closing(order, quantity)
            if not quantity:
                self._end(order, OrderState.CANCELED, "the position was closed otherwise")
                return None
        most = slippage.most(volume)
        if abs(quantity) > most:
            most = most if self.fractional else math.floor(most)
            if most <= 0:
                return None
            quantity = math.copysign(most, quantity)
        if slips(order):
            price = slippage.price(price, quantity, volume)
        allowed = self._affordable(order, quantity, price, label)
        if not allowed:
            self._end(order, OrderState.CANCELED, "the account cannot pay for it")
            return None
        short = allowed != quantity
        fee = self.costs.fees.fee(allowed, price)
        fill = Fill(label, order.id, order.symbol, allowed, price, fee, order.tag)
        self.book(fill, self._now)
        if short and order.is_open:
            self._end(order, OrderState.CANCELED, "the account cannot pay for more")
        return fill

    def book(self, fill: Fill, moment: int) -> None:
        """Book a fill of an order that is known here: on the account, on it, on its bracket."""
        order = self.waiting[fill.order_id]
        position = self.account.apply(fill)
        self.fills.append(fill)
        self.moments.append(moment)
        before = order.filled
        order.filled += fill.quantity
        paid = (order.filled_price * before if before else 0.0) + fill.price * fill.quantity
        order.filled_price = paid / order.filled
        self.changed[order.id] = order
        if abs(order.remaining) < _DUST or (order.parent is not None and not position):
            self._end(order, OrderState.FILLED, order.reason)
        self._wake_children(order)
        if order.parent is not None and order.state is OrderState.FILLED:
            self._end_id(order.twin, "the other order of the bracket was filled")
            # What is left of the entry would open a position that nothing guards.
            self._end_id(order.parent, "its bracket closed what had filled")
        if not position and self.waiting:
            for other in [o for o in self.waiting.values() if o.symbol == fill.symbol]:
                if other.parent is not None and other.state is OrderState.OPEN:
                    self._end(other, OrderState.CANCELED, "the position was closed otherwise")

    def _closing(self, order: Order, quantity: float) -> float:
        """Return what of a child's quantity closes the position it belongs to."""
        held = self.account.positions.get(order.symbol, 0.0)
        if held * quantity >= 0:
            return 0.0
        return math.copysign(min(abs(held), abs(quantity)), quantity)

    def _affordable(self, order: Order, quantity: float, price: float, label: int) -> float:
        """Return how much of a quantity leaves the positions within the account's reach."""
        positions = self.account.positions
        held = positions.get(order.symbol, 0.0)
        after = held + quantity
        if abs(after) <= abs(held) and after * held >= 0:
            return quantity
        others = net = 0.0
        for symbol, shares in positions.items():
            if symbol != order.symbol:
                worth = shares * self._mark(symbol, label)
                others += abs(worth)
                net += worth
        equity = self.account.cash + net + held * price
        allowed = quantity
        # What fits before fees, then with the fees of that much: they are those of what fills.
        for costs in (False, True):
            fee = self.costs.fees.fee(allowed, price) if costs else 0.0
            room = self.costs.leverage * (equity - fee) - others
            if abs(held + allowed) * price <= room + 1e-9 * abs(room):
                continue
            most = max(0.0, room / price)
            if not self.fractional:
                most = math.floor(most)
            allowed = math.copysign(most, after) - held
            # Never the other way round: what cannot be had is not sold.
            if allowed * quantity <= 0:
                return 0.0
        return allowed

    # ----------------------------------------------------------------------------- brackets

    def _children(self, order: Order) -> list[Order]:
        if not self.waiting:
            return []
        return [o for o in self.waiting.values() if o.parent == order.id]

    def _wake_children(self, parent: Order) -> None:
        for child in self._children(parent):
            child.quantity = -parent.filled
            self.changed[child.id] = child
            if child.state is OrderState.HELD:
                child.state = OrderState.OPEN
                # In the order in which they meet a bar, also after a restart.
                self.waiting[child.id] = self.waiting.pop(child.id)
                self._cursors[child.symbol].waiting.append(child)

    # ------------------------------------------------------------------------------- ending

    def cancel(self, order: Order, reason: str) -> bool:
        """End an order that waits, or was given just now, with what hangs on it."""
        if order.state.final:
            return False
        self._end(order, OrderState.CANCELED, reason)
        return True

    def expire(self, now: int) -> None:
        """End the orders for the day whose session is over."""
        for order in list(self.waiting.values()):
            if order.expires is not None and order.expires <= now:
                self._end(order, OrderState.EXPIRED, "its session ended")
        self.expiry = min(
            (o.expires for o in self.waiting.values() if o.expires is not None), default=NEVER
        )

    def split(self, symbol: str, ratio: float) -> None:
        """Set the orders of a symbol on the new basis, as brokers do."""
        for order in list(self.waiting.values()):
            if order.symbol != symbol or order.state.final:
                continue
            left, filled = self._whole(order.remaining * ratio), self._whole(order.filled * ratio)
            order.quantity, order.filled = filled + left, filled
            order.filled_price /= ratio
            order.limit = None if order.limit is None else order.limit / ratio
            order.stop = None if order.stop is None else order.stop / ratio
            self.changed[order.id] = order
            if not left:
                self._end(order, OrderState.CANCELED, "the split left no whole share of it")

    def _whole(self, quantity: float) -> float:
        """Return what of a quantity can be traded: whole shares, 2.9999999999999996 being 3."""
        if self.fractional:
            return quantity
        return float(math.trunc(quantity + math.copysign(_DUST, quantity)))

    def _end_id(self, order_id: str | None, reason: str) -> None:
        order = self.waiting.get(order_id or "")
        if order is not None:
            self._end(order, OrderState.CANCELED, reason)

    def _end(self, order: Order, state: OrderState, reason: str) -> None:
        order.state, order.reason = state, reason
        self.changed[order.id] = order
        self.waiting.pop(order.id, None)
        queue = self._cursors[order.symbol].waiting
        if order in queue:
            queue.remove(order)
        # Children of an entry that never filled have nothing to close.
        if state is not OrderState.FILLED and not order.filled:
            for child in [*self._children(order), *(o for o in self.given if o.parent == order.id)]:
                if not child.state.final:
                    self._end(child, OrderState.CANCELED, "its entry ended")

    def _new_id(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"
