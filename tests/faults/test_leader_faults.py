"""Daemons that die, freeze and vanish: one acts, and who comes back does no harm."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from datetime import datetime

import psycopg
import pytest

from marketdata.store import PostgresStore
from marketdata.testing import FlakyProxy
from tests.daemons import STEPS, DaemonProcess, Daemons, make_daemons, until

__all__ = ["make_daemons"]

LEASE = 3.0
TAKEN_OVER_WITHIN = LEASE + LEASE / 6 + 6
"""Seconds: the lease, one look of the standby, and what a busy machine adds."""
OPEN = "replay:2024-03-14T10:00:00-04:00@60"


@pytest.fixture
def way(database_url: str) -> Iterator[FlakyProxy]:
    """A way to PostgreSQL over TCP, also to an embedded server on its socket."""
    with FlakyProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def daemons(database_url: str, redis_db: str, make_daemons: Callable[..., Daemons]) -> Daemons:
    """Daemons whose cycle writes one row after the other into a table."""
    with PostgresStore(database_url) as store:
        store.migrate()
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(STEPS)
    return make_daemons(
        database_url=database_url, redis_url=redis_db, broker="none", clock=OPEN, log="info"
    )


class Steps:
    """The rows that daemons wrote."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def by(self, daemon: DaemonProcess) -> int:
        row = self._connection.execute(
            "SELECT count(*) FROM steps WHERE pid = %s", (daemon.pid,)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def begun(self, daemon: DaemonProcess) -> datetime:
        row = self._connection.execute(
            "SELECT min(at) FROM steps WHERE pid = %s", (daemon.pid,)
        ).fetchone()
        assert row is not None
        return row[0]

    def after(self, moment: datetime, daemon: DaemonProcess) -> int:
        """Return how many rows `daemon` wrote after `moment`."""
        row = self._connection.execute(
            "SELECT count(*) FROM steps WHERE pid = %s AND at > %s", (daemon.pid, moment)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def runs(self, daemon: DaemonProcess) -> list[str | None]:
        """Return the outcomes of a daemon's cycles, oldest first."""
        rows = self._connection.execute(
            "SELECT outcome FROM marketdata.job_runs WHERE job = 'cycle' AND holder LIKE %s "
            "AND outcome <> 'skipped' ORDER BY id",
            (f"%/{daemon.pid}",),
        ).fetchall()
        return [outcome for (outcome,) in rows]


@pytest.fixture
def steps(database_url: str, daemons: Daemons) -> Iterator[Steps]:
    with Steps(database_url) as steps:
        yield steps


def one_and_another(daemons: Daemons, steps: Steps, **settings: str) -> tuple[DaemonProcess, ...]:
    """Start a leader, then a standby; return both at work and waiting."""
    leader = daemons.quick(LEASE, "steps", **settings)
    until(lambda: leader.leads() and steps.by(leader) > 3)
    standby = daemons.quick(LEASE, "steps")
    until(standby.is_ready)
    return leader, standby


def test_fault_21_a_leader_frozen_beyond_its_lease_does_nothing_more(
    daemons: Daemons, steps: Steps
):
    leader, standby = one_and_another(daemons, steps)
    assert not standby.leads()
    assert steps.by(standby) == 0
    leader.send(signal.SIGSTOP)
    took = until(lambda: steps.by(standby), TAKEN_OVER_WITHIN)
    assert took > LEASE / 2, "not while the lease ran"
    takeover = steps.begun(standby)
    leader.send(signal.SIGCONT)
    until(lambda: leader.told("readyz")["role"] == "standby", 10)
    before = steps.by(standby)
    until(lambda: steps.by(standby) > before + 20)
    # The step that was under way when it froze may still arrive; it begins no other.
    assert steps.after(takeover, leader) <= 1
    assert standby.leads()
    assert "lost" in steps.runs(leader)
    assert "done" not in steps.runs(leader), "it does not report a run that was taken from it"
    assert leader.get("livez")[0] == 200


def test_invariant_38_of_three_daemons_one_acts_and_the_next_follows(
    daemons: Daemons, steps: Steps
):
    leader, standby = one_and_another(daemons, steps)
    third = daemons.quick(LEASE, "steps")
    until(third.is_ready)
    before = steps.by(leader)
    until(lambda: steps.by(leader) > before + 20)
    assert [steps.by(each) for each in (standby, third)] == [0, 0]
    leader.process.kill()
    until(lambda: steps.by(standby) or steps.by(third), TAKEN_OVER_WITHIN)
    second, last = (standby, third) if steps.by(standby) else (third, standby)
    assert steps.by(last) == 0
    code, took = second.end()
    assert code == 0
    assert took < 10
    handed_over = until(lambda: steps.by(last), 10)
    assert handed_over < LEASE, "the lease was given back"
    assert steps.runs(second)[-1] == "stopped"


def test_a_machine_that_vanished_is_replaced(daemons: Daemons, steps: Steps, way: FlakyProxy):
    """The leader's packets go nowhere, and nobody tells PostgreSQL that it is gone."""
    leader, standby = one_and_another(daemons, steps, database_url=way.url)
    way.freeze()
    until(lambda: steps.by(standby), TAKEN_OVER_WITHIN)
    takeover = steps.begun(standby)
    assert not leader.leads(), "it knows, without hearing anything"
    assert leader.get("livez")[0] == 200
    assert leader.get("metrics")[0] == 200, "a scrape waits for no server"
    assert steps.after(takeover, leader) == 0
    code, took = leader.end()
    assert took < 15, "SIGTERM ends it, though its statements hang"
    assert code == 0, "what hung was left to roll back"
