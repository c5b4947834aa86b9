"""Processes that run live algorithms, to be killed.

``python -m tests.live_process`` imports what takes long, once; each line on its stdin forks a process
that runs until it is signalled, and each such process' id is a line on its stdout. All read the time
from a file that the test moves.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from marketdata.clock import FixedClock, from_micros


class SharedClock:
    """Market time in a file: it stands still until somebody writes another one."""

    speed = 0.0

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    def now_us(self) -> int:
        return int(struct.unpack("<q", self._memory[:8])[0])

    def set(self, micros: int) -> None:
        self._memory[:8] = struct.pack("<q", micros)

    def __repr__(self) -> str:
        return from_micros(self.now_us()).isoformat()


class Processes:
    """Maker of processes that live by `clock`."""

    def __init__(self, directory: Path, clock: FixedClock, **settings: Any) -> None:
        self._path = directory / "clock"
        self._path.write_bytes(struct.pack("<q", clock.now_us()))
        self._clock = clock
        self._shared = SharedClock(self._path)
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.live_process", str(self._path), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._children: set[int] = set()

    def start(self) -> int:
        """Begin a process and return its id."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write("start\n")
        self._zygote.stdin.flush()
        child = int(self._zygote.stdout.readline())
        self._children.add(child)
        return child

    def advance(self, **delta: float) -> None:
        """Move time on, for the market first."""
        self._clock.advance(**delta)
        self._shared.set(self._clock.now_us())

    def kill(self, child: int, number: int = signal.SIGKILL) -> int:
        """End a process by a signal, wait for its end, and return its exit status."""
        os.kill(child, number)
        return self.wait(child)

    def wait(self, child: int) -> int:
        """Return the exit code of a process, below 0 for a signal."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(f"wait {child}\n")
        self._zygote.stdin.flush()
        self._children.discard(child)
        return int(self._zygote.stdout.readline())

    def close(self) -> None:
        for child in list(self._children):
            self.kill(child)
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(10)
        assert self._zygote.stdout is not None
        self._zygote.stdout.close()


def _serve(clock: SharedClock, settings: dict[str, Any]) -> None:
    import numpy
    import pandas
    import psycopg
    import redis

    import marketdata.calendars
    import marketdata.client
    import marketdata.following
    import marketdata.wiring
    import tests.live_algorithms
    import tests.venues

    assert all((numpy, pandas, psycopg, redis, marketdata, tests))
    marketdata.calendars.calendar_for(marketdata.calendars.EXCHANGE, clock.now_us())
    for line in sys.stdin:
        command, _, child = line.strip().partition(" ")
        if command == "wait":
            _, status = os.waitpid(int(child), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        forked = os.fork()
        if forked == 0:
            os.close(0)
            _live(clock, settings)
        print(forked, flush=True)


def _live(clock: SharedClock, settings: dict[str, Any]) -> None:
    """Run the algorithms, and leave without the zygote's own end."""
    code = 70
    try:
        import marketdata as md
        from algorithms.live.journal import Journal
        from algorithms.live.runner import LiveRunner
        from algorithms.live.signals import run_until_signalled
        from algorithms.venues.alpaca_paper import AlpacaPaper
        from marketdata.config import Settings
        from tests.live_algorithms import QUICK, factory
        from tests.venues import KEY, SECRET

        signal.signal(signal.SIGINT, signal.default_int_handler)
        chosen = Settings.load(**{**settings["client"], "clock": repr(clock)})
        client = md.Client(chosen, clock=clock)
        database = client.database()
        journal = Journal(database.url, database.schema)
        venues = {}
        if "venue" in settings:
            venues["alpaca"] = AlpacaPaper(KEY, SECRET, url=settings["venue"], timeout=5.0)
        code = run_until_signalled(
            LiveRunner(
                client,
                journal,
                factory=factory,
                policy=QUICK,
                venues=venues,
                poll_every=0.1,
                lease_seconds=settings.get("lease", 0.5),
                look_every=0.1,
            )
        )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(SharedClock(Path(sys.argv[1])), json.loads(sys.argv[2]))
