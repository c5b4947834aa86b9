"""What the journal keeps of an algorithm, as plain data. Pure.

Instants are microseconds UTC of market time unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from algorithms.orders import Fill, Order


class Desired(StrEnum):
    """What somebody wants of an algorithm; kept in the journal, obeyed by its runner."""

    RUNNING = "running"
    STOPPED = "stopped"
    KILLED = "killed"


class Life(StrEnum):
    """Where an algorithm stands."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    ERROR = "error"
    KILLED = "killed"
    STOPPED = "stopped"


class Delivery(StrEnum):
    """What a broker has been told of an order; `PAPER` where there is none."""

    PAPER = "paper"
    INTENT = "intent"
    SENT = "sent"
    REFUSED = "refused"
    CANCEL = "cancel"
    DONE = "done"


@dataclass(frozen=True)
class Registration:
    """An algorithm that is to run live.

    Attributes
    ----------
    name : str
        Unique in its database.
    source : str
        Where its class is: ``FILE.py:Class`` or ``module:Class``.
    params : mapping
        Values of its parameters, JSON.
    symbols, timeframe
        As the class has them with these parameters.
    venue : str
        ``paper`` or a broker's name.
    cash : float
        What a run begins with.
    options : mapping
        Risk limits, fees and slippage, JSON.
    """

    name: str
    source: str
    symbols: tuple[str, ...]
    timeframe: str
    params: Mapping[str, Any] = field(default_factory=dict)
    venue: str = "paper"
    cash: float = 100_000.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """An algorithm as the journal has it: what is wanted, and where it stands.

    Attributes
    ----------
    id, epoch, run : int
    registration : Registration
    desired : Desired
    flatten : bool
        Whether a killed one also closes its positions.
    reason : str
        Why it was stopped or killed.
    life : Life
    runner : str or None
        Who runs it, for people; None where nobody does.
    cursor : int or None
        The moment up to which it has decided.
    fills : int
        How many its run has had.
    failures, restarts, slow_calls : int
    cash, equity : float or None
    error : str or None
        Traceback of the last failure.
    """

    id: int
    registration: Registration
    desired: Desired
    flatten: bool
    reason: str
    life: Life
    runner: str | None
    epoch: int
    run: int
    cursor: int | None
    fills: int
    failures: int
    restarts: int
    slow_calls: int
    cash: float | None
    equity: float | None
    error: str | None
    stepped_at: datetime | None
    changed_at: datetime
    """When what is wanted was last changed, by the server's clock."""

    @property
    def name(self) -> str:
        return self.registration.name


@dataclass(frozen=True)
class Claim:
    """The right to run one algorithm, and what it goes on from.

    Attributes
    ----------
    record : Record
        As of the claim; `record.epoch` is the number its writes carry.
    snapshot : str or None
        JSON; None where this run has not begun.
    """

    record: Record
    snapshot: str | None


@dataclass(frozen=True)
class SessionEquity:
    """Cash and equity at the end of an exchange session."""

    session: date
    cash: float
    equity: float


@dataclass(slots=True)
class Entry:
    """What one cycle changed of one algorithm; stored with those of all others at once.

    Attributes
    ----------
    algorithm, epoch, run : int
        Of the claim it is written under.
    life : Life
    cursor : int or None
        None keeps the one stored.
    snapshot : str or None
        JSON; None where it has not changed.
    orders : sequence of Order
        New and changed ones, as they are now.
    delivery : mapping
        Of orders for a broker: what it is to be told. Others are `Delivery.PAPER`.
    first_fill : int
        The number of the first of `fills`, from 1.
    positions : mapping or None
        Symbol to (shares, newest raw close): all there are. None where they have not changed.
    sessions : sequence of SessionEquity
        Sessions that ended.
    error : str or None
        Traceback of the last failure.
    """

    algorithm: int
    epoch: int
    run: int
    life: Life = Life.RUNNING
    cursor: int | None = None
    snapshot: str | None = None
    orders: Sequence[Order] = ()
    delivery: Mapping[str, Delivery] = field(default_factory=dict)
    fills: Sequence[Fill] = ()
    first_fill: int = 1
    positions: Mapping[str, tuple[float, float]] | None = None
    sessions: Sequence[SessionEquity] = ()
    cash: float | None = None
    equity: float | None = None
    failures: int = 0
    restarts: int = 0
    slow_calls: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Switch:
    """The kill switch of all algorithms at once."""

    active: bool = False
    flatten: bool = False
    reason: str = ""
