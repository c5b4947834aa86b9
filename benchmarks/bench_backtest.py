"""What a back-test costs: bars a second beside backtesting.py and backtrader, and how it grows.

Run: ``PYTHONPATH=src python -m benchmarks.bench_backtest``. The strategy is a crossing of two moving
averages, 10 and 30 bars, on minutes of a random walk; all sides compute their averages in the time
that is taken, and trade the same. The market of 50 symbols over two years runs in a process of its
own, whose memory at most is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from algorithms import Algorithm, Context, MarketData, NoSlippage, crossed_above, crossed_below
from algorithms.backtest import run
from algorithms.blotter import Costs
from algorithms.frames import market_of
from algorithms.series import Series
from benchmarks.timing import Row, take_turns

BARS = 100_000
SYMBOLS = (1, 5, 20, 50)
YEARS = 2
SESSION = 390
LOT = 100
CASH = 1_000_000.0
SECONDS, GIBIBYTES = 60.0, 2.0


class Cross(Algorithm):
    """Long while the faster average is above the slower."""

    symbols = ("X",)
    timeframe = "1min"
    indicators = {"fast": "sma_10", "slow": "sma_30"}

    def on_bar(self, ctx: Context) -> None:
        fast, slow = ctx.fast, ctx.slow
        if fast[-1] > slow[-1] and fast[-2] <= slow[-2]:
            ctx.order_target(LOT)
        elif fast[-1] < slow[-1] and fast[-2] >= slow[-2]:
            ctx.order_target(0)


class CrossInWords(Cross):
    """The same, said with the helpers that each library has for it."""

    def on_bar(self, ctx: Context) -> None:
        if crossed_above(ctx.fast, ctx.slow):
            ctx.order_target(LOT)
        elif crossed_below(ctx.fast, ctx.slow):
            ctx.order_target(0)


class Crosses(Algorithm):
    """The same for each of many symbols."""

    timeframe = "1min"
    indicators = {"fast": "sma_10", "slow": "sma_30"}

    def on_start(self, ctx: Context) -> None:
        self.views = [ctx[symbol] for symbol in ctx.symbols]

    def on_bar(self, ctx: Context) -> None:
        for view in self.views:
            fast, slow = view.fast, view.slow
            if fast[-1] > slow[-1]:
                if fast[-2] <= slow[-2]:
                    ctx.order_target(LOT, view.symbol)
            elif fast[-1] < slow[-1] and fast[-2] >= slow[-2]:
                ctx.order_target(0, view.symbol)


@dataclass(frozen=True)
class Many:
    """A run that is too large to repeat: its time and its memory against fixed bars."""

    symbols: int
    bars: int
    seconds: float
    gibibytes: float

    @property
    def reached(self) -> bool:
        return self.seconds < SECONDS and self.gibibytes < GIBIBYTES

    def __str__(self) -> str:
        held = (
            ""
            if self.symbols < SYMBOLS[-1]
            else (f"(< {SECONDS:g} s, < {GIBIBYTES:g} GiB {'ok' if self.reached else 'MISSED'})")
        )
        return (
            f"{'two years of minutes, many symbols':<44} {self.symbols:>3} x {YEARS} years  "
            f"{self.seconds:>10.3f} s   {self.bars / self.seconds / 1000:>10.0f} k bars/s   "
            f"{self.gibibytes:>6.2f} GiB at most  {held}"
        )


@dataclass(frozen=True)
class Absent:
    """An anchor that is not installed."""

    name: str
    reached: bool = True

    def __str__(self) -> str:
        return f"{self.name} is not installed: no figure beside it"


def walk(bars: int, seed: int = 1) -> pd.DataFrame:
    """Return minutes of a random walk, session after session."""
    random = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(random.normal(0, 0.0008, bars))), 2)
    opened = np.r_[close[0], close[:-1]]
    spread = np.round(random.exponential(0.03, bars), 2)
    days = pd.bdate_range("2022-01-03", periods=-(-bars // SESSION))
    opens = (days + pd.Timedelta(hours=9, minutes=30)).tz_localize("America/New_York")
    stamps = opens.tz_convert("UTC").as_unit("us").asi8[:, None] + 60_000_000 * np.arange(SESSION)
    index = pd.DatetimeIndex(stamps.reshape(-1)[:bars].view("M8[us]"), tz="UTC")
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) + spread,
            "low": np.minimum(opened, close) - spread,
            "close": close,
            "volume": 1e6,
        },
        index=index,
    )


def ours(frame: pd.DataFrame, cross: type[Cross] = Cross) -> Callable[[], float]:
    costs = Costs(slippage=NoSlippage())

    def call() -> float:
        market = market_of(frame, ["X"], "1min")
        return float(run(cross(), market, 0, cash=CASH, costs=costs).equity[-1])

    return call


def backtesting_py(frame: pd.DataFrame, *, in_words: bool = False) -> Callable[[], float] | None:
    try:
        from backtesting import Backtest, Strategy
        from backtesting.lib import crossover
    except ImportError:
        return None
    import backtesting.backtesting as engine
    import talib

    engine._tqdm = lambda bars, **_: bars

    class Theirs(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.fast = self.I(talib.SMA, self.data.Close, 10)
            self.slow = self.I(talib.SMA, self.data.Close, 30)

        def next(self) -> None:
            fast, slow = self.fast, self.slow
            if fast[-1] > slow[-1] and fast[-2] <= slow[-2]:
                if not self.position:
                    self.buy(size=LOT)
            elif fast[-1] < slow[-1] and fast[-2] >= slow[-2]:
                self.position.close()

    class TheirsInWords(Theirs):
        def next(self) -> None:
            if crossover(self.fast, self.slow):
                if not self.position:
                    self.buy(size=LOT)
            elif crossover(self.slow, self.fast):
                self.position.close()

    strategy = TheirsInWords if in_words else Theirs
    titled = frame.rename(columns=str.title)

    def call() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stats = Backtest(titled, strategy, cash=CASH).run()
        return float(stats["Equity Final [$]"])

    return call


def backtrader(frame: pd.DataFrame) -> Callable[[], float] | None:
    try:
        import backtrader as bt
    except ImportError:
        return None

    class Theirs(bt.Strategy):  # type: ignore[misc]
        def __init__(self) -> None:
            self.fast = bt.indicators.SimpleMovingAverage(self.data.close, period=10)
            self.slow = bt.indicators.SimpleMovingAverage(self.data.close, period=30)

        def next(self) -> None:
            if self.fast[0] > self.slow[0] and self.fast[-1] <= self.slow[-1]:
                self.order_target_size(target=LOT)
            elif self.fast[0] < self.slow[0] and self.fast[-1] >= self.slow[-1]:
                self.order_target_size(target=0)

    naive = frame.tz_localize(None)

    def call() -> float:
        cerebro = bt.Cerebro()
        cerebro.addstrategy(Theirs)
        cerebro.adddata(bt.feeds.PandasData(dataname=naive))
        cerebro.broker.setcash(CASH)
        cerebro.run()
        return float(cerebro.broker.getvalue())

    return call


def rows() -> Iterator[Row | Many | Absent]:
    """Yield the figures; a missing anchor is said and compared with nothing."""
    frame = walk(BARS)
    name, size = "backtesting.py", f"{BARS} x 1min"
    for work, cross, in_words in (
        ("SMA 10/30 cross", Cross, False),
        ("SMA 10/30 cross, with crossover()", CrossInWords, True),
    ):
        mine, theirs = ours(frame, cross), backtesting_py(frame, in_words=in_words)
        if theirs is None:
            yield Absent(name)
            continue
        assert abs(mine() - theirs()) < 0.01
        best = take_turns({"ours": mine, name: theirs}, rounds=5)
        yield Row(work, size, best["ours"], name, best[name], 3.0, True)
    # A tenth of the bars: it needs a minute for all of them, and its cost grows with their number.
    tenth = walk(BARS // 10)
    mine, theirs = ours(tenth), backtrader(tenth)
    if theirs is None:
        yield Absent("backtrader")
    else:
        best = take_turns({"ours": mine, "backtrader": theirs}, rounds=5)
        size = f"{BARS // 10} x 1min"
        yield Row(
            "SMA 10/30 cross", size, best["ours"], "backtrader", best["backtrader"], 40.0, True
        )
    for symbols in SYMBOLS:
        yield in_a_process_of_its_own(symbols)


def in_a_process_of_its_own(symbols: int) -> Many:
    """Run many symbols where nothing else needs memory."""
    command = [sys.executable, "-m", "benchmarks.bench_backtest", "--symbols", str(symbols)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return Many(**json.loads(answer.stdout))


def many(symbols: int) -> Many:
    """Run a market of this many symbols over two years of minutes, here."""
    import resource
    import time

    bars = YEARS * 252 * SESSION
    frame = walk(bars)
    names = tuple(f"S{n:02d}" for n in range(symbols))
    first = market_of(frame, ["S00"], "1min")
    shape = first.of("S00", "1min")
    random = np.random.default_rng(7)
    series = {}
    for name in names:
        # Another walk on the same minutes.
        raw = np.ascontiguousarray(shape.raw * np.exp(np.cumsum(random.normal(0, 0.0003, bars))))
        series[name, "1min"] = Series(name, "1min", shape.labels, shape.closes[:-1], raw)
    market = MarketData(series, first.hours)
    del frame, first
    began = time.perf_counter()
    record = run(Crosses(symbols=names), market, 0, cash=CASH * symbols)
    seconds = time.perf_counter() - began
    assert len(record.fills) > 1_000 * symbols
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Many(symbols, record.bars, seconds, most)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--symbols"]:
        print(json.dumps(many(int(sys.argv[2])).__dict__))
    else:
        for row in rows():
            print(row, flush=True)
