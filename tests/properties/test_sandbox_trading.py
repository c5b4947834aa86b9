"""Whatever is asked of a paper account in whatever order: its books add up."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from marketdata.clock import FixedClock
from marketdata.sandbox.answers import ApiError
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.sandbox.trading.accepting import accept, replace
from marketdata.sandbox.trading.book import ZERO, order_json
from marketdata.sandbox.trading.desk import Desk
from marketdata.sandbox.trading.listings import activities, listed_orders
from marketdata.sandbox.trading.tape import Tape
from marketdata.sandbox.view import MarketView

MARKET = GeneratedMarket(7)
SYMBOLS = ("AAPL", "KO", "S0001")
FINAL = {"filled", "canceled", "expired", "replaced", "rejected"}


class Trading(RuleBasedStateMachine):
    """One account; a clock that goes by seconds, hours and nights."""

    shares = st.sampled_from(["1", "7", "100", "0.125"])
    offsets = st.sampled_from([-0.05, -0.004, -0.0005, 0.0005, 0.004, 0.05])
    ALLOWED: ClassVar[set[int]] = {40010001, 42210000, 40310000}

    @initialize(most=st.sampled_from([None, "3", "40"]), last=st.booleans())
    def open(self, most: str | None, last: bool) -> None:
        self.clock = FixedClock(datetime.fromisoformat("2024-03-14T15:58:30-04:00"))
        self.desk = Desk(Tape(MarketView(MARKET, self.clock)), "key")
        self.desk.most_shares = None if most is None else Decimal(most)
        self.desk.ids_checked_last = last
        self.final: dict[str, dict[str, Any]] = {}
        self.told: list[dict[str, Any]] = []

    def price(self, symbol: str, offset: float) -> str:
        last = self.desk.tape.last(symbol)
        assert last is not None
        return format(round(last * Decimal(1 + offset), 2), "f")

    def give(self, body: dict[str, Any]) -> None:
        self.desk.catch_up()
        known = len(self.desk.orders)
        order, code = None, None
        try:
            order = accept(self.desk, body)
        except ApiError as error:
            code = error.code
        if order is None:
            assert code in self.ALLOWED
            assert len(self.desk.orders) == known
            return
        assert order_json(order)["status"] in ("pending_new", "accepted")
        self.desk.trade_now(order)

    @rule(
        symbol=st.sampled_from(SYMBOLS),
        side=st.sampled_from(["buy", "sell"]),
        kind=st.sampled_from(["market", "limit", "stop", "stop_limit"]),
        qty=shares,
        force=st.sampled_from(["day", "gtc"]),
        limit=offsets,
        stop=offsets,
        extended=st.booleans(),
        name=st.sampled_from([None, "a", "b", "c"]),
    )
    def simple(
        self, symbol: str, side: str, kind: str, qty: str, force: str, limit: float, stop: float,
        extended: bool, name: str | None,
    ) -> None:  # fmt: skip
        body = {"symbol": symbol, "side": side, "type": kind, "qty": qty, "time_in_force": force}
        if "limit" in kind:
            body["limit_price"] = self.price(symbol, limit)
        if "stop" in kind:
            body["stop_price"] = self.price(symbol, stop)
        if name is not None:
            body["client_order_id"] = name
        self.give({**body, "extended_hours": extended and kind == "limit"})

    @rule(
        symbol=st.sampled_from(SYMBOLS),
        side=st.sampled_from(["buy", "sell"]),
        group=st.sampled_from(["bracket", "oto", "oco"]),
        force=st.sampled_from(["day", "gtc"]),
        near=st.booleans(),
    )
    def grouped(self, symbol: str, side: str, group: str, force: str, near: bool) -> None:
        up = (side == "buy") != (group == "oco")
        away = 0.003 if near else 0.03
        body: dict[str, Any] = {
            "symbol": symbol,
            "side": side,
            "type": "limit" if group == "oco" else "market",
            "qty": "10",
            "time_in_force": force,
            "order_class": group,
            "take_profit": {"limit_price": self.price(symbol, away if up else -away)},
            "stop_loss": {"stop_price": self.price(symbol, -away if up else away)},
        }
        if group == "oto":
            del body["take_profit"]
        self.give(body)

    @rule(
        delta=st.sampled_from(
            [{"seconds": 20}, {"minutes": 1}, {"minutes": 7}, {"hours": 5}, {"hours": 17}]
        )
    )
    def pass_time(self, delta: dict[str, float]) -> None:
        self.clock.advance(**delta)
        self.desk.catch_up()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.desk.catch_up()
        if self.desk.open_orders():
            self.desk.cancel(data.draw(st.sampled_from(self.desk.open_orders())))

    @rule(data=st.data(), offset=offsets)
    def reprice(self, data: st.DataObject, offset: float) -> None:
        self.desk.catch_up()
        if not self.desk.open_orders():
            return
        order = data.draw(st.sampled_from(self.desk.open_orders()))
        name = "limit_price" if order.limit_price is not None else "stop_price"
        new, code = None, None
        try:
            new = replace(self.desk, order, {name: self.price(order.symbol, offset)})
        except ApiError as error:
            code = error.code
        if new is None:
            assert code in self.ALLOWED
            return
        assert (new.replaces, order.replaced_by) == (order.id, new.id)
        self.desk.trade_now(new)

    # ------------------------------------------------------------------------- what holds

    @invariant()
    def books_add_up(self) -> None:
        assert self.desk.contradictions() == []

    @invariant()
    def final_is_final(self) -> None:
        for order in self.desk.orders.values():
            shown = order_json(order, nested=False)
            if order.id in self.final:
                assert shown == self.final[order.id]
            elif shown["status"] in FINAL:
                self.final[order.id] = shown

    @invariant()
    def fills_are_told_once_and_in_order(self) -> None:
        token, found = "", []
        while True:
            params = {"direction": "asc", "page_size": "3", "page_token": token}
            page = activities(self.desk, "FILL", params, None)
            if not page:
                break
            found += page
            token = page[-1]["id"]
        assert [f["id"] for f in found[: len(self.told)]] == [f["id"] for f in self.told]
        moments = [f["transaction_time"] for f in found]
        assert moments == sorted(moments)
        self.told = found

    @invariant()
    def limits_and_sessions_hold(self) -> None:
        calendar = self.desk.tape.calendar
        for fill in self.desk.fills:
            order = fill.order
            if order.limit_price is not None:
                worse = fill.price - order.limit_price
                assert worse <= 0 if order.side == "buy" else worse >= 0
            hours: Any = "extended" if order.extended_hours else "regular"
            # What happened inside a session's last minute is told at its end.
            assert calendar.is_open(fill.time, hours) or calendar.is_open(fill.time - 1, hours)
            assert order.created <= fill.time <= order.expires

    @invariant()
    def no_more_is_promised_than_is_held(self) -> None:
        for symbol in SYMBOLS:
            position = self.desk.positions.get(symbol)
            held = ZERO if position is None else abs(position.qty)
            assert self.desk.held_for_orders(symbol) <= held

    @invariant()
    def at_most_one_exit_of_a_group_fills(self) -> None:
        for members in self.desk.groups.values():
            entry = [o for o in members if o.role == "entry"]
            exits = [o for o in members if o.role != "entry"]
            sold = sum((o.filled for o in exits), ZERO)
            assert sold <= (max(o.filled for o in entry) if entry else Decimal(10))
            assert len({o.role for o in exits if o.status == "filled"}) <= 1

    @invariant()
    def lists_agree(self) -> None:
        split = [{o["id"] for o in listed_orders(self.desk, {"status": s, "limit": "500"})}
                 for s in ("open", "closed", "all")]  # fmt: skip
        assert split[0] | split[1] == split[2]
        assert not split[0] & split[1]


Trading.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestTrading = Trading.TestCase
