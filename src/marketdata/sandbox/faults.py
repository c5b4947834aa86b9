"""Faults to order: what a vendor's server does on its bad days, once, twice or for good.

A fault names the requests it concerns and what happens to them. Kinds:

=============  ====================================================================================
``status``     answer `status` with `body` and `headers` (JSON ``{"message": ...}`` by default)
``html``       503 with an HTML page
``rate_limit`` 429 with ``X-RateLimit-Reset`` `seconds` ahead; every matching request until then
``stall``      accept the request and never answer (until the server stops)
``slow``       answer after `seconds`
``hold``       answer once the test calls `Fault.release`
``drip``       send the body byte by byte, `seconds` apart
``cut``        announce the whole body, send half of it, close the connection
``reset``      reset the connection instead of answering
``gzip``       ``Content-Encoding: gzip`` and a body that is none
``json``       a body that stops in the middle of its JSON, correctly framed
``bars_null``  ``"bars": null``
``empty_token``  ``"next_page_token": ""``
``same_token`` the token of the request comes back as the next one
``bad_rows``   spoil rows of the page: every name in `rows`, see `Row`
``forming``    add a bar one minute after each symbol's last one, closed or not
``short_page`` serve at most `limit` bars in the page; its token continues rightly
=============  ====================================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from marketdata.errors import RequestError

Kind = Literal[
    "status",
    "html",
    "rate_limit",
    "stall",
    "slow",
    "hold",
    "drip",
    "cut",
    "reset",
    "gzip",
    "json",
    "bars_null",
    "empty_token",
    "same_token",
    "bad_rows",
    "forming",
    "short_page",
]

Row = Literal[
    "nan",
    "null",
    "infinite",
    "negative_volume",
    "zero_price",
    "high_below_low",
    "open_above_high",
    "off_grid",
    "out_of_window",
    "duplicate",
    "unsorted",
    "wrong_symbol",
    "missing_keys",
]
"""Ways to spoil a page's rows. ``wrong_symbol`` adds a symbol nobody asked for; ``duplicate``
repeats a row with another close; the others damage one row each, from the second on."""


@dataclass(eq=False)
class Fault:
    """One order for a fault.

    Parameters
    ----------
    kind : str
        One of the kinds in the module's table.
    match : str
        Substring of ``path?query`` (decoded); empty matches every request.
    nth : int
        The first matching request to hit, counted from 1: page 2 of a walk is ``nth=2``.
    times : int or None
        How many matching requests in a row; None for all from then on.
    """

    kind: Kind
    match: str = ""
    nth: int = 1
    times: int | None = 1
    status: int = 500
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    limit: int = 1
    rows: Sequence[Row] = ()
    seen: int = field(default=0, init=False)
    """Matching requests so far."""
    fired: int = field(default=0, init=False)
    """How many requests have met this fault."""
    blocked_until: float = field(default=0.0, init=False)
    """End of a ``rate_limit``, seconds since 1970."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RequestError(
                f"unknown fault {self.kind!r}", cure="use one of: " + ", ".join(get_args(Kind))
            )
        unknown = [r for r in self.rows if r not in get_args(Row)]
        if unknown:
            raise RequestError(
                f"unknown bad rows {unknown}", cure="use any of: " + ", ".join(get_args(Row))
            )
        self._released = threading.Event()
        self._hit = threading.Event()

    @property
    def released(self) -> bool:
        return self._released.is_set()

    def release(self) -> None:
        """Let the requests held by a ``hold`` be answered."""
        self._released.set()

    def wait_fired(self, timeout: float = 10.0) -> bool:
        """Wait until a request has met this fault; return whether one has."""
        return self._hit.wait(timeout)

    def _take(self, target: str) -> bool:
        if self.match not in target:
            return False
        self.seen += 1
        blocked = self.kind == "rate_limit" and time.time() < self.blocked_until
        due = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        if not (due or blocked):
            return False
        if due and not blocked and self.kind == "rate_limit":
            self.blocked_until = time.time() + self.seconds
        self.fired += 1
        self._hit.set()
        return True

    def to_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "match": self.match,
            "nth": self.nth,
            "times": self.times,
            "seen": self.seen,
            "fired": self.fired,
        }


class FaultPlan:
    """The faults in force. Thread-safe. Of several that match a request the first added is met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault | Kind, **settings: Any) -> Fault:
        """Add a fault, given ready or by its kind and settings, and return it."""
        ordered = fault if isinstance(fault, Fault) else Fault(fault, **settings)
        with self._lock:
            self._faults.append(ordered)
        return ordered

    def clear(self) -> None:
        """Remove every fault and release what is held."""
        with self._lock:
            for fault in self._faults:
                fault.release()
            self._faults.clear()

    def take(self, target: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        met: Fault | None = None
        with self._lock:
            for fault in self._faults:
                # Later faults count the request too, so that "page 2" means the same for all.
                if fault._take(target) and met is None:
                    met = fault
        return met

    def __iter__(self) -> Iterator[Fault]:
        with self._lock:
            return iter(list(self._faults))

    def __len__(self) -> int:
        return len(self._faults)
