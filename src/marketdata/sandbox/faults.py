"""Faults to order: what a vendor's server does on its bad days, once, twice or for good.

A fault names the requests it concerns and what happens to them. Kinds:

=============  ====================================================================================
``status``     answer `status` with `body` and `headers` (JSON ``{"message": ...}`` by default)
``html``       503 with an HTML page
``rate_limit`` 429 with ``X-RateLimit-Reset`` `seconds` ahead; every matching request until then
``stall``      accept the request and never answer (until the server stops)
``slow``       answer after `seconds`
``hold``       answer once the test calls `Fault.release`
``late``       make the answer at once, and send it once the test calls `Fault.release`
``failed``     do what is asked, then answer as ``status`` does
``lost``       do what is asked, then reset the connection instead of answering
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

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from marketdata.errors import RequestError

Kind = Literal[
    "status",
    "html",
    "rate_limit",
    "stall",
    "slow",
    "hold",
    "late",
    "failed",
    "lost",
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
        Substring of ``METHOD path?query`` (decoded); empty matches every request.
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
        """Let the requests held by a ``hold`` or ``late`` be answered."""
        self._released.set()

    def wait_fired(self, timeout: float = 10.0) -> bool:
        """Wait until a request has met this fault; return whether one has."""
        return self._hit.wait(timeout)

    def _take(self, target: str, now: float) -> bool:
        if self.match not in target:
            return False
        self.seen += 1
        blocked = self.kind == "rate_limit" and now < self.blocked_until
        due = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        if not (due or blocked):
            return False
        if due and not blocked and self.kind == "rate_limit":
            self.blocked_until = now + self.seconds
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


class Weather:
    """Faults by chance, the same for the same seed and order of requests.

    Parameters
    ----------
    seed : int
        Of everything that is drawn.
    errors, stalls, refusals : float
        The share of requests that end in an error (each kind of `ERRORS` as often), are never
        answered, and begin a burst of 429.
    longest_refusal : float
        Seconds that a burst of 429 lasts at most.
    match : str
        Substring of ``METHOD path?query``; other requests are spared.
    """

    ERRORS: ClassVar[Sequence[tuple[Kind, int]]] = (
        ("status", 500), ("status", 502), ("status", 503), ("status", 504), ("reset", 0),
        ("cut", 0), ("html", 0), ("json", 0), ("gzip", 0), ("bars_null", 0),
    )  # fmt: skip

    def __init__(
        self,
        seed: int,
        *,
        errors: float = 0.0,
        stalls: float = 0.0,
        refusals: float = 0.0,
        longest_refusal: float = 30.0,
        match: str = "",
    ) -> None:
        self._random = random.Random(seed)
        self._errors = errors
        self._stalls = stalls
        self._refusals = refusals
        self._longest_refusal = longest_refusal
        self._match = match
        self._refusal: Fault | None = None
        self.bursts: list[tuple[float, float]] = []
        """Begin and end of every burst of 429, seconds since 1970."""
        self.drawn: Counter[str] = Counter()
        """How many requests met what."""

    def draw(self, target: str, now: float) -> Fault | None:
        """Return what this request meets."""
        if self._match not in target:
            return None
        fault = self._drawn(now)
        self.drawn["nothing" if fault is None else fault.kind] += 1
        return fault

    def _drawn(self, now: float) -> Fault | None:
        if self._refusal is not None and now < self._refusal.blocked_until:
            return self._refusal
        chance = self._random.random()
        if chance < self._errors:
            kind, status = self._random.choice(self.ERRORS)
            return Fault(kind, status=status or 500)
        chance -= self._errors
        if chance < self._stalls:
            return Fault("stall")
        if chance - self._stalls < self._refusals:
            self._refusal = Fault("rate_limit")
            self._refusal.blocked_until = now + self._random.uniform(2, self._longest_refusal)
            self.bursts.append((now, self._refusal.blocked_until))
            return self._refusal
        return None


class FaultPlan:
    """The faults in force. Thread-safe. Of several that match a request the first added is met.

    Parameters
    ----------
    seconds : callable, optional
        Seconds since 1970, for the end of a ``rate_limit``; real time by default.
    """

    def __init__(self, seconds: Callable[[], float] = time.time) -> None:
        self._seconds = seconds
        self._weather: Weather | None = None
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
        now = self._seconds()
        with self._lock:
            for fault in self._faults:
                # Later faults count the request too, so that "page 2" means the same for all.
                if fault._take(target, now) and met is None:
                    met = fault
            if met is None and self._weather is not None:
                met = self._weather.draw(target, now)
        return met

    def expose(self, weather: Weather | None) -> None:
        """Let every request that meets no ordered fault meet what `weather` has for it; None ends
        it."""
        with self._lock:
            self._weather = weather

    def __iter__(self) -> Iterator[Fault]:
        with self._lock:
            return iter(list(self._faults))

    def __len__(self) -> int:
        return len(self._faults)
