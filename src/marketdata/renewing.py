"""Renews the leases of a client's subscriptions, from one thread, while its process lives."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Final

from marketdata.errors import MarketDataError, StoreReadOnlyError
from marketdata.store.subscriptions import Lease
from marketdata.subscriptions import LEASE, Subscription, SubscriptionManager
from marketdata.types import Timeframe

log = logging.getLogger("marketdata.subscriptions")

_RETRY_FIRST: Final = 1.0
_RETRY_MOST: Final = 30.0
_PATIENCE: Final = 2.0
"""Seconds that ending leases waits for a renewal under way."""


class LeaseKeeper:
    """Renews the leases of one client and process, from one thread, while the process lives.

    The thread starts with the first lease. It outlives an absent PostgreSQL by trying again, and
    makes anew what ran out meanwhile. A forked child has a keeper of its own that holds nothing.

    Parameters
    ----------
    lease : float
        Seconds a lease lasts; renewed three times as often.
    """

    def __init__(self, manager: SubscriptionManager, lease: float = LEASE) -> None:
        self._manager = manager
        self._lease = lease
        self._client = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # so that no renewal brings back what was just released
        self._held: dict[str, dict[Lease, int]] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False
        self._overdue = False

    def new_holder(self) -> str:
        """Return a name for leases that are released together, apart from the client's others."""
        return f"{self._client}:{secrets.token_hex(3)}"

    def hold(
        self,
        owner: str,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        priority: int = 0,
        holder: str | None = None,
        wait: bool = True,
    ) -> Subscription:
        """Subscribe, and renew from now on.

        Parameters
        ----------
        holder : str, optional
            From `new_holder`; by default the client's own.
        wait : bool
            Whether an error is the caller's; else it is logged and tried again as a renewal is.
        """
        name = holder or self._client
        leases = {Lease(owner, name, s, timeframe.value): priority for s in symbols}
        made = Subscription(owner, timeframe, tuple(symbols), priority, self._lease)
        failed = False
        try:
            self._manager.subscribe(
                owner, symbols, timeframe, priority=priority, holder=name, lease=self._lease
            )
        except StoreReadOnlyError as error:
            if wait:
                raise
            log.info("not subscribed, and not tried again: %s", error)
            return made
        except MarketDataError as error:
            if wait:
                raise
            log.warning("not subscribed yet: %s", error)
            failed = True
        with self._lock:
            self._closed = False
            self._held.setdefault(name, {}).update(leases)
            self._overdue |= failed
            if self._thread is None:
                self._wake = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._wake,), name="marketdata-leases", daemon=True
                )
                self._thread.start()
            elif failed:
                self._wake.set()
        return made

    def drop(
        self, owner: str, symbols: Sequence[str] | None = None, timeframe: Timeframe | None = None
    ) -> None:
        """Renew these no more: they were unsubscribed."""
        named = None if symbols is None else set(symbols)
        with self._lock:
            for leases in self._held.values():
                for lease in list(leases):
                    if (
                        lease.owner == owner
                        and (named is None or lease.symbol in named)
                        and (timeframe is None or lease.timeframe == timeframe)
                    ):
                        del leases[lease]

    def forget(self, holder: str) -> None:
        """Renew a holder's leases no more; they run out. Takes no lock, for finalizers."""
        self._held.pop(holder, None)

    def release(self, holder: str) -> None:
        """End a holder's leases; where PostgreSQL is away they run out by themselves."""
        leases = self._held.pop(holder, None)
        self._end(list(leases or ()))

    def renew(self) -> int:
        """Renew everything held, once; return how many leases live.

        Raises
        ------
        StoreError
            A retry can help where it is transient.
        """
        with self._writing:
            with self._lock:
                every = list(self._held.values())
                held = {lease: priority for each in every for lease, priority in each.items()}
            if not held:
                return 0
            live = self._manager.renew(held, self._lease)
        ended = held.keys() - live
        if ended:
            log.info("%d leases were ended by another client of their owner", len(ended))
            with self._lock:
                for lease in ended:
                    self._held.get(lease.holder, {}).pop(lease, None)
        return len(live)

    def close(self) -> None:
        """Stop renewing and end this client's leases. Idempotent, never raises."""
        with self._lock:
            self._closed = True
            self._thread = None
            self._wake.set()
            held, self._held = self._held, {}
        self._end([lease for leases in held.values() for lease in leases])

    def _end(self, leases: list[Lease]) -> None:
        if not leases or not self._writing.acquire(timeout=_PATIENCE):
            return  # a renewal hangs: PostgreSQL is away, and the leases run out
        try:
            self._manager.release(leases)
        except MarketDataError as error:
            log.info("%d leases are left to run out: %s", len(leases), error)
        finally:
            self._writing.release()

    def _run(self, wake: threading.Event) -> None:
        pause, failures = self._lease / 3, 0
        while True:
            if self._overdue:
                self._overdue, pause = False, _RETRY_FIRST
            wake.wait(pause)
            if wake is not self._wake or self._closed:
                return
            wake.clear()
            try:
                self.renew()
                pause, failures = self._lease / 3, 0
            except Exception as error:
                failures += 1
                pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** min(failures, 10))
                pause *= random.uniform(0.5, 1)
                level = logging.WARNING if failures in (1, 10) else logging.DEBUG
                log.log(level, "leases not renewed, trying again in %.0f s: %s", pause, error)
