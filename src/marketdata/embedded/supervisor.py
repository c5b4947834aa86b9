"""The supervisor of a home: a small process that stops the servers after their last user.

It is started with the servers, belongs to no terminal, and holds ``watch.lock`` for as long as
it lives. Since it looks at the users' locks, which the kernel frees, it does not matter how a
user ended; since it does the stopping, no user waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from marketdata.embedded.home import Home, rotate, tail
from marketdata.embedded.locks import LockFile, is_held
from marketdata.embedded.processes import send, server_environment, spawn_detached
from marketdata.errors import ConfigurationError

_PROGRAM = Path(__file__).with_name("__main__.py")
# No settings and keys of the user: the supervisor outlives the process they were meant for.
_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "HOME")


def ensure(home: Home) -> None:
    """Start the supervisor unless it lives; `wait_ready` waits until it is at work."""
    lock = LockFile(home.watch_lock)
    if not lock.try_acquire():
        return
    try:
        lock.write("")
        rotate(home.log("watch"))
        environment = server_environment()
        environment.update({name: os.environ[name] for name in _PASSED_ON if name in os.environ})
        spawn_detached(
            [sys.executable, "-P", str(_PROGRAM), str(home.path), str(lock.fd)],
            log=home.log("watch"),
            fds=[lock.fd],
            env=environment,
        )
    finally:
        lock.hand_over()


def wait_ready(home: Home, deadline: float) -> None:
    """Return once the supervisor is at work.

    Raises
    ------
    ConfigurationError
        It does not run: without it nothing would stop the servers.
    """
    while home.supervisor() is None:
        if not is_held(home.watch_lock) or time.monotonic() > deadline:
            raise ConfigurationError(
                f"the supervisor of the embedded servers does not run ({sys.executable}): "
                f"{tail(home.log('watch'))}"
            )
        time.sleep(0.005)


def end(home: Home, deadline: float) -> None:
    """End the supervisor and leave the servers as they are. Call it under the home's lock."""
    patience = min(deadline, time.monotonic() + 5)
    while is_held(home.watch_lock):
        pid = home.supervisor()
        if pid is not None:
            late = time.monotonic() > patience
            send([pid], signal.SIGKILL if late else signal.SIGTERM)
        if time.monotonic() > patience + 5:
            return
        with contextlib.suppress(InterruptedError):
            time.sleep(0.01)
