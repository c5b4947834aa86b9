"""What can go wrong between a client and its server: one trouble, a script of them, or a seed.

A **request** is what a client sends until its server answers; whatever the protocol, they take
turns. Connections and requests are counted over the whole proxy, from 1.

=============  ====================================================================================
kind           effect on the connection or request it meets
=============  ====================================================================================
``refuse``     a new connection is reset at once (only this kind counts connections)
``delay``      the request is passed on `seconds` later
``slow``       its answer is passed back `seconds` later
``cut``        the request is not passed on, and the connection is reset: it was lost on its way
``lose_reply`` the request is passed on and carried out, its answer is lost, the connection reset
``cut_after``  the connection is reset after `size` bytes of the answer
``hang_up``    the connection is closed once it has been idle for `seconds` after the answer
``swallow``    the request and all that follow on its connection disappear; nothing is ever answered
=============  ====================================================================================
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, get_args

Kind = Literal["refuse", "delay", "slow", "cut", "lose_reply", "cut_after", "hang_up", "swallow"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

COMMIT: Final = b"\0\0\0\x0bCOMMIT\0"
"""What ends a transaction on the wire: the body of PostgreSQL's simple query ``COMMIT``. The bare
word is in other statements too (``ON COMMIT DROP``)."""


@dataclass(eq=False)
class Trouble:
    """One order for a trouble.

    Parameters
    ----------
    kind : str
        One of the kinds in the module's table.
    match : bytes
        What the request contains (`COMMIT`); empty matches every one. A connection that is
        refused has sent nothing yet and is not matched.
    nth : int
        The first matching request (or connection) to meet it, from 1.
    times : int or None
        How many matching ones in a row; None for all from then on.
    seconds : float
        Of ``delay``, ``slow`` and ``hang_up``.
    size : int
        Bytes of the answer that pass before ``cut_after`` cuts.
    """

    kind: Kind
    match: bytes = b""
    nth: int = 1
    times: int | None = 1
    seconds: float = 0.05
    size: int = 1
    seen: int = field(default=0, init=False)
    """Matching requests so far."""
    fired: int = field(default=0, init=False)
    """How many have met it."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown trouble {self.kind!r}; there are: {', '.join(KINDS)}")
        self._met = threading.Event()

    def wait_fired(self, timeout: float = 10.0) -> bool:
        """Wait until something has met it; return whether it has."""
        return self._met.wait(timeout)

    def note_fired(self) -> None:
        """Count one that met it; for proxies and plans."""
        self.fired += 1
        self._met.set()

    def due(self, data: bytes) -> bool:
        """Count what contains `match`, and return whether it is to meet the trouble."""
        if self.match not in data:
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


class Plan(Protocol):
    """Decides what a proxy does to connections and requests; asked by the proxy's thread."""

    def for_connection(self, number: int) -> Trouble | None:
        """Return what a new connection, the `number`-th, meets."""
        ...

    def for_request(self, number: int, data: bytes) -> Trouble | None:
        """Return what a request meets, by its first bytes; asked again with what it has sent by
        then while it grows, until it meets something."""
        ...


class Script:
    """Troubles added one by one by a test. Thread-safe; of several due the first added is met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._troubles: list[Trouble] = []
        self._counted: dict[Trouble, int] = {}

    def add(self, trouble: Trouble | Kind, **settings: Any) -> Trouble:
        """Add a trouble, given ready or by its kind and settings, and return it."""
        ordered = trouble if isinstance(trouble, Trouble) else Trouble(trouble, **settings)
        with self._lock:
            self._troubles.append(ordered)
        return ordered

    def clear(self) -> None:
        """Remove every trouble."""
        with self._lock:
            self._troubles.clear()
            self._counted.clear()

    def for_connection(self, number: int) -> Trouble | None:
        """See `Plan.for_connection`."""
        return self._first(number, b"", refusing=True)

    def for_request(self, number: int, data: bytes) -> Trouble | None:
        """See `Plan.for_request`."""
        return self._first(number, data, refusing=False)

    def _first(self, number: int, data: bytes, *, refusing: bool) -> Trouble | None:
        met = None
        with self._lock:
            for trouble in self._troubles:
                if (trouble.kind == "refuse") is not refusing or (
                    data and trouble.match not in data
                ):
                    continue
                if self._counted.get(trouble) == number:
                    continue  # the same request, grown
                self._counted[trouble] = number
                # Later ones count it too, so that "the second COMMIT" means the same for all.
                if trouble.due(data or trouble.match) and met is None:
                    met = trouble
        return met

    def __iter__(self) -> Iterator[Trouble]:
        with self._lock:
            return iter(list(self._troubles))


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what happens: chances between 0 and 1, for each new connection and each request."""

    refuse: float = 0.0
    delay: float = 0.0
    slow: float = 0.0
    cut: float = 0.0
    lose_reply: float = 0.0
    hang_up: float = 0.0
    seconds: float = 0.02
    """Longest delay; and how long a connection is idle before it is hung up."""


class Seeded:
    """Troubles drawn from a seed: the n-th request meets the same in every run.

    Parameters
    ----------
    seed : str
        Whatever tells runs apart; print it, so that a run can be repeated.
    rates : Rates
        How often what happens.
    quiet, calm : float
        Seconds after each loss, and after each new connection, in which nothing is lost: what is
        tried again succeeds, as the promise of one retry assumes.
    """

    def __init__(self, seed: str, rates: Rates, quiet: float = 0.5, calm: float = 0.1) -> None:
        self.seed = seed
        self._rates = rates
        self._quiet = quiet
        self._calm = calm
        self._peace_until = 0.0
        self._decided: tuple[int, Trouble | None] = 0, None
        self.met: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """How often each kind has happened."""
        self.lost: list[bytes] = []
        """First bytes of the requests that were carried out and whose answers were lost."""

    def for_connection(self, number: int) -> Trouble | None:
        """See `Plan.for_connection`."""
        met = self._draw(f"{self.seed}/connection/{number}", {"refuse": self._rates.refuse})
        self._keep_peace(self._quiet if met else self._calm)
        return met

    def for_request(self, number: int, data: bytes) -> Trouble | None:
        """See `Plan.for_request`."""
        if self._decided[0] != number:
            rates = self._rates
            chances: dict[Kind, float] = {
                "delay": rates.delay, "slow": rates.slow, "cut": rates.cut,
                "lose_reply": rates.lose_reply, "hang_up": rates.hang_up,
            }  # fmt: skip
            met = self._draw(f"{self.seed}/request/{number}", chances)
            if met is not None and met.kind == "lose_reply":
                self.lost.append(data)
            self._decided = number, met
        return self._decided[1]

    def _draw(self, place: str, chances: Mapping[Kind, float]) -> Trouble | None:
        drawn = random.Random(place)
        kind = _drawn(drawn.random(), chances)
        if kind is None:
            return None
        if kind not in ("delay", "slow"):
            if time.monotonic() < self._peace_until:
                return None
            self._keep_peace(self._quiet)
        self.met[kind] += 1
        seconds = self._rates.seconds
        return Trouble(kind, seconds=seconds if kind == "hang_up" else drawn.uniform(0, seconds))

    def _keep_peace(self, seconds: float) -> None:
        self._peace_until = max(self._peace_until, time.monotonic() + seconds)

    def __str__(self) -> str:
        met = ", ".join(f"{count} {kind}" for kind, count in self.met.items() if count)
        return f"seed {self.seed}: {met or 'nothing'}"


def _drawn(chance: float, chances: Mapping[Kind, float]) -> Kind | None:
    for kind, rate in chances.items():
        if chance < rate:
            return kind
        chance -= rate
    return None
