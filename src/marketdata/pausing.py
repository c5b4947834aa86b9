"""Named places where a crash or a race would hurt, for tests to stop a process or a thread at.

A place costs a call and a look at an empty dictionary (some 50 ns) unless a test has armed it:
in its own process with `marketdata.testing`, in a child by the environment variable
``MARKETDATA_TEST_PAUSE``, a comma-separated list of ``POINT=ACTION[:NTH]``::

    MARKETDATA_TEST_PAUSE=store.committed=kill        killed there (SIGKILL), the first time
    MARKETDATA_TEST_PAUSE=store.bars-written=stop:3   frozen there (SIGSTOP) until SIGCONT, the third time
    MARKETDATA_TEST_PAUSE=seal.chunks-written=raise   RuntimeError there

All points are in `POINTS`, each with what has happened by then and what has not.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

ENVIRONMENT: Final = "MARKETDATA_TEST_PAUSE"

# ------------------------------------------------------------------------------------ the points

BARS_WRITTEN: Final = "store.bars-written"
COVERAGE_WRITTEN: Final = "store.coverage-written"
FLOOR_RAISED: Final = "store.floor-raised"
COMMITTED: Final = "store.committed"
SNAPSHOT_TAKEN: Final = "read.snapshot-taken"
STORE_READ: Final = "read.store-read"
FLIGHT_CLAIMED: Final = "fetch.claimed"
PAGE_KEPT: Final = "fetch.page-kept"
BEFORE_LANDING: Final = "fetch.before-landing"
LANDED: Final = "fetch.landed"
BUDGET_TAKEN: Final = "broker.budget-taken"
SEAL_READ: Final = "seal.rows-read"
SEAL_CHUNKS_WRITTEN: Final = "seal.chunks-written"
SEAL_ROWS_DELETED: Final = "seal.rows-deleted"
SEAL_STEP_DONE: Final = "seal.step-done"
ACTIONS_ANNOUNCED: Final = "actions.announced"
ACTIONS_RECORDED: Final = "actions.recorded"
CYCLE_BEFORE_BLOCKS: Final = "cycle.before-blocks"
CYCLE_BEFORE_INDICATORS: Final = "cycle.before-indicators"
CYCLE_BEFORE_NOTICE: Final = "cycle.before-notice"
LEADER_ELECTED: Final = "leader.elected"
LEADER_RENEWING: Final = "leader.renewing"

POINTS: Final[dict[str, str]] = {
    BARS_WRITTEN: "bars are in their tables, coverage is not, nothing is committed",
    COVERAGE_WRITTEN: "bars and coverage are written, Redis still serves the old, nothing is committed",
    FLOOR_RAISED: "Redis serves the series' blocks no more, nothing is committed",
    COMMITTED: "PostgreSQL has committed, Redis and everybody else know nothing of it",
    SNAPSHOT_TAKEN: "a reader's snapshot of PostgreSQL is open and told its coverage, no bar is read",
    STORE_READ: "a reader holds bars from PostgreSQL and has not put them into Redis",
    FLIGHT_CLAIMED: "series are claimed by a flight, nothing has been asked",
    PAGE_KEPT: "one page of a walk is committed, the next not asked for",
    BEFORE_LANDING: "a walk is over, its flight not ended",
    LANDED: "a flight has ended, nothing has been done for the caller since",
    BUDGET_TAKEN: "a request is paid for and not sent",
    SEAL_READ: "rows to be sealed are read under the series' lock, nothing is written",
    SEAL_CHUNKS_WRITTEN: "chunks are written, their rows not deleted, nothing is committed",
    SEAL_ROWS_DELETED: "chunks are written and rows deleted, the series knows nothing, nothing is committed",
    SEAL_STEP_DONE: "one step of a sealing is committed, the next not begun",
    ACTIONS_ANNOUNCED: "Redis has forgotten what rests on fewer actions, the new ones are not recorded",
    ACTIONS_RECORDED: "corporate actions are committed, nobody has gone on with them",
    CYCLE_BEFORE_BLOCKS: "a cycle's page is in PostgreSQL, its blocks in Redis not grown",
    CYCLE_BEFORE_INDICATORS: "a cycle's bars are in PostgreSQL and Redis, its indicators are not",
    CYCLE_BEFORE_NOTICE: "a cycle's bars and indicators are stored, nobody has been told",
    LEADER_ELECTED: "a daemon has become the leader and done nothing yet",
    LEADER_RENEWING: "the leader is about to renew its lease",
}
"""Every point: what has happened when it is passed, and what has not."""

# ----------------------------------------------------------------------------------- the machine

Action = Callable[[], None]

_armed: dict[str, Action] = {}


def pause_point(name: str) -> None:
    """Do nothing, unless a test wants something to happen here."""
    if _armed:
        action = _armed.get(name)
        if action is not None:
            action()


def arm(name: str, action: Action) -> None:
    """Let `action` run, in the thread that passes, whenever the point `name` is passed.

    Raises
    ------
    ValueError
        There is no such point, or it is armed already.
    """
    if name not in POINTS:
        raise ValueError(f"no pause point {name!r}; there are: {', '.join(POINTS)}")
    if _armed.setdefault(name, action) is not action:
        raise ValueError(f"the pause point {name!r} is armed already")


def disarm(name: str) -> None:
    """Let the point `name` be passed unhindered again; no harm where it was."""
    _armed.pop(name, None)


def nth_time(nth: int, action: Action) -> Action:
    """Return an action that does `action` the `nth` time (from 1) and nothing otherwise."""
    lock, passed = threading.Lock(), 0

    def counted() -> None:
        nonlocal passed
        with lock:
            passed += 1
            due = passed == nth
        if due:
            action()

    return counted


def kill_self() -> None:
    """End this process as a power cut would (SIGKILL)."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_self() -> None:
    """Freeze this process (SIGSTOP) until somebody sends it SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    """Raise RuntimeError."""
    raise RuntimeError("a test made this pause point fail")


ACTIONS: Final[dict[str, Action]] = {"kill": kill_self, "stop": stop_self, "raise": fail}


def arm_from(text: str) -> None:
    """Arm what the environment variable names; ValueError if it cannot be read."""
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, order = item.partition("=")
        action, _, nth = order.partition(":")
        if action not in ACTIONS or not (nth or "1").isdigit():
            raise ValueError(f"{ENVIRONMENT}: {item!r} is not POINT=kill|stop|raise[:NTH]")
        arm(name, nth_time(int(nth or 1), ACTIONS[action]))


arm_from(os.environ.get(ENVIRONMENT, ""))
