"""What a strategy sees and can do at one moment.

Everything ends at `Context.now`: the newest value of every line belongs to a bar that has closed.
Orders given here wait for the next bar of their symbol.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

import marketdata as md
from algorithms.errors import AlgorithmError, OrderError
from algorithms.lines import Cursor, Line
from algorithms.orders import Order, TimeInForce, check_order

if TYPE_CHECKING:
    from algorithms.engine import Engine


_FORCES: Final = {str(force): force for force in TimeInForce}


class SymbolView:
    """One symbol's bars of one timeframe, and its position.

    Attributes
    ----------
    symbol, timeframe : str
    open, high, low, close, volume : Line
        Adjusted as of now; the newest price is the one that trades.

    The indicators of the strategy are attributes too, by their names.
    """

    open: Line
    high: Line
    low: Line
    close: Line
    volume: Line

    def __init__(self, symbol: str, timeframe: str, cursor: Cursor, engine: Engine) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        self._cursor = cursor
        self._engine = engine
        self._lines: dict[str, Line] = {}

    def __getattr__(self, name: str) -> Line:
        raise AttributeError(
            f"{self.symbol} {self.timeframe} has no line {name!r}; it has: "
            + ", ".join(self.__dict__.get("_lines", {}))
        )

    @property
    def position(self) -> float:
        """Shares held, signed."""
        return self._engine.account.positions.get(self.symbol, 0.0)

    @property
    def price(self) -> float:
        """The newest close; NaN before the first bar."""
        return self._engine.mark(self.symbol)

    @property
    def has_bar(self) -> bool:
        """Whether a bar of this series has closed since the moment before, so that it is new now."""
        at = self._cursor.at
        return at > 0 and self._cursor.closes[at - 1] > self._engine.before

    @property
    def bars(self) -> int:
        """How many bars have closed, warm-up included."""
        return self._cursor.at

    @property
    def time(self) -> pd.Timestamp:
        """The label (open) of the newest bar, UTC."""
        return self._engine.label(self.symbol, self.timeframe)

    def history(self, count: int | None = None) -> pd.DataFrame:
        """Return the newest `count` bars with all lines as a frame, labelled by bar open (UTC)."""
        labels = self._engine.labels(self.symbol, self.timeframe, count)
        index = pd.DatetimeIndex(labels.astype("datetime64[us]"), tz="UTC", name="timestamp")
        return pd.DataFrame(
            {name: line.values(count) for name, line in self._lines.items()}, index=index
        )

    def __repr__(self) -> str:
        return f"<{self.symbol} {self.timeframe}, {self._cursor.at} bars>"


class Context:
    """What a strategy sees and can do at one moment.

    Lines of the first symbol are here directly: ``ctx.close[-1]``, ``ctx.fast[-1]``; those of
    another under its name: ``ctx["MSFT"].close[-1]``; those of another timeframe under both:
    ``ctx["MSFT", "1hour"].close[-1]``.
    """

    open: Line
    high: Line
    low: Line
    close: Line
    volume: Line

    def __init__(self, engine: Engine, views: Mapping[tuple[str, str], SymbolView]) -> None:
        self._engine = engine
        self._views = dict(views)
        self._by_symbol = {
            symbol: view for (symbol, frame), view in views.items() if frame == engine.timeframe
        }
        self._symbols = tuple(self._by_symbol)
        self._first = next(iter(self._by_symbol.values()))
        self.__dict__.update(self._first._lines)

    def __getattr__(self, name: str) -> Line:
        lines = ", ".join(self.__dict__["_first"]._lines) if "_first" in self.__dict__ else ""
        for (symbol, timeframe), view in self.__dict__.get("_views", {}).items():
            if name in view._lines:
                raise AttributeError(
                    f"{name!r} is a line of {timeframe} bars: ctx[{symbol!r}, {timeframe!r}].{name}"
                )
        raise AttributeError(
            f"the context has no {name!r}; its lines are {lines}. An indicator needs a line in "
            "`indicators` of the algorithm"
        )

    # ------------------------------------------------------------------------------ looking

    @property
    def now(self) -> pd.Timestamp:
        """The moment: the close of the bars that `on_bar` is called for, UTC."""
        return pd.Timestamp(self.now_us, unit="us", tz="UTC")

    @property
    def now_us(self) -> int:
        """The same in microseconds UTC: quicker."""
        return self._engine.now

    @property
    def symbols(self) -> tuple[str, ...]:
        return self._symbols

    def __getitem__(self, name: str | tuple[str, str]) -> SymbolView:
        found = self._by_symbol.get(name) if isinstance(name, str) else self._views.get(name)
        if found is None and isinstance(name, tuple) and len(name) == 2:
            found = self._views.get((name[0], str(md.Timeframe.parse(name[1]))))
        if found is None:
            raise AlgorithmError(
                f"the strategy does not watch {name!r}",
                cure="it watches " + ", ".join(" ".join(key) for key in self._views),
            )
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._by_symbol or name in self._views

    @property
    def cash(self) -> float:
        return self._engine.account.cash

    @property
    def equity(self) -> float:
        """Cash and the positions at their newest closes."""
        return self._engine.equity()

    @property
    def positions(self) -> dict[str, float]:
        """Shares held by symbol, signed; a copy."""
        return dict(self._engine.account.positions)

    def position(self, symbol: str | None = None) -> float:
        """Return the shares held of a symbol (the first one by default), signed."""
        return self._engine.account.positions.get(symbol or self._symbols[0], 0.0)

    @property
    def orders(self) -> tuple[Order, ...]:
        """The orders that wait, oldest first; those given at this moment too."""
        return self._engine.waiting_orders()

    # ------------------------------------------------------------------------------- orders

    def order(
        self,
        quantity: float,
        symbol: str | None = None,
        *,
        limit: float | None = None,
        stop: float | None = None,
        take_profit: float | None = None,
        stop_loss: float | None = None,
        tif: str = "gtc",
        tag: str = "",
    ) -> Order:
        """Order shares: above 0 buys, below 0 sells.

        Without prices it is a market order and fills at the open of the symbol's next bar; what
        `limit` and `stop` do inside a bar is said in `algorithms.matching`.

        Parameters
        ----------
        quantity : float
            Whole shares, unless the strategy says ``fractional = True``.
        symbol : str, optional
            The first one by default.
        limit, stop : float, optional
            Raw prices, as they trade now.
        take_profit, stop_loss : float, optional
            Orders that follow the fill and close what it opened: the first to fill cancels the
            other. They never open a position.
        tif : str
            ``gtc``: until cancelled. ``day``: to the end of the session that trades, or of the
            next one where none does.
        tag : str
            Your word for it; its fills and trades carry it.

        Returns
        -------
        Order
            Read its ``state`` later.

        Raises
        ------
        OrderError
            It cannot be meant: no quantity, a price that is not above 0, an unknown symbol, a
            take-profit or stop-loss on the wrong side of the entry, which is the newest close for
            an order at the market. A retry does not help.
        """
        name = symbol or self._symbols[0]
        if name not in self._by_symbol:
            raise OrderError(
                f"an order for {name}, which the strategy does not watch",
                cure="it watches " + ", ".join(self._symbols),
            )
        quantity = float(quantity)
        limit = None if limit is None else float(limit)
        stop = None if stop is None else float(stop)
        check_order(name, quantity, limit, stop, self._engine.fractional)
        if take_profit is not None or stop_loss is not None:
            take_profit = None if take_profit is None else float(take_profit)
            stop_loss = None if stop_loss is None else float(stop_loss)
            entry = limit if limit is not None else stop
            if entry is None and self._engine.mark(name) > 0:
                entry = self._engine.mark(name)
            _check_bracket(name, quantity, entry, take_profit, stop_loss)
        force = _FORCES.get(tif)
        if force is None:
            raise OrderError(f"tif {tif!r}", cure="give 'day' or 'gtc'")
        return self._engine.give(name, quantity, limit, stop, force, tag, take_profit, stop_loss)

    def order_value(self, value: float, symbol: str | None = None, **options: Any) -> Order | None:
        """Order shares for an amount of money at the newest close; below 0 sells.

        Rounded towards 0 to whole shares; None where that leaves none. Further keywords are those
        of `order`.
        """
        name = symbol or self._symbols[0]
        return self._order_whole(value / self._price(name), name, options)

    def order_target(
        self, quantity: float, symbol: str | None = None, **options: Any
    ) -> Order | None:
        """Order what is missing to hold `quantity` shares.

        Orders at the market that wait are counted as filled; limit and stop orders only where they
        go the same way, so that none is given twice and none is sold against: they may never fill.
        A bracket goes with what opens or grows a position, not with what makes it smaller.
        """
        name = symbol or self._symbols[0]
        return self._order_whole(self._missing(quantity, name), name, options)

    def order_target_percent(
        self, share: float, symbol: str | None = None, **options: Any
    ) -> Order | None:
        """Order what is missing for the position to be a share of equity: 0.5 is half of it."""
        name = symbol or self._symbols[0]
        if share == 0:
            return self.order_target(0, name, **options)
        wanted = self._whole(share * self._engine.equity() / self._price(name))
        return self._order_whole(self._missing(wanted, name), name, options)

    def close_position(self, symbol: str | None = None, **options: Any) -> Order | None:
        """Order the position away; None where there is none, or orders at the market do it already.

        Limit and stop orders that wait are not counted: they may never fill.
        """
        name = symbol or self._symbols[0]
        return self._order_whole(-self._engine.expected(name, at_market=True), name, options)

    def cancel(self, order: Order) -> bool:
        """Cancel an order that waits, and its bracket; return whether it still did."""
        return self._engine.cancel(order, "cancelled by the strategy")

    def cancel_all(self, symbol: str | None = None) -> int:
        """Cancel the orders that wait, of one symbol or of all; return how many did."""
        found = [o for o in self.orders if symbol is None or o.symbol == symbol]
        return sum(self.cancel(order) for order in found)

    def _missing(self, quantity: float, symbol: str) -> float:
        """Return what is missing to a position, not counting what waits against it."""
        sure = quantity - self._engine.expected(symbol, at_market=True)
        hoped = quantity - self._engine.expected(symbol)
        if sure == hoped:
            return sure
        return 0.0 if sure * hoped <= 0 else min(sure, hoped, key=abs)

    def _order_whole(self, quantity: float, symbol: str, options: dict[str, Any]) -> Order | None:
        quantity = self._whole(quantity)
        if not quantity:
            return None
        held = self._engine.expected(symbol, at_market=True)
        if held * quantity < 0 and abs(quantity) <= abs(held):
            # A bracket guards what an order opens, and this one opens nothing.
            options = options | {"take_profit": None, "stop_loss": None}
        return self.order(quantity, symbol, **options)

    def _whole(self, quantity: float) -> float:
        if not math.isfinite(quantity):
            raise OrderError(f"a quantity of {quantity}", cure="wait until there is a price")
        return quantity if self._engine.fractional else float(math.trunc(quantity))

    def _price(self, symbol: str) -> float:
        if symbol not in self._by_symbol:
            raise OrderError(
                f"an order for {symbol}, which the strategy does not watch",
                cure="it watches " + ", ".join(self._symbols),
            )
        price = self._engine.mark(symbol)
        if not price > 0:
            raise OrderError(
                f"{symbol} has no price yet", cure="ask `ctx[symbol].bars` before sizing by value"
            )
        return price


def _check_bracket(
    symbol: str,
    quantity: float,
    entry: float | None,
    take_profit: float | None,
    stop_loss: float | None,
) -> None:
    for price in (take_profit, stop_loss):
        if price is not None and not (math.isfinite(price) and price > 0):
            raise OrderError(
                f"a bracket price of {price} for {symbol}", cure="give a finite price above 0"
            )
    side = 1.0 if quantity > 0 else -1.0
    steps = [p for p in (stop_loss, entry, take_profit) if p is not None]
    if any((later - earlier) * side <= 0 for earlier, later in itertools.pairwise(steps)):
        raise OrderError(
            f"the bracket of {symbol} is on the wrong side of its entry: "
            f"stop_loss {stop_loss}, entry {entry}, take_profit {take_profit}",
            cure="a buy needs stop_loss < entry < take_profit, a sale the reverse",
        )
