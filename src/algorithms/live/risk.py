"""Limits on what an algorithm may do, and the switch that ends its trading. Pure.

An order is looked at when it is given; one that is refused becomes a rejected order whose reason
names the limit, and the algorithm goes on. What makes a position smaller always passes, also after
trading has ended, so that nobody is locked in; so do the exits of a bracket. A daily loss ends
trading until the next session begins; the switch until somebody releases it. Nothing here looks at
a clock: the same bars lead to the same refusals, in a back-test as live.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from algorithms.errors import OrderError, ParameterError
from algorithms.orders import Order

if TYPE_CHECKING:
    from algorithms.engine import Engine

REFUSALS_PER_BAR: Final = 1_000
"""Refused orders of one bar after which an algorithm counts as broken and is stopped: it would go
on for ever otherwise, and its neighbours wait for it."""


class AccountView(NamedTuple):
    """What a check knows of an account, at the moment an order is given.

    Attributes
    ----------
    equity, cash : float
    position : float
        Shares of the order's symbol, signed.
    price : float
        Its newest raw close; NaN before the first.
    gross : float
        Value of all positions, long and short added, with the open orders that enlarge them.
    open_orders : int
        Orders that wait, held ones included.
    orders_this_bar : int
        Orders accepted in this bar so far.
    pending_buys, pending_sells : float
        Shares of the symbol that open orders would buy and sell, both as positive numbers; children
        of a bracket left out, since they close what their parent opens.
    """

    equity: float
    cash: float
    position: float
    price: float
    gross: float
    open_orders: int
    orders_this_bar: int
    pending_buys: float = 0.0
    pending_sells: float = 0.0


@dataclass(frozen=True)
class RiskLimits:
    """How much an algorithm may do; None is no limit.

    Attributes
    ----------
    max_position_value : float, optional
        Currency: of one symbol, long or short, once its open orders have filled.
    max_position_shares : float, optional
        The same in shares.
    max_order_value : float, optional
        Currency: of one order, at its limit, its stop or the newest close.
    max_orders_per_bar : int, optional
        Orders accepted in one bar.
    max_open_orders : int, optional
        Orders that wait at once.
    max_daily_loss : float, optional
        Currency, above 0: once equity is that much below the end of the session before, trading is
        over until the next session.
    max_gross_exposure : float, optional
        Times equity: 1.0 means no leverage.
    flatten : bool
        Whether positions are closed too when the daily loss ends trading.

    Raises
    ------
    ParameterError
        A limit is not above 0.
    """

    max_position_value: float | None = None
    max_position_shares: float | None = None
    max_order_value: float | None = None
    max_orders_per_bar: int | None = 100
    max_open_orders: int | None = 500
    max_daily_loss: float | None = None
    max_gross_exposure: float | None = None
    flatten: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "flatten" or value is None:
                continue
            if not isinstance(value, int | float) or math.isnan(value) or value <= 0:
                raise ParameterError(
                    f"a limit {name} of {value!r}",
                    cure="give a number above 0, or None for no limit",
                )

    @property
    def measured(self) -> bool:
        """Whether a limit is on shares or values, not on numbers of orders alone."""
        limits = (
            self.max_position_value,
            self.max_position_shares,
            self.max_order_value,
            self.max_gross_exposure,
        )
        return any(limit is not None for limit in limits)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RiskLimits:
        """Return limits from JSON-like `given`.

        Raises
        ------
        ParameterError
            A name is unknown or a limit is not above 0.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ParameterError(
                f"there is no risk limit {unknown[0]!r}", cure=f"there are {', '.join(known)}"
            )
        return cls(**given)


@dataclass(frozen=True)
class Halt:
    """Trading is over for now: open orders are to be cancelled, and positions closed if `flatten`."""

    reason: str
    flatten: bool


class RiskGuard:
    """The limits of one algorithm, with what they remember; an engine's `Limits`, back-test or live.

    `refuse` is asked for each order. Whoever steps the engine calls `observe` after each moment, and
    acts on what it returns; `snapshot` and `restore` carry it over a restart.

    Parameters
    ----------
    limits : RiskLimits
    """

    def __init__(self, limits: RiskLimits | None = None) -> None:
        self.limits = limits or RiskLimits()
        self._session: int | None = None
        self._day_start = math.nan
        self._equity = math.nan
        self._tripped: str | None = None
        self._killed: Halt | None = None
        self._due: Halt | None = None
        self._moment = -1
        self._accepted = 0
        self._refused = 0
        self.refusals = 0
        """Orders refused in all."""

    # --------------------------------------------------------------------------- each moment

    @property
    def day_start_equity(self) -> float:
        """Equity at the end of the session before; that of the first moment in the first session."""
        return self._day_start

    @property
    def halted(self) -> str | None:
        """Why nothing may be opened; None where orders are looked at one by one."""
        return self._killed.reason if self._killed is not None else self._tripped

    def observe(self, session: int, equity: float) -> None:
        """Note what an account is worth at a moment.

        Parameters
        ----------
        session : int
            Any number that grows with each exchange session, such as its midnight.
        equity : float
            With positions at the newest raw closes.
        """
        if session != self._session:
            first = self._session is None or math.isnan(self._equity)
            self._day_start = equity if first else self._equity
            self._session, self._tripped = session, None
        self._equity = equity
        most = self.limits.max_daily_loss
        if most is None or self._tripped is not None or not equity <= self._day_start - most:
            return
        self._tripped = (
            f"equity of {equity:,.2f} is {self._day_start - equity:,.2f} below the day's start, "
            f"and {most:,.2f} is the most that may be lost: no new positions until the next session"
        )
        self._due = Halt(self._tripped, self.limits.flatten)

    def take_halt(self) -> Halt | None:
        """Return once what the end of trading asks for; None where nothing is to be done."""
        halt, self._due = self._due, None
        return halt

    # ---------------------------------------------------------------------------- each order

    def refuse(self, order: Order, engine: Engine) -> str | None:
        """Return why `order` is refused; None accepts it.

        Raises
        ------
        OrderError
            The algorithm goes on giving orders that are refused, more than `REFUSALS_PER_BAR` in
            one bar: it is broken.
        """
        if engine.now != self._moment:
            self._moment, self._accepted, self._refused = engine.now, 0, 0
        if self.limits.max_daily_loss is not None:
            self.observe(session_of(engine), engine.equity())
        reason = self._of(order, engine)
        if reason is None:
            self._accepted += 1
            return None
        self.refusals += 1
        self._refused += 1
        if self._refused > REFUSALS_PER_BAR:
            raise OrderError(
                f"{REFUSALS_PER_BAR:,} orders of one bar were refused, the last because {reason}",
                cure="look at ctx.orders before giving more",
            )
        return reason

    def _of(self, order: Order, engine: Engine) -> str | None:
        held = engine.account.positions.get(order.symbol, 0.0)
        if held * order.remaining >= 0:  # it makes no position smaller: what is quick first
            reason = self.halted or too_many(
                self.limits, len(engine.blotter.waiting), self._accepted
            )
            if reason is not None:
                return reason
            if not self.limits.measured:
                return None
        return self.check(order, view_of(order, engine, self._accepted))

    def check(self, order: Order, view: AccountView) -> str | None:
        """Return why `order` is refused on an account like this; None accepts it."""
        if reduces(order, view):
            return None
        return self.halted or broken_limit(self.limits, order, view)

    # ---------------------------------------------------------------------------- the switch

    def kill(self, reason: str = "", *, flatten: bool = False) -> None:
        """End trading until `release`; `take_halt` says what is to be done."""
        halt = Halt(reason or "the kill switch was set", flatten)
        if halt != self._killed:
            self._killed = self._due = halt

    def release(self) -> None:
        """Let trading go on after `kill`."""
        self._killed = None

    def reset(self) -> None:
        """Let trading go on after a daily loss, with what is left as the day's start."""
        self._tripped = None
        self._day_start = self._equity

    # -------------------------------------------------------------------------------- restarts

    def snapshot(self) -> dict[str, Any]:
        """Return what it remembers, JSON-representable. The switch is not in it: whoever set it is
        asked again."""
        return {
            "session": self._session,
            "day_start": _finite(self._day_start),
            "equity": _finite(self._equity),
            "tripped": self._tripped,
            "refusals": self.refusals,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from what `snapshot` returned."""
        self._session = snapshot["session"]
        self._day_start = _number(snapshot["day_start"])
        self._equity = _number(snapshot["equity"])
        self._tripped = snapshot["tripped"]
        self.refusals = snapshot["refusals"]


def reduces(order: Order, view: AccountView) -> bool:
    """Whether `order` makes the position smaller and cannot turn it round, whatever else fills."""
    held, asked = view.position, order.remaining
    if held > 0 and asked < 0:
        return view.pending_sells - asked <= held
    if held < 0 and asked > 0:
        return view.pending_buys + asked <= -held
    return False


def session_of(engine: Engine) -> int:
    """Return the midnight of the session that an engine's moment belongs to."""
    hours = engine.market.hours
    return int(hours.midnight[max(engine.market.session_at(engine.now), 0)])


def view_of(order: Order, engine: Engine, orders_this_bar: int) -> AccountView:
    """Return what is to be known for the check of one order; it costs a look at each that waits."""
    account, symbol = engine.account, order.symbol
    waiting = engine.blotter.waiting.values()
    enlarging: dict[str, list[float]] = {}
    for other in waiting:
        if other.parent is None and other is not order:
            sums = enlarging.setdefault(other.symbol, [0.0, 0.0])
            sums[0 if other.remaining > 0 else 1] += abs(other.remaining)
    gross = 0.0
    for name in {*account.positions, *enlarging}:
        held = account.positions.get(name, 0.0)
        bought, sold = enlarging.get(name, (0.0, 0.0))
        worst = max(abs(held + bought), abs(held - sold), abs(held))
        if worst:
            gross += worst * engine.mark(name)
    bought, sold = enlarging.get(symbol, (0.0, 0.0))
    return AccountView(
        equity=engine.equity(),
        cash=account.cash,
        position=account.positions.get(symbol, 0.0),
        price=engine.mark(symbol),
        gross=gross,
        open_orders=len(waiting),
        orders_this_bar=orders_this_bar,
        pending_buys=bought,
        pending_sells=sold,
    )


def too_many(limits: RiskLimits, open_orders: int, orders_this_bar: int) -> str | None:
    """Return which limit on numbers of orders is reached, in words."""
    most = limits.max_orders_per_bar
    if most is not None and orders_this_bar >= most:
        return f"max_orders_per_bar is {most}"
    most = limits.max_open_orders
    if most is not None and open_orders >= most:
        return f"max_open_orders is {most}"
    return None


def broken_limit(limits: RiskLimits, order: Order, view: AccountView) -> str | None:
    """Return which limit the order would break, in words; None where it breaks none."""
    reason = too_many(limits, view.open_orders, view.orders_this_bar)
    if reason is not None:
        return reason
    asked = order.remaining
    after = view.position + (view.pending_buys + asked if asked > 0 else asked - view.pending_sells)
    shares = limits.max_position_shares
    if shares is not None and abs(after) > shares:
        return f"the position would be {after:g} shares, and max_position_shares is {shares:g}"
    return _broken_value(limits, order, view, after)


def _broken_value(limits: RiskLimits, order: Order, view: AccountView, after: float) -> str | None:
    valued = (limits.max_order_value, limits.max_position_value, limits.max_gross_exposure)
    if all(limit is None for limit in valued):
        return None
    price = _price(order, view.price)
    if math.isnan(price):
        return f"{order.symbol} has no price yet to hold against the limits"
    value = abs(order.remaining) * price
    most = limits.max_order_value
    if most is not None and value > most:
        return f"the order is worth {value:,.2f}, and max_order_value is {most:,.2f}"
    worth = abs(after) * price
    most = limits.max_position_value
    if most is not None and worth > most:
        return f"the position would be worth {worth:,.2f}, and max_position_value is {most:,.2f}"
    times = limits.max_gross_exposure
    gross = view.gross + value
    if times is not None and gross > times * max(view.equity, 0.0):
        return (
            f"gross exposure would be {gross:,.2f}, and max_gross_exposure is {times:g} times "
            f"equity of {view.equity:,.2f}"
        )
    return None


def _price(order: Order, close: float) -> float:
    """Return what a share is worth at most when the order fills soon."""
    told = order.limit if order.limit is not None else order.stop
    if told is None:
        return close
    return told if math.isnan(close) or order.buys else max(told, close)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
