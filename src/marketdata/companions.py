"""Programs of other packages that the leading daemon keeps running beside itself.

An entry of the group ``marketdata.companions`` names a module; the daemon that leads runs it as
``python -m MODULE``, a process of its own: nothing of it is imported here, so what it does wrong,
or slowly, costs the daemon nothing. One that ends is started again, later each time it ends soon.
A standby runs none, and a daemon that stops leading ends its own.

A companion has the daemon's settings, writes to its stderr, and finds its stdin at its end once the
daemon is gone, however that went. It is ended by SIGTERM, and by SIGKILL where that takes too long;
two daemons may each have one for a moment.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from marketdata.config import KEYWORD, VARIABLES

if TYPE_CHECKING:
    from marketdata.config import Settings

log = logging.getLogger("marketdata.companions")

GROUP: Final = "marketdata.companions"
LOOK_EVERY: Final = 0.5
WAIT_FIRST: Final = 1.0
WAIT_MOST: Final = 60.0
STEADY: Final = 60.0
"""Seconds after which one that ends is started again at once."""
GRACE: Final = 15.0
"""Seconds from SIGTERM to SIGKILL."""


def registered() -> dict[str, list[str]]:
    """Return the command line of each companion that installed packages name. Imports none."""
    found = entry_points(group=GROUP)
    return {entry.name: [sys.executable, "-m", entry.module] for entry in found}


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment in which a process has these settings too."""
    found = dict(os.environ)
    for field, names in VARIABLES.items():
        value = getattr(settings, field)
        if settings.source_of(field) != KEYWORD or value is None:
            continue  # it is in the environment, or is read from where we read it
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        found[names[0]] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


@dataclass
class _Companion:
    """One program and what became of it."""

    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    again_at: float = 0.0
    failures: int = 0
    starts: int = 0
    exit_code: int | None = None
    terminated: float | None = None


class Companions:
    """Keeps programs running while this process leads, on a thread of its own.

    Parameters
    ----------
    commands : mapping of str to sequence of str
        Name to command line.
    environment : mapping of str to str
    leading : callable
        Whether they are to run; asked twice a second.
    first, most : float
        Seconds until one that ended is started again: doubled each time it ends soon.
    grace : float
        Seconds that one has to end.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        leading: Callable[[], bool],
        *,
        first: float = WAIT_FIRST,
        most: float = WAIT_MOST,
        grace: float = GRACE,
    ) -> None:
        self._companions = {name: _Companion(list(words)) for name, words in commands.items()}
        self._environment = dict(environment)
        self._leading = leading
        self._first, self._most, self._grace = first, most, grace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="marketdata-companions", daemon=True)

    def start(self) -> None:
        """Begin, where there are any."""
        if self._companions:
            self._thread.start()

    def stop(self) -> None:
        """Have all of them end soon; does not wait."""
        self._stop.set()

    def close(self) -> None:
        """End all of them, within the grace that each has. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._grace + 3.0)

    def told(self) -> dict[str, dict[str, Any]]:
        """Return how each does, JSON-representable: running, waiting or idle (we do not lead)."""
        found: dict[str, dict[str, Any]] = {}
        for name, each in self._companions.items():
            process = each.process
            state = "running" if process else "waiting" if each.again_at else "idle"
            found[name] = {
                "state": state,
                "pid": None if process is None else process.pid,
                "starts": each.starts,
                "failures": each.failures,
                "exit_code": each.exit_code,
            }
        return found

    # ----------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                wanted = self._leading()
                for name, each in self._companions.items():
                    self._turn(name, each, wanted)
                self._stop.wait(LOOK_EVERY)
        finally:
            while any(each.process is not None for each in self._companions.values()):
                for name, each in self._companions.items():
                    self._turn(name, each, False)
                time.sleep(0.02)

    def _turn(self, name: str, each: _Companion, wanted: bool) -> None:
        process, now = each.process, time.monotonic()
        if process is not None and process.poll() is not None:
            self._ended(name, each, now)
        elif process is not None and not wanted:
            self._end(name, each, process, now)
        elif process is None and wanted and now >= each.again_at:
            self._begin(name, each, now)
        elif process is None and not wanted:
            each.again_at, each.failures = 0.0, 0

    def _begin(self, name: str, each: _Companion, now: float) -> None:
        each.began, each.terminated = now, None
        each.starts += 1
        try:
            each.process = subprocess.Popen(  # noqa: S603 - what installed packages name
                each.command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=2,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        except OSError as error:
            self._failed(each, now)
            log.error("%s cannot be started: %s", name, error)
            return
        log.info("%s runs as process %d", name, each.process.pid)

    def _ended(self, name: str, each: _Companion, now: float) -> None:
        assert each.process is not None
        each.exit_code = each.process.returncode
        if each.process.stdin is not None:
            with suppress(OSError):
                each.process.stdin.close()
        each.process = None
        if each.terminated is not None:
            log.info("%s has ended", name)
            return
        if now - each.began >= STEADY:
            each.failures = 0
        self._failed(each, now)
        log.warning(
            "%s ended with exit code %d, and is started again in %.0f s",
            name, each.exit_code, each.again_at - now,
        )  # fmt: skip

    def _failed(self, each: _Companion, now: float) -> None:
        each.failures += 1
        each.again_at = now + min(self._most, self._first * 2.0 ** min(each.failures - 1, 30))

    def _end(
        self, name: str, each: _Companion, process: subprocess.Popen[bytes], now: float
    ) -> None:
        if each.terminated is None:
            each.terminated = now
            process.send_signal(signal.SIGTERM)
        elif now - each.terminated >= self._grace:
            log.warning("%s did not end within %.0f s and is killed", name, self._grace)
            process.kill()
            each.terminated = math.inf
