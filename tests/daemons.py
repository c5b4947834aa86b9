"""Daemons as processes of their own, with leases short enough for tests.

Run as a module this is such a process: ``python -m tests.daemons LEASE [steps]``; it prints where
it listens, and works until SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from marketdata.jobs import Work
    from marketdata.wiring import Runtime

_ROOT = Path(__file__).resolve().parents[1]
STEPS = "CREATE TABLE steps (n bigserial, pid int, at timestamptz DEFAULT clock_timestamp())"


def until(condition: Callable[[], object], seconds: float = 30, pause: float = 0.05) -> float:
    """Wait until something holds; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(pause)
    return time.monotonic() - began


class DaemonProcess:
    """One daemon."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self._url: str | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it answers; waits until that is said."""
        if self._url is None:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            self._url = json.loads(line)["url"]
        return self._url

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of an answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            raise

    def told(self, path: str) -> dict[str, Any]:
        return json.loads(self.get(path)[1])

    def leads(self) -> bool:
        return self.told("readyz")["role"] == "leader"

    def is_ready(self) -> bool:
        return self.get("readyz")[0] == 200

    def metric(self, name: str) -> float:
        """Return the sum over all labels of one metric."""
        lines = self.get("metrics")[1].splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds it took."""
        began = time.monotonic()
        self.send(number)
        code = self.process.wait(60)
        return code, time.monotonic() - began


class Daemons:
    """Starts daemons that share settings; none is left when the test ends."""

    def __init__(self, directory: Path, closing: ExitStack, settings: dict[str, Any]) -> None:
        self._directory = directory
        self._closing = closing
        self._settings = settings
        self._made = 0

    def _start(self, arguments: list[str], settings: dict[str, Any]) -> DaemonProcess:
        self._made += 1
        log = self._directory / f"daemon{self._made}.log"
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MARKETDATA_", "APCA_", "ALPACA_"))
        }
        given = {**self._settings, "listen": "127.0.0.1:0", "companions": "off", **settings}
        ours = {f"MARKETDATA_{name.upper()}": str(value) for name, value in given.items()}
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self._directory,
                env={**kept, **ours, "PYTHONPATH": f"{_ROOT / 'src'}{os.pathsep}{_ROOT}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._closing.callback(_reap, process)
        return DaemonProcess(process, log)

    def up(self, *arguments: str, **settings: Any) -> DaemonProcess:
        """Start ``marketdata up`` as users have it."""
        return self._start(["marketdata", "up", "--json", *arguments], settings)

    def quick(self, lease: float = 3.0, jobs: str = "real", **settings: Any) -> DaemonProcess:
        """Start a daemon with a short lease; ``jobs="steps"`` writes rows instead of bars."""
        return self._start(["tests.daemons", str(lease), jobs], settings)


def _reap(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(30)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def make_daemons(tmp_path: Path) -> Iterator[Callable[..., Daemons]]:
    """A maker of `Daemons` that share the settings it is given."""
    with ExitStack() as closing:
        yield lambda **settings: Daemons(tmp_path, closing, settings)


# -------------------------------------------------------------------------------- the process


@dataclass(frozen=True)
class _Stepped:
    steps: int
    stopped: bool

    def summary(self) -> dict[str, int]:
        return {"steps": self.steps}


def _stepping(runtime: Runtime, stop: threading.Event) -> Work:
    """A job that does one thing after the other for as long as it may."""
    from sqlalchemy import text

    step = text("INSERT INTO public.steps (pid) VALUES (:pid)")

    def work() -> _Stepped:
        steps = 0
        while not stop.is_set():
            runtime.store.database.run(lambda c: c.execute(step, {"pid": os.getpid()}))
            steps += 1
            stop.wait(0.02)
        return _Stepped(steps, stopped=True)

    return work


@contextmanager
def _logging() -> Iterator[None]:
    from marketdata.cli.logs import send_daemon_logs

    send_daemon_logs("logfmt", "info")
    yield


def main() -> int:
    from marketdata.cli.daemon import ended_by_signals
    from marketdata.cli.exits import exit_code
    from marketdata.config import Settings
    from marketdata.daemon import Daemon
    from marketdata.errors import MarketDataError
    from marketdata.jobs import JOBS, Job

    lease, kind = float(sys.argv[1]), sys.argv[2]
    jobs = dict(JOBS)
    if kind == "steps":
        jobs["cycle"] = Job("cycle", "steps", _stepping)
    with _logging():
        daemon = Daemon(Settings.load(), lease=lease, look_every=0.5, grace=3.0, jobs=jobs)
        with ended_by_signals(daemon.stop):
            print(json.dumps({"url": daemon.url}), flush=True)
            try:
                clean = daemon.run()
            except MarketDataError as error:
                return exit_code(error)
            if clean:
                return 0
            os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
