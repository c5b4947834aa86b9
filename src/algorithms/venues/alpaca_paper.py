"""Alpaca's paper trading as a venue, through alpaca-py.

Only the paper endpoint, or a sandbox on this machine, is ever asked: see `addresses`.

Brackets are given to Alpaca whole wherever it takes them: exits that stand at the broker protect a
position while this process is down, restarting, or cut off; exits that wait here protect nothing
until it is back. Alpaca takes a bracket only of whole shares, to open a position on a symbol of
which the account holds nothing and has no open order, with prices to either side of the market's.
Where it refuses one, the entry is given alone, and the exits stay with the caller, who gives them
when it has filled: as one order that cancels the other, not as two, of which Alpaca would refuse
the second for want of shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import marketdata as md
from algorithms.errors import OrderError, VenueError
from algorithms.orders import Order, OrderType
from algorithms.venues import BrokerAccount, BrokerFill, BrokerOrder
from algorithms.venues.addresses import PAPER_URL, check_key, paper_address
from algorithms.venues.alpaca_groups import tied_fields
from algorithms.venues.alpaca_http import Requests
from algorithms.venues.alpaca_reading import AlpacaReading
from algorithms.venues.alpaca_wire import (
    LONGEST_ID,
    account_of,
    order_fields,
    order_of,
    positions_of,
    record_of,
    request_of,
    same_order,
    text_of,
    unreadable,
)
from algorithms.venues.families import Families

_SANDBOX_KEY: Final = "sandbox"

Record = Mapping[str, Any]


class AlpacaPaper:
    """A `BrokerVenue`: an Alpaca paper account. Thread-safe.

    Parameters
    ----------
    key_id, secret_key : str
        A paper account's keys; they appear in no repr and no error.
    url : str, optional
        Alpaca's paper trading API, or a sandbox on this machine.
    timeout : float
        Seconds that one request may take, waiting for a rate limit included.
    sleep : callable, optional
        How to wait; for tests.

    Raises
    ------
    RealMoneyError
        The address or the key is not one of paper trading. Nothing was sent.
    """

    def __init__(
        self,
        key_id: str,
        secret_key: str,
        *,
        url: str = PAPER_URL,
        timeout: float = 15.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = paper_address(url)
        check_key(self.url, key_id)
        self._requests = Requests(self.url, key_id, secret_key, seconds=timeout, sleep=sleep)
        self._families = Families()
        self._reading = AlpacaReading(self._requests, self._families)

    @classmethod
    def configured(cls, settings: md.Settings | None = None, **options: Any) -> AlpacaPaper:
        """Return the venue that marketdata's settings name.

        ``MARKETDATA_ALPACA_TRADING_URL`` is its address, Alpaca's paper trading API by default, and
        ``APCA_API_KEY_ID`` and ``APCA_API_SECRET_KEY`` are its keys. A sandbox on this machine is
        not told them.

        Parameters
        ----------
        settings : marketdata.Settings, optional
            Those of this process by default.
        **options
            As the class takes them.

        Raises
        ------
        RealMoneyError
            As the class does.
        ConfigurationError
            There are no keys.
        """
        chosen = md.Settings.load() if settings is None else settings
        url = paper_address(chosen.alpaca_trading_url or PAPER_URL)
        if url != PAPER_URL:
            return cls(_SANDBOX_KEY, _SANDBOX_KEY, url=url, **options)
        key, secret = chosen.alpaca_key_id, chosen.alpaca_secret_key
        if key is None or secret is None:
            raise md.ConfigurationError(
                "Alpaca's paper trading needs the keys of a paper account",
                cure="set APCA_API_KEY_ID and APCA_API_SECRET_KEY",
            )
        return cls(key.get_secret_value(), secret.get_secret_value(), url=url, **options)

    def __repr__(self) -> str:
        return f"AlpacaPaper({self.url})"

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._requests.close()

    def account(self) -> BrokerAccount:
        """Return cash, equity and buying power."""
        return account_of(self._requests.call(lambda client: client.get_account()))

    def positions(self) -> dict[str, float]:
        """Return the shares held by symbol, signed."""
        return positions_of(self._requests.call(lambda client: client.get_all_positions()))

    def remember(self, orders: Iterable[Order]) -> None:
        """Learn which orders belong together."""
        self._families.learn(orders, given=True)

    # ------------------------------------------------------------------------------ giving

    def submit(self, order: Order, children: Sequence[Order] = ()) -> frozenset[str]:
        """Give an order and the orders tied to it; see `BrokerVenue.submit`."""
        if not order.id or len(order.id) > LONGEST_ID:
            raise OrderError(
                f"an order id of {len(order.id)} characters",
                cure=f"Alpaca takes 1 to {LONGEST_ID}: shorten the algorithm's name",
            )
        self._families.learn([order, *children])
        fields, tied = order_fields(order), tied_fields(order, children)
        if tied:
            self._families.expect(order.id)
        if any(child.parent != order.id for child in children):
            if order.stop is not None:
                return self._submit_stop(order, children)
            return self._submit_exits(order, fields, tied)
        if tied:
            try:
                return self._give(order, fields | tied)
            except VenueError as error:
                if error.facts.get("status") != 422 and "entry orders" not in error.message:
                    raise
        return self._give(order, fields)

    def _submit_stop(self, loss: Order, profits: Sequence[Order]) -> frozenset[str]:
        """Give a stop-loss with its take-profit, alone if need be: it is what protects."""
        try:
            kept = self.submit(profits[0], [loss]) if len(profits) == 1 else frozenset()
        except VenueError as error:
            if error.transient:
                raise
            kept = frozenset()
        return kept if loss.id in kept else self._give(loss, order_fields(loss))

    def _submit_exits(
        self, order: Order, fields: dict[str, Any], tied: dict[str, Any]
    ) -> frozenset[str]:
        """Give two exits together, or neither: the take-profit alone would bind all the shares,
        and where the position is not there it would open one."""
        if not tied:
            raise VenueError(
                f"alpaca does not take {order.id} and its twin as one",
                cure="give the stop-loss alone, and sell at the take-profit yourself",
                refused=True,
            )
        del fields["limit_price"]  # it is said in the take-profit
        try:
            return self._give(order, fields | tied)
        except VenueError as error:
            # The position follows its fill by a moment.
            error.transient = error.transient or "exit orders" in error.message
            raise

    def _give(self, order: Order, fields: Record) -> frozenset[str]:
        kind = OrderType.LIMIT if fields.get("order_class") == "oco" else order.type
        try:
            record = self._requests.call(lambda c: c.submit_order(request_of(fields, kind)))
        except VenueError as error:
            if not error.facts.get("refused"):
                raise
            # Given before: whatever it was refused for this time, it is there.
            there = self._reading.by_client_id(order.id)
            if there is None:
                # Taken, says one of its servers, and another cannot show it yet.
                error.transient = "must be unique" in error.message
                raise
            return self._as_given(order, there)
        record = record_of(record, "order")
        if text_of(record, "client_order_id") != order.id:
            raise unreadable("it is about another order")
        return self._kept(order, record)

    def _as_given(self, order: Order, record: Record) -> frozenset[str]:
        """Return what is at the broker of an order that was given before."""
        other = same_order(record, order)
        if other is not None:
            raise VenueError(
                f"another order has the id {order.id} at alpaca: {other}",
                cure="an id is used once: give the algorithm another name, or the account to it alone",
                order_id=order.id,
            )
        return self._kept(order, self._reading.whole(record))

    def _kept(self, order: Order, record: Record) -> frozenset[str]:
        return frozenset({order.id, *self._families.note(order.id, record)})

    # ------------------------------------------------------------------ cancelling and finding

    def cancel(self, order_id: str) -> None:
        """Ask for an order to be cancelled; see `BrokerVenue.cancel`."""
        record = self._reading.record(order_id)
        if record is None:
            raise VenueError(
                f"alpaca has no order {order_id}",
                cure="reconcile with the broker",
                order_id=order_id,
            )
        if order_of(record, ident=order_id).state.final:
            return
        broker_id = text_of(record, "id")
        try:
            self._requests.call(lambda client: client.cancel_order_by_id(broker_id))
        except VenueError as error:
            if error.facts.get("status") not in (404, 422):
                raise
            again = self.find(order_id)
            if again is None or not again.state.final:
                raise

    def find(self, order_id: str) -> BrokerOrder | None:
        """Return an order by our id; see `BrokerVenue.find`."""
        return self._reading.find(order_id)

    def open_orders(self) -> list[BrokerOrder]:
        """Return every order that is not final; see `BrokerVenue.open_orders`."""
        return self._reading.open_orders()

    def fills_since(self, us: int) -> list[BrokerFill]:
        """Return every fill at or after `us`; see `BrokerVenue.fills_since`."""
        return self._reading.fills_since(us)
