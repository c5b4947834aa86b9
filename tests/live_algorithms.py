"""Live algorithms for tests: what they do, who runs them, and how time passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.context import Context
from algorithms.costs import NoSlippage
from algorithms.live.journal import Journal
from algorithms.live.life import Policy
from algorithms.live.records import Claim, Registration
from algorithms.live.runner import LiveRunner
from algorithms.params import Param
from marketdata.clock import FixedClock, from_micros, to_micros
from tests.stack import Stack

QUICK = Policy(relief=0.05, soft=0.25, hard=1.0, backoff=0.05, longest_backoff=0.2, attempts=4)
PATIENCE = 30.0


class Zigzag(Algorithm):
    """Buys and sells by turns, with every kind of order; deterministic."""

    symbols = ("AAPL",)
    timeframe = "1min"
    indicators = {"average": "sma_{length}"}
    length = Param(5, low=2)

    def on_bar(self, ctx: Context) -> None:
        turn = self.state["turn"] = self.state.get("turn", 0) + 1
        for symbol in ctx.symbols:
            view = ctx[symbol]
            if not view.has_bar:
                continue
            if turn % 4 == 1:
                ctx.order(10, symbol, stop_loss=view.price * 0.99, take_profit=view.price * 1.01)
            elif turn % 4 == 2:
                ctx.order(-3, symbol, limit=round(view.price * 1.0005, 2), tif="day")
            elif turn % 4 == 3 and view.average[-1] > view.close[-1]:
                ctx.order(2, symbol)
            elif turn % 4 == 0:
                ctx.cancel_all(symbol)
                ctx.order_target(0, symbol)


class Raises(Algorithm):
    """Raises at each bar."""

    timeframe = "1min"

    def on_bar(self, ctx: Context) -> None:
        ctx.order(1)
        raise ValueError("never")


class Sleeps(Algorithm):
    """Does not come back for a while."""

    timeframe = "1min"
    seconds = Param(3.0)

    def on_bar(self, ctx: Context) -> None:
        time.sleep(self.seconds)


class Spins(Algorithm):
    """Never comes back by itself."""

    timeframe = "1min"

    def on_bar(self, ctx: Context) -> None:
        while True:
            pass


class Leaks(Algorithm):
    """Gives orders without end."""

    timeframe = "1min"

    def on_bar(self, ctx: Context) -> None:
        while True:
            ctx.order(1)


class Piles(Algorithm):
    """Gives more orders at each bar than it may, and cancels none."""

    timeframe = "1min"

    def on_bar(self, ctx: Context) -> None:
        for _ in range(300):
            ctx.order(1, limit=1.0)


class Rests(Algorithm):
    """Holds one symbol behind a stop-loss, and has an entry wait for another; may break then."""

    timeframe = "1min"
    bars = Param(1_000_000)

    def on_bar(self, ctx: Context) -> None:
        turn = self.state["turn"] = self.state.get("turn", 0) + 1
        held, other = ctx.symbols
        if turn == 1:
            ctx.order(5, held, stop_loss=round(ctx[held].price * 0.5, 2))
            ctx.order(3, other, limit=round(ctx[other].price * 0.5, 2))
        if turn > self.bars:
            raise ValueError("broken")


CLASSES: dict[str, type[Algorithm]] = {
    cls.__name__: cls for cls in (Zigzag, Raises, Sleeps, Spins, Leaks, Piles, Rests)
}


def factory(claim: Claim) -> tuple[Algorithm, Costs]:
    """Make an algorithm of `CLASSES` by the name that its source has."""
    registration = claim.record.registration
    cls = CLASSES[registration.source]
    algorithm = cls(
        symbols=registration.symbols,
        timeframe=registration.timeframe,
        name=registration.name,
        **registration.params,
    )
    return algorithm, Costs(slippage=NoSlippage())


def registration(
    name: str = "zigzag", kind: str = "Zigzag", symbols: tuple[str, ...] = ("AAPL",), **more: Any
) -> Registration:
    return Registration(name=name, source=kind, symbols=symbols, **{"timeframe": "1min", **more})


class Running:
    """A runner on a thread, and the clock it lives by."""

    def __init__(self, stack: Stack, journal: Journal, **more: Any) -> None:
        self.stack = stack
        self.journal = journal
        self.error: BaseException | None = None
        settings: Mapping[str, Any] = {"policy": QUICK, "factory": factory, "look_every": 0.2}
        self.runner = LiveRunner(stack.client, journal, **{**settings, **more})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except BaseException as error:
            self.error = error

    def until(self, holds: Callable[[], bool], what: str = "") -> None:
        """Wait until something holds; fail where it does not come, or the runner has ended."""
        end = time.monotonic() + PATIENCE
        while not holds():
            if self.error is not None:
                raise self.error
            assert self._thread.is_alive(), "the runner has ended"
            assert time.monotonic() < end, f"waited in vain for {what or holds}"
            time.sleep(0.01)

    def started(self, *names: str) -> None:
        """Wait until these run (all that are hosted, without names)."""

        def holds() -> bool:
            lives = {r.name: r for r in self.journal.records()}
            chosen = [lives[name] for name in names] if names else list(lives.values())
            return all(r.life.value in ("running", "killed") and r.cursor for r in chosen)

        self.until(holds, "the algorithms to run")

    def minutes(self, count: int, *names: str, step: int = 1) -> None:
        """Let market time pass, a minute at a time, each dealt with before the next."""
        for _ in range(count):
            self.stack.clock.advance(minutes=step)
            self.caught_up(*names)

    def caught_up(self, *names: str) -> None:
        """Wait until these (by default all running) have gone through all that has closed."""
        closed = closed_minute(self.stack.clock)

        def holds() -> bool:
            chosen = [
                r
                for r in self.journal.records(list(names) or None)
                if names or r.life.value in ("running", "killed")
            ]
            return all((r.cursor or 0) >= closed for r in chosen)

        self.until(holds, f"cursors to reach {from_micros(closed)}")

    def caught_up_to(self, moment: str) -> None:
        """Wait until all have gone through what had closed at a moment."""
        closed = to_micros(datetime.fromisoformat(moment))
        self.until(
            lambda: all((r.cursor or 0) >= closed for r in self.journal.records()),
            f"cursors to reach {moment}",
        )

    def stop(self) -> None:
        self.runner.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def closed_minute(clock: FixedClock) -> int:
    """Return the close of the newest minute that is closed and settled (3 seconds)."""
    settled = clock.now_us() - 3_000_000
    return settled - settled % 60_000_000
