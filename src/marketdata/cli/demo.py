"""``marketdata demo``: the three tiers at work, offline, on servers of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.bars import bars_table, heading
from marketdata.cli.demo_daemon import DaemonActs
from marketdata.cli.exits import DONE, UNEXPECTED
from marketdata.cli.options import command
from marketdata.cli.output import Output, make_table, send_logs_to_stderr
from marketdata.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.cli.demo_stage import Stage

PAGE: Final = Path("marketdata-demo.html")
_RECOVERY: Final = 20.0
_TIERS: Final = {"redis": "Redis", "postgres": "PostgreSQL", "broker": "broker"}
_COLOURS: Final = {"redis": "green", "postgres": "cyan", "broker": "yellow"}


def register(app: typer.Typer) -> None:
    command(app, "demo")(demo)


def demo(
    out: Output,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Real prices to replay (CSV, CSV.gz, Parquet); repeatable."),
    ] = None,
    basis: Annotated[
        str, typer.Option(metavar="raw|split", help="What the prices in the files are.")
    ] = "raw",
    symbols: Annotated[
        str, typer.Option(metavar="A,B,C", help="What to read; three familiar ones by default.")
    ] = "",
    page: Annotated[Path, typer.Option(help="Where the page of candles goes.")] = PAGE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the demo's database for a look; name it.")
    ] = False,
) -> int:
    """See it work: offline, in seconds, touching nothing."""
    from marketdata.cli.demo_stage import open_stage, write_script

    began = time.monotonic()
    # What the show breaks on purpose would fill the screen with warnings.
    send_logs_to_stderr("debug" if out.debug else "error")
    names = [s for s in symbols.replace(",", " ").split() if s]
    with contextlib.ExitStack() as stack:
        with _busy(out, "starting PostgreSQL, Redis and a broker ..."):
            script, market = write_script(names, data or [], basis)
            stage = stack.enter_context(open_stage(script, market, keep))
        show = _Show(out, stage)
        show.opening(time.monotonic() - began)
        show.one_call()
        show.three_tiers()
        show.without_redis()
        DaemonActs(out, stage, show.head, show.broken).play()
        show.page(page)
    show.closing(time.monotonic() - began, keep)
    return out.done(
        UNEXPECTED if show.broken else DONE,
        simulated=not stage.script.files,
        page=show.written,
        home=str(stage.home) if keep else None,
        broken=show.broken,
        seconds=round(time.monotonic() - began, 3),
    )


@contextlib.contextmanager
def _busy(out: Output, text: str) -> Iterator[None]:
    """Show a line while something takes its time, on a terminal only."""
    if not out.notes.is_terminal:
        yield
        return
    with out.notes.status(text):
        yield


@dataclass(frozen=True)
class Reading:
    """One read of the demo."""

    read: str
    tiers: str
    bars: int
    ms: float
    broker_calls: int
    same: bool | None = None
    """Whether the answer equals the first one, where it should."""


class _Show:
    """The acts of the demo, each printing what it measured."""

    def __init__(self, out: Output, stage: Stage) -> None:
        self.out = out
        self.stage = stage
        self.broken: list[str] = []
        self.written: Path | None = None
        self._reference: pd.DataFrame | None = None
        self._first: Reading
        self._act = 0

    # ------------------------------------------------------------------------------- acts

    def opening(self, seconds: float) -> None:
        """Say what plays, and that nothing of it is a quotation."""
        out, stage, script = self.out, self.stage, self.stage.script
        out.line()
        if script.files:
            names = ", ".join(p.name for p in script.files)
            out.line(f"marketdata demo: real prices, replayed from {names}", "bold")
        else:
            out.line("marketdata demo: SIMULATED prices, made up by the sandbox", "bold")
        out.line()
        versions = stage.versions
        out.line(
            f"   PostgreSQL {versions['postgres']} and Redis {versions['redis']}, started for this"
        )
        out.line(f"   a broker that speaks as Alpaca does and counts calls: {stage.sandbox.url}")
        out.line(
            f"   market time {script.moment:%a %d %b %Y %H:%M} New York; ready in {seconds:.1f} s"
        )

    def one_call(self) -> None:
        """Make the call that everything is about, and show what it returns."""
        script = self.stage.script
        self.head("One call")
        call = f'md.get_bars({json.dumps(script.symbols)}, "{script.base}", limit=500)'
        self.out.line(f"   {call}", "cyan")
        self.out.line()
        with _busy(self.out, "reading ..."):
            what = f"{script.base}, last 500"
            self._first = self._measure(what, script.base, limit=500, expect_calls=True)
        assert self._reference is not None
        shown = self._reference.loc[[script.symbols[0]]].tail(3)
        self.out.line(f"   {heading(shown, self._reference.attrs['marketdata'])}", "bold")
        self.out.table(bars_table(shown), indent=3)

    def three_tiers(self) -> None:
        """Read the same and more, again and again; see who answers."""
        script = self.stage.script
        self.head("Three tiers answer it")
        first = self._first
        again = self._measure("the same again", script.base, limit=500)
        self._empty_redis()
        stored = self._measure("Redis emptied", script.base, limit=500)
        wider = self._measure(f"{script.base}, {script.wider}: the rest", script.base, period=script.wider,
                              expect_calls=None, compare=False)  # fmt: skip
        derived = self._measure(f"{script.derived} from {script.base}", script.derived, limit=100,
                                compare=False)  # fmt: skip
        readings = [first, again, stored, wider, derived]
        if not script.files:
            readings.append(
                self._measure(
                    "1day, 2 years", "1day", period="2y", compare=False, expect_calls=True
                )
            )
        self._print(readings)
        faster = first.ms / again.ms if again.ms else 0
        if not again.broker_calls:
            self.out.line(
                f"   The second read made no broker call and was {faster:,.0f} times as fast."
            )

    def without_redis(self) -> None:
        """Freeze Redis, then kill it; see that the answer stays."""
        script = self.stage.script
        self.head("Redis pulled away")
        with _busy(self.out, "Redis is away ..."), self._frozen_redis() as kill:
            frozen = self._measure("Redis frozen", script.base, limit=500)
            later = self._measure("the read after", script.base, limit=500)
            kill()
            killed = self._measure("Redis killed", script.base, limit=500)
            back, seconds = self._until_redis_answers()
        self._print([frozen, later, killed, back], same=True)
        if back.same and "redis" in back.tiers:
            self.out.line(
                f"   The answer never changed; a new Redis was found again after {seconds:.1f} s."
            )

    def page(self, path: Path) -> None:
        """Write a page of candles."""
        from marketdata.plotting import plot

        script = self.stage.script
        frame = self.stage.client.get_bars(script.symbols[0], script.base, limit=390)
        title = f"{script.symbols[0]} {script.base} bars"
        if script.files:
            title += f", replayed from {script.files[0].name}"
        self.head("Candles")
        try:
            plot(frame, path=path, title=title)
        except (MissingDependencyError, OSError) as error:
            # Everything else was shown: a missing extra or a read-only folder is no failure.
            self.out.line(f"   no page: {error}", "yellow")
        else:
            self.written = path.absolute()
            self.out.line(f"   {self.written}")

    def closing(self, seconds: float, keep: bool) -> None:
        """Say how it went and where to go from here."""
        out = self.out
        for each in self.broken:
            out.note(f"error: {each}", style="red")
        out.line()
        out.line(f"Done in {seconds:.1f} s. {self._what_stays(keep)}", "bold")
        out.line()
        width = max(len(what) for what, _ in _next(keep, self.stage))
        for what, lines in _next(keep, self.stage):
            for number, line in enumerate(lines):
                out.line(f"   {what if not number else '':<{width}}   {line}")

    # ------------------------------------------------------------------------------ parts

    def _what_stays(self, keep: bool) -> str:
        if keep:
            return f"The servers are stopped; the database stays in {self.stage.home}"
        return "The servers are stopped and their data is deleted. From here:"

    def head(self, text: str) -> None:
        """Print the heading of the next act."""
        self._act += 1
        self.out.line()
        self.out.line(f"{self._act}  {text}", "bold")
        self.out.line()

    def _measure(
        self,
        what: str,
        timeframe: str,
        *,
        expect_calls: bool | None = False,
        compare: bool = True,
        **window: Any,
    ) -> Reading:
        """Read, and note what it took; a broker call nobody expected breaks the demo."""
        stage = self.stage
        before = len(stage.sandbox.requests)
        began = time.perf_counter()
        frame = stage.client.get_bars(stage.script.symbols, timeframe, **window)
        ms = (time.perf_counter() - began) * 1000
        calls = len(stage.sandbox.requests) - before
        same = None
        if compare and self._reference is None:
            self._reference = frame
        elif compare and self._reference is not None:
            same = frame.equals(self._reference)
            if not same:
                self.broken.append(f"{what}: the answer differs from the first one")
        if expect_calls is False and calls:
            self.broken.append(f"{what}: made {calls} broker calls instead of none")
        if expect_calls and not calls:
            self.broken.append(f"{what}: made no broker call although nothing was stored")
        tiers = " ".join(t.partition(":")[0] for t in frame.attrs["marketdata"]["tiers"].split())
        reading = Reading(what, tiers, len(frame), round(ms, 3), calls, same)
        self.out.row(asdict(reading))
        return reading

    def _print(self, readings: list[Reading], same: bool = False) -> None:
        from rich.text import Text

        right = ["bars", "ms", "broker calls"]
        table = make_table(self.stage.market, "answered by", *right, right=right)
        if same:
            table.add_column("same answer")
        for each in readings:
            tiers = [Text(_TIERS[t], style=_COLOURS[t]) for t in each.tiers.split()]
            cells: list[Any] = [
                each.read, Text(" + ").join(tiers), f"{each.bars:,}", f"{each.ms:,.1f}",
                str(each.broker_calls or "-"),
            ]  # fmt: skip
            if same:
                cells.append("yes" if each.same else "NO")
            table.add_row(*cells)
        self.out.table(table, indent=3)
        self.out.line()

    def _empty_redis(self) -> None:
        import redis

        with redis.Redis.from_url(self.stage.redis_url) as server:
            server.flushall()

    @contextlib.contextmanager
    def _frozen_redis(self) -> Iterator[Callable[[], None]]:
        """Freeze the demo's Redis for the block; yield what kills it."""
        from marketdata import embedded

        servers = embedded.status(self.stage.home).servers
        pid = next(s.pid for s in servers if s.name == "redis")
        assert pid is not None, "the demo's Redis runs"
        os.kill(pid, signal.SIGSTOP)
        try:
            yield lambda: os.kill(pid, signal.SIGKILL)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _until_redis_answers(self) -> tuple[Reading, float]:
        """Read until Redis serves again; whoever restarts it and finds it is the library."""
        script, began = self.stage.script, time.monotonic()
        while True:
            seen = len(self.broken)
            frame = self.stage.client.get_bars(script.symbols, script.base, limit=500)
            waited = time.monotonic() - began
            if "redis" in frame.attrs["marketdata"]["tiers"]:
                return self._measure("a new Redis", script.base, limit=500), waited
            if waited > _RECOVERY:
                self.broken[seen:] = [f"Redis was not found again in {_RECOVERY:.0f} s"]
                return self._measure("no Redis", script.base, limit=500), waited
            time.sleep(0.02)


def _next(keep: bool, stage: Stage) -> list[tuple[str, list[str]]]:
    program, python = _installed("marketdata"), _installed("python")
    found = [
        (
            "in a notebook",
            [
                f"{python}   # or Jupyter there",
                ">>> import marketdata as md",
                '>>> md.get_bars("AAPL", period="1y")   # Yahoo, no keys',
            ],
        ),
        (
            "your own servers",
            [
                "export MARKETDATA_DATABASE_URL=postgresql://user@host/name",
                "export MARKETDATA_REDIS_URL=redis://host:6379/0",
                f"{program} db init",
            ],
        ),
        (
            "Alpaca's prices",
            [
                "export APCA_API_KEY_ID=... APCA_API_SECRET_KEY=...",
                f"{program} bars AAPL MSFT -t 1min -n 100",
            ],
        ),
        ("what is wrong", [f"{program} doctor"]),
    ]
    if keep:
        home = f"--home {stage.home}"
        look = [f"{program} status {home}", f"{program} down {home}; rm -r {stage.home}"]
        found.insert(0, ("this database", look))
    return found


def _installed(name: str) -> str:
    """Return how to call a program of this environment from where the user is."""
    ours = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found and Path(found).parent == ours.parent:
        return name
    if not ours.exists():
        return name
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)
