"""Records of runs for tests, made by a book-keeping of their own: no engine, no lots.

The account here knows cash and shares and nothing else; what it is worth at the end is the
yardstick for trades and metrics, which come to the same money by another way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from algorithms.orders import Fill, Order, OrderState
from algorithms.run_record import AppliedAction, BacktestRun

DAY = 86_400_000_000
MINUTE = 60_000_000


@dataclass
class Book:
    """Cash and shares after any sequence of fills and actions."""

    cash: float
    shares: dict[str, float] = field(default_factory=dict)

    def fill(self, fill: Fill) -> None:
        self.cash -= fill.quantity * fill.price + fill.fee
        self.shares[fill.symbol] = self.shares.get(fill.symbol, 0.0) + fill.quantity

    def split(self, time: int, symbol: str, ratio: float, price: float) -> AppliedAction:
        """Multiply the shares and sell what is no whole one at `price`, on the new basis."""
        after = self.shares.get(symbol, 0.0) * ratio
        whole = math.trunc(after + math.copysign(1e-9, after))
        fraction = after - whole if abs(after - whole) > 1e-9 else 0.0
        self.shares[symbol] = after - fraction
        self.cash += fraction * price
        return AppliedAction(time, symbol, "split", fraction * price, ratio, fraction)

    def dividend(self, time: int, symbol: str, amount: float) -> AppliedAction:
        cash = self.shares.get(symbol, 0.0) * amount
        self.cash += cash
        return AppliedAction(time, symbol, "cash_dividend", cash)

    def equity(self, prices: Mapping[str, float]) -> float:
        return self.cash + sum(n * prices[s] for s, n in self.shares.items() if n)


def session_closes(days: int, start: str = "2023-01-03") -> NDArray[Any]:
    """16:00 in New York on weekdays, microseconds UTC."""
    dates = pd.bdate_range(start, periods=days)
    closes = (dates + pd.Timedelta(hours=16)).tz_localize("America/New_York")
    return np.array(closes.tz_convert("UTC").as_unit("us").asi8, np.int64)


def minute_closes(sessions: int, start: str = "2023-01-03", per_session: int = 390) -> NDArray[Any]:
    opens = session_closes(sessions, start) - 390 * MINUTE
    return np.concatenate([o + MINUTE * np.arange(1, per_session + 1) for o in opens])


def random_closes(rng: np.random.Generator, n: int, volatility: float = 0.015) -> NDArray[Any]:
    return np.round(100 * np.exp(np.cumsum(rng.normal(volatility / 40, volatility, n))), 2)


def run_of(
    times: Sequence[int] | NDArray[Any],
    closes: Mapping[str, NDArray[Any]],
    fills: Iterable[Fill],
    *,
    cash: float = 100_000.0,
    splits: Mapping[tuple[int, str], float] | None = None,
    dividends: Mapping[tuple[int, str], float] | None = None,
    timeframe: str = "1day",
    **facts: object,
) -> BacktestRun:
    """Keep the book of `fills` over `times` and return it as a record.

    A fill belongs to the first moment at or after its time; `splits` and `dividends` are keyed by
    (position of the moment they take effect before, symbol).
    """
    times = np.asarray(times, np.int64)
    book, actions, waiting = Book(cash), [], list(fills)
    equity, cash_curve = np.empty(len(times)), np.empty(len(times))
    held: dict[str, NDArray[Any]] = {s: np.zeros(len(times)) for s in closes}
    done = 0
    for n, time in enumerate(times.tolist()):
        for (at, symbol), ratio in (splits or {}).items():
            if at == n:
                actions.append(book.split(int(times[n - 1]) + 1, symbol, ratio, closes[symbol][n]))
        for (at, symbol), amount in (dividends or {}).items():
            if at == n:
                actions.append(book.dividend(int(times[n - 1]) + 1, symbol, amount))
        while done < len(waiting) and waiting[done].time <= time:
            book.fill(waiting[done])
            done += 1
        cash_curve[n] = book.cash
        for symbol, shares in book.shares.items():
            held[symbol][n] = shares
        equity[n] = book.equity({s: c[n] for s, c in closes.items()})
    first = next(iter(closes.values()))
    holding = np.mean([c / c[0] for c in closes.values()], axis=0) if len(first) else first
    run = BacktestRun(
        symbols=tuple(closes),
        timeframe=timeframe,
        cash=cash,
        times=times,
        equity=equity,
        cash_curve=cash_curve,
        positions=held,
        closes={s: np.asarray(c, np.float64) for s, c in closes.items()},
        fills=waiting,
        orders=[_order_of(f) for f in waiting],
        actions=actions,
        params={"fast": 10, "slow": 30},
        algorithm="SmaCross",
        fingerprint="alpaca-sip-1day-0f3a9c",
        seconds=0.042,
        bars=len(times) * len(closes),
        simulated=False,
        warnings=[],
        buy_and_hold=cash * holding,
    )
    return replace(run, **facts)  # type: ignore[arg-type]


def _order_of(fill: Fill) -> Order:
    return Order(
        fill.order_id, fill.symbol, fill.quantity, created=fill.time - MINUTE,
        state=OrderState.FILLED, filled=fill.quantity, filled_price=fill.price, tag=fill.tag,
    )  # fmt: skip


def crossing_run(
    days: int = 500,
    symbols: int = 1,
    *,
    seed: int = 7,
    minutes: bool = False,
    **facts: object,
) -> BacktestRun:
    """Moving averages that cross, filled one moment later at the close, with fees."""
    rng = np.random.default_rng(seed)
    times = minute_closes(-(-days // 390))[:days] if minutes else session_closes(days)
    scale = 0.0006 if minutes else 0.015
    names = ["AAPL", "MSFT", "NVDA", "KO", "XOM", "JPM", "PG", "T", "SPY", "QQQ"][:symbols]
    closes = {s: random_closes(rng, days, scale) for s in names}
    fills: list[Fill] = []
    for symbol, close in closes.items():
        fast, slow = (pd.Series(close).rolling(w).mean().to_numpy() for w in (10, 30))
        held = 0.0
        for n in range(31, days - 1):
            wanted = fast[n] > slow[n]
            if wanted != bool(held):
                size = float(100_000 / symbols // close[n]) if wanted else -held
                tag = "entry" if wanted else "exit"
                fills.append(
                    Fill(int(times[n + 1]) - 1, f"{symbol}-{n}", symbol, size,
                         float(close[n + 1]), 1.0, tag)
                )  # fmt: skip
                held = size if wanted else 0.0
    fills.sort(key=lambda f: f.time)
    timeframe = "1min" if minutes else "1day"
    return run_of(times, closes, fills, **{"timeframe": timeframe, **facts})  # type: ignore[arg-type]
