"""The demo's acts of the daemon: subscribed symbols kept fresh, history filled, indicators."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING, Final

from marketdata.cli.output import Output, make_table, size
from marketdata.clock import from_micros

if TYPE_CHECKING:
    from marketdata.backfill_report import BackfillReport
    from marketdata.cli.demo_stage import Stage
    from marketdata.wiring import Runtime

_CYCLES: Final = 3
_OWNER: Final = "demo"
_YEARS: Final = 0.25
_NAMED: Final = 5
_SHOWN: Final = ("rsi_14", "sma_20", "ema_50", "macd_12_26_9", "atr_14")
_COLUMNS: Final = ("close", *_SHOWN)


class DaemonActs:
    """What ``marketdata up`` does all day, shown step by step on a second connection.

    Parameters
    ----------
    out : Output
        Where it is shown.
    stage : Stage
        The running parts; its clock is moved on.
    head : callable
        Prints the heading of an act.
    broken : list of str
        Takes what did not turn out as it should.
    """

    def __init__(
        self, out: Output, stage: Stage, head: Callable[[str], None], broken: list[str]
    ) -> None:
        self._out = out
        self._stage = stage
        self._head = head
        self._broken = broken

    def play(self) -> None:
        """Show all three acts; each works on real servers, nothing is prepared."""
        with closing(self._stage.daemon()) as daemon:
            if self._stage.script.base == "1min":
                self._kept_fresh(daemon)
            self._history(daemon)
        self._indicators()

    # ------------------------------------------------------------------------------ cycles

    def _kept_fresh(self, daemon: Runtime) -> None:
        from marketdata.jobs import JOBS

        stage, out = self._stage, self._out
        names = list(stage.script.symbols)
        self._head("Subscribed symbols stay fresh")
        out.line(f'   md.subscribe({names}, "{stage.script.base}")'.replace("'", '"'), "cyan")
        stage.client.subscribe(names, stage.script.base, owner=_OWNER)
        out.line(f"   then {_CYCLES} cycles of the daemon, a minute of market time apart")
        out.line()
        cycle = JOBS["cycle"].prepare(daemon, Event())
        columns = ("newest bar", "bars", "broker calls", "indicators", "ms")
        table = make_table("market time", *columns, right=list(columns[1:]))
        for number in range(_CYCLES):
            if number:
                stage.clock.advance(minutes=1)
            calls, began = len(stage.sandbox.requests), time.perf_counter()
            summary = cycle().summary()
            ms = (time.perf_counter() - began) * 1000
            calls = len(stage.sandbox.requests) - calls
            newest = stage.client.get_bars(names[0], stage.script.base, limit=1).index[-1]
            now = from_micros(stage.clock.now_us()).astimezone(stage.script.moment.tzinfo)
            local = newest.tz_convert(now.tzinfo)
            row = (summary["bars"], calls, summary["indicators"], f"{ms:,.0f}")
            table.add_row(f"{now:%H:%M:%S}", f"{local:%H:%M}", *map(str, row))
            record = {"market_time": now.isoformat(), "newest": local.isoformat(), "calls": calls}
            out.row({"act": "cycle", **record, **summary})
            if summary["failed"]:
                self._broken.append(f"cycle {number + 1}: {summary.get('error')}")
        out.table(table, indent=3)
        out.line()
        frame = stage.client.get_bars(names, stage.script.base, limit=500)
        tiers = frame.attrs["marketdata"]["tiers"]
        if tiers != f"redis:{len(names)}":
            self._broken.append(f"after the cycles the read was answered by {tiers}")
        out.line("   Bars of the minute before are read again with the new ones: brokers correct")
        out.line("   them. A read finds everything in Redis.")

    # ------------------------------------------------------------------------------ history

    def _history(self, daemon: Runtime) -> None:
        from marketdata.backfill import Backfill
        from marketdata.backfill_report import Limits, Wanted
        from marketdata.cli.backfill_progress import shown_progress
        from marketdata.types import Timeframe

        script, out = self._stage.script, self._out
        names, span = script.symbols, f"--years {_YEARS:g}"
        base = Timeframe(script.base)
        wanted = Wanted(names, (Timeframe.DAY_1, base), years=_YEARS)
        if script.files:  # of the others all is read by now
            names, first = script.unread, script.first_day.isoformat()
            span = f"-t {script.base} --start {first}"
            wanted = Wanted(names, (base,), start=first)
        if not names:
            return
        self._head("Gaps of history are filled at night")
        words = " ".join(names if len(names) <= _NAMED else (*names[:_NAMED], "..."))
        out.line(f"   marketdata backfill {words} {span}", "cyan")
        job = Backfill(daemon)
        limits = Limits(max_symbols=0)
        plan = job.plan(wanted, limits)
        out.line()
        price = plan.this_run
        out.line(f"   the plan: at most {price.calls:,} calls and {price.bars:,} bars")
        with shown_progress(out, "auto") as show:
            report = job.run(wanted, limits, show)
        self._tell(report, daemon)

    def _tell(self, report: BackfillReport, daemon: Runtime) -> None:
        from marketdata.sealing import seal

        out = self._out
        out.row({"act": "backfill", **report.summary()})
        pace = f", {report.bars / report.seconds:,.0f} bars a second" if report.bars else ""
        out.line(
            f"   filled:   {report.calls:,} calls, {report.bars:,} bars in {report.seconds:.1f} s{pace}"
        )
        if not report.complete:
            self._broken.append(f"backfill: {len(report.failed)} failed, {report.gaps_left} left")
        seal(daemon, Event())
        held = daemon.figures.look()
        if held.sealed:
            out.line(
                f"   sealed:   {held.sealed:,} settled bars in {size(held.chunk_bytes)}, "
                f"{held.chunk_bytes / held.sealed:.0f} bytes a bar; as rows about 170"
            )

    # --------------------------------------------------------------------------- indicators

    def _indicators(self) -> None:
        stage, out = self._stage, self._out
        script = stage.script
        self._head("Indicators, on the same path")
        call = f'md.get_indicators({list(script.symbols)}, [...], "{script.base}", limit=1)'
        out.line("   " + call.replace("'", '"'), "cyan")
        out.line()
        frame = stage.client.get_indicators(
            script.symbols, list(_SHOWN), script.base, limit=1, bars=True
        )
        table = make_table(stage.market, *_COLUMNS, right=list(_COLUMNS))
        for symbol in script.symbols:
            row = frame.xs(symbol, level="symbol").iloc[-1]
            table.add_row(symbol, *(f"{row[c]:,.2f}" for c in _COLUMNS))
            out.row({"act": "indicators", "symbol": symbol, **{c: float(row[c]) for c in _COLUMNS}})
        out.table(table, indent=3)
        out.line()
        out.line("   What they need to settle was read by itself. `md.indicators()` lists them;")
        out.line("   any pandas-ta name works too.")
