"""Who acts: leases that are renewed while a process lives, and that end with it.

A holder counts its lease from before it asked, on a clock that goes on while the process is
stopped or the machine asleep. So it stops believing in a lease before the server gives it to
somebody else: whoever was paused notices before it acts. Losing a race here loses no bars either:
what is written is idempotent and guarded by revisions.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from marketdata.errors import MarketDataError
from marketdata.pausing import LEADER_ELECTED, LEADER_RENEWING, pause_point

log = logging.getLogger("marketdata.leadership")

DAEMON: Final = "daemon"
LEASE_SECONDS: Final = 30.0
RENEW_SECONDS: Final = 10.0
POLL_SECONDS: Final = 5.0
"""A standby looks this often whether the lease is free: it acts within lease + poll + one
connection attempt of a machine that vanished, 40 s."""
_RETRY_SECONDS: Final = 1.0
_SAFETY: Final = 0.9
"""The share of a lease that its holder believes in: two clocks never run quite alike."""
_SLICE: Final = 0.25
_PATIENCE: Final = 2.0

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> float:
    """Return seconds on a clock that never goes back nor stands still, not even asleep."""
    return time.clock_gettime(_CLOCK)


class LeaseBook(Protocol):
    """Where leases are kept. Every method may raise `StoreError`."""

    def acquire(
        self,
        name: str,
        *,
        token: str,
        holder: str,
        seconds: float,
        details: Mapping[str, Any] | None = None,
    ) -> int | None: ...

    def renew(
        self,
        fences: Mapping[str, int],
        *,
        token: str,
        seconds: float,
        details: Mapping[str, Any] | None = None,
    ) -> set[str]: ...

    def release(self, name: str, *, token: str, fence: int) -> None: ...

    def close(self) -> None: ...


def this_process() -> str:
    """Return ``user@host/pid``: how a holder is called."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}/{os.getpid()}"


class Lease:
    """The right to act, under a name, for as long as `held` says so."""

    def __init__(self, name: str, fence: int, until: float) -> None:
        self.name = name
        self.fence = fence
        self._until = until
        self._lost = False

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lease; False as soon as it may have run out."""
        return not self._lost and elapsed() < self._until

    def extend(self, until: float) -> None:
        """Believe in it until `until`, on the clock of `elapsed`."""
        self._until = until

    def lose(self) -> None:
        """Believe in it no longer."""
        self._lost = True

    def __repr__(self) -> str:
        return f"Lease({self.name!r}, fence={self.fence}, {'held' if self.held else 'lost'})"


class StopSignal(threading.Event):
    """An event that is also set once another one is, or once a lease may have run out.

    Parameters
    ----------
    outer : Event
        Set when the whole process is to end.
    """

    def __init__(self, outer: threading.Event) -> None:
        super().__init__()
        self._outer = outer
        self._leases: tuple[Lease, ...] = ()

    def arm(self, leases: Sequence[Lease]) -> None:
        """Begin anew: what is done from now on is done by the right of all of `leases`."""
        self.clear()
        self._leases = tuple(leases)

    def is_set(self) -> bool:
        """Whether to stop before the next step."""
        if super().is_set() or self._outer.is_set():
            return True
        return not all(lease.held for lease in self._leases)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is time to stop, or for `timeout` seconds; return `is_set`."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _SLICE if end is None else end - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, _SLICE))
        return True


class ProcessLeases:
    """Holds the leases of one process: takes them, renews them on a thread, gives them back.

    Parameters
    ----------
    book : LeaseBook
        Closed with them.
    seconds : float
        Length of a lease.
    renew_every, poll_every : float
        Seconds between renewals, and between attempts to lead where somebody else does.
    fit : callable, optional
        Whether this process is able to act. While it is not, nothing is renewed: somebody else
        takes over from a process that lives but hangs.
    details : callable, optional
        Returns what is written down beside the holder's name, anew with each renewal.
    """

    def __init__(
        self,
        book: LeaseBook,
        *,
        seconds: float = LEASE_SECONDS,
        renew_every: float = RENEW_SECONDS,
        poll_every: float = POLL_SECONDS,
        fit: Callable[[], bool] = lambda: True,
        details: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.holder = this_process()
        self.gained = 0
        """How often this process came to lead."""
        self._book = book
        self._seconds = seconds
        self._renew_every = renew_every
        self._poll_every = poll_every
        self._fit = fit
        self._details = details
        self._token = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._sought: str | None = None
        self._on_gain: Callable[[], None] = _nothing
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._troubled = False

    # --------------------------------------------------------------------------- single leases

    def take(self, name: str) -> Lease | None:
        """Take the lease `name` and keep it renewed; None where it is held, by us or by others.

        Raises
        ------
        StoreError
            Nobody knows; what was taken runs out by itself.
        """
        with self._lock:
            if name in self._leases and self._leases[name].held:
                return None
        asked = elapsed()
        fence = self._book.acquire(
            name,
            token=self._token,
            holder=self.holder,
            seconds=self._seconds,
            details=self._details(),
        )
        if fence is None:
            return None
        lease = Lease(name, fence, asked + self._seconds * _SAFETY)
        with self._lock:
            self._leases[name] = lease
            self._start()
        return lease

    def give_back(self, lease: Lease) -> None:
        """Let somebody else have it at once; does nothing where it was lost. Never raises."""
        with self._lock:
            if self._leases.get(lease.name) is lease:
                del self._leases[lease.name]
        lease.lose()
        try:
            self._book.release(lease.name, token=self._token, fence=lease.fence)
        except MarketDataError as error:
            log.warning("%s runs out by itself: %s", lease.name, error)

    @contextmanager
    def holding(self, name: str) -> Iterator[Lease | None]:
        """Hold the lease `name` for a block; None where it is taken."""
        lease = self.take(name)
        try:
            yield lease
        finally:
            if lease is not None:
                self.give_back(lease)

    # ------------------------------------------------------------------------------ leading

    def lead(self, name: str = DAEMON, on_gain: Callable[[], None] | None = None) -> None:
        """From now on try to hold `name`, for ever anew.

        Parameters
        ----------
        on_gain : callable, optional
            Called, on the renewing thread, each time the lease was gained.
        """
        with self._lock:
            self._sought = name
            self._on_gain = on_gain or _nothing
            self._start()
        self._wake.set()

    @property
    def leading(self) -> Lease | None:
        """The lease that was sought, while it is held."""
        with self._lock:
            lease = self._leases.get(self._sought or "")
        return lease if lease is not None and lease.held else None

    def is_leader(self) -> bool:
        """Whether this process may act; False as soon as its lease may have run out."""
        return self.leading is not None

    def close(self) -> None:
        """Give everything back and close the book. Idempotent, never raises."""
        with self._lock:
            self._ended, thread = True, self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
        for lease in list(self._leases.values()):
            if self._troubled:
                lease.lose()  # nobody hears us: it runs out by itself
            else:
                self.give_back(lease)
        with contextlib.suppress(MarketDataError):
            self._book.close()

    # ----------------------------------------------------------------------------- the thread

    def _start(self) -> None:
        if self._thread is None and not self._ended:
            self._thread = threading.Thread(
                target=self._keep, name="marketdata-leases", daemon=True
            )
            self._thread.start()

    def _keep(self) -> None:
        while not self._ended:
            pause = self._renew_every
            try:
                self._renew()
                if not self._campaign():
                    pause = min(pause, self._poll_every)
                if self._troubled:
                    log.info("leases can be renewed again")
                self._troubled = False
            except MarketDataError as error:
                if not self._troubled:
                    log.warning("leases cannot be renewed: %s", error)
                self._troubled = True
                pause = min(pause, _RETRY_SECONDS)
            except Exception:
                log.exception("renewing leases failed")
                pause = min(pause, _RETRY_SECONDS)
            self._wake.wait(pause)
            self._wake.clear()

    def _renew(self) -> None:
        with self._lock:
            held = {n: lease for n, lease in self._leases.items() if lease.held}
            for name in set(self._leases) - set(held):
                log.error("lost the lease %s: it may have run out", name)
                self._leases.pop(name).lose()
        if not held or not self._fit():
            return
        pause_point(LEADER_RENEWING)
        asked = elapsed()
        kept = self._book.renew(
            {name: lease.fence for name, lease in held.items()},
            token=self._token,
            seconds=self._seconds,
            details=self._details(),
        )
        with self._lock:
            for name, lease in held.items():
                if name in kept:
                    lease.extend(asked + self._seconds * _SAFETY)
                elif self._leases.get(name) is lease:
                    log.error("lost the lease %s to somebody else", name)
                    self._leases.pop(name).lose()

    def _campaign(self) -> bool:
        """Try to lead where nobody does; return whether we do."""
        name = self._sought
        if name is None or self.leading is not None:
            return True
        if not self._fit() or self.take(name) is None:
            return False
        log.info("leading")
        self.gained += 1
        pause_point(LEADER_ELECTED)
        self._on_gain()
        return True


def _nothing() -> None:
    pass
