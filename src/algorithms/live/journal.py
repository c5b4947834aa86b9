"""What algorithms did, in PostgreSQL: written a cycle at a time, by whoever has the right to.

::

    register -> claim (epoch + 1) -> commit, commit, commit ... -> give_back
                      ^                    |
                      |                    refused once somebody else has claimed it
                      the lease of its runner has run out

A runner is a row with a lease on the server's clock; an algorithm is of the runner that claimed it
last. `RunnerLease.commit` looks at both in its own transaction, with the algorithms' rows locked: a
process that was paused and comes back finds its rows of a higher epoch and writes nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from algorithms.errors import JournalError
from algorithms.live import journal_rows as rows
from algorithms.live.connection import Cursor, Link
from algorithms.live.lease import RunnerLease
from algorithms.live.records import Desired, Record, Registration, Switch

LEASE_SECONDS: Final = 30.0


class Journal:
    """The tables of the algorithms. Thread-safe.

    Parameters
    ----------
    database_url : str
        libpq URI of the store in use.
    schema : str
        Where its tables are.

    Every method raises `StoreUnavailableError` while PostgreSQL is away (then a retry helps), and
    `SchemaError` where its tables are missing.
    """

    def __init__(self, database_url: str, schema: str = "marketdata") -> None:
        self._link = Link(database_url, schema)

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        self._link.close()

    # ------------------------------------------------------------------------- what is wanted

    def register(self, registration: Registration, *, fresh: bool = False) -> Record:
        """Have `registration` run from now on, or go on running; return it as stored.

        As `register_all`, of one.
        """
        return self.register_all([registration], fresh=fresh)[0]

    def register_all(
        self, registrations: Sequence[Registration], *, fresh: bool = False
    ) -> list[Record]:
        """Have all of these run from now on, or none of them where one cannot; return them as stored.

        Parameters
        ----------
        registrations : sequence of Registration
            Each replaces what is stored under its name, unless a living runner has that.
        fresh : bool
            Begin a new run: no position, no order, all the cash. The old run's orders and fills
            stay stored.

        Raises
        ------
        JournalError
            It runs elsewhere, or the stored run was of other symbols or another timeframe.
        """

        return self._link.run(
            lambda cursor: [self._registered(cursor, each, fresh) for each in registrations]
        )

    def _registered(self, cursor: Cursor, wanted: Registration, fresh: bool) -> Record:
        stored = rows.find(cursor, wanted.name)
        if stored is None:
            identity = rows.insert_algorithm(cursor, wanted)
        else:
            identity = stored.id
            self._may_replace(stored, wanted, fresh)
            rows.update_algorithm(cursor, identity, wanted)
        rows.insert_state(cursor, identity)
        if fresh and stored is not None:
            rows.begin_anew(cursor, identity)
        return rows.only(cursor, wanted.name)

    @staticmethod
    def _may_replace(stored: Record, wanted: Registration, fresh: bool) -> None:
        if stored.runner is not None:
            raise JournalError(
                f"{stored.name} runs already, by {stored.runner}",
                cure=f"stop it there, give this one another name, or run: marketdata algo stop {stored.name}",
            )
        before = stored.registration
        if fresh or stored.cursor is None:
            return
        if before.timeframe != wanted.timeframe or before.venue != wanted.venue:
            raise JournalError(
                f"{stored.name} has run with {before.timeframe} bars at {before.venue} so far, not "
                f"{wanted.timeframe} at {wanted.venue}",
                cure="give it another name, or begin a fresh run",
            )

    def records(self, names: Sequence[str] | None = None) -> list[Record]:
        """Return what is stored of these algorithms (of all by default), by name."""
        return self._link.run(lambda cursor: rows.find_all(cursor, names))

    def want(
        self, name: str, desired: Desired, *, flatten: bool = False, reason: str = ""
    ) -> Record:
        """Say what is wanted of an algorithm; its runner obeys within a heartbeat.

        Raises
        ------
        JournalError
            There is none of that name; the known ones are named.
        """

        def work(cursor: Cursor) -> Record:
            changed = cursor.execute(
                "UPDATE algorithms SET desired = %s, flatten = %s, reason = %s, "
                "changed_at = clock_timestamp() WHERE name = %s",
                (desired.value, flatten, reason, name),
            ).rowcount
            if not changed:
                raise rows.unknown(cursor, name)
            return rows.only(cursor, name)

        return self._link.run(work)

    def forget(self, name: str) -> None:
        """Delete an algorithm with all its runs.

        Raises
        ------
        JournalError
            There is none of that name, or somebody runs it.
        """

        def work(cursor: Cursor) -> None:
            stored = rows.only(cursor, name)
            if stored.runner is not None:
                raise JournalError(f"{name} runs, by {stored.runner}", cure="stop it first")
            cursor.execute("DELETE FROM algorithms WHERE id = %s", (stored.id,))

        self._link.run(work)

    def kill_all(self, *, flatten: bool = False, reason: str = "") -> None:
        """Stop every algorithm from trading, until `release_all`."""
        self._switch(Switch(active=True, flatten=flatten, reason=reason))

    def release_all(self) -> None:
        """Let algorithms trade again that are not killed themselves."""
        self._switch(Switch())

    def _switch(self, switch: Switch) -> None:
        self._link.run(
            lambda cursor: cursor.execute(
                "INSERT INTO algorithm_switches (name, active, flatten, reason) "
                "VALUES ('kill', %s, %s, %s) ON CONFLICT (name) DO UPDATE SET active = excluded.active, "
                "flatten = excluded.flatten, reason = excluded.reason, set_at = clock_timestamp()",
                (switch.active, switch.flatten, switch.reason),
            )
        )

    def switch(self) -> Switch:
        """Return how the kill switch of all algorithms stands."""

        def work(cursor: Cursor) -> Switch:
            row = cursor.execute(
                "SELECT active, flatten, reason FROM algorithm_switches WHERE name = 'kill'"
            ).fetchone()
            return Switch() if row is None else Switch(*row)

        return self._link.run(work)

    # ------------------------------------------------------------------------------- reading

    def orders(self, name: str, *, open_only: bool = False) -> list[tuple[Any, ...]]:
        """Return the orders of the current run, oldest first; see `journal_rows.ORDER_COLUMNS`."""
        return self._link.run(lambda cursor: rows.orders(cursor, name, open_only))

    def fills(self, name: str) -> list[tuple[Any, ...]]:
        """Return the fills of the current run in order; see `journal_rows.FILL_COLUMNS`."""
        return self._link.run(lambda cursor: rows.fills(cursor, name))

    def positions(self, name: str) -> dict[str, float]:
        """Return the shares an algorithm holds, by symbol."""
        return self._link.run(lambda cursor: rows.positions(cursor, name))

    # ---------------------------------------------------------------------------- the runner

    def begin(
        self,
        holder: str,
        *,
        seconds: float = LEASE_SECONDS,
        details: Mapping[str, Any] | None = None,
    ) -> RunnerLease:
        """Return a new runner: the right to claim algorithms, for `seconds` from now.

        Parameters
        ----------
        holder : str
            ``user@host/pid`` or the like, for people.
        seconds : float
            Length of the lease; `RunnerLease.renew` extends it.
        """
        token = secrets.token_hex(16)

        def work(cursor: Cursor) -> int:
            # What vanished a week ago is of no interest to anybody.
            cursor.execute(
                "DELETE FROM algorithm_runners r WHERE lease_until < clock_timestamp() - interval '7 days' "
                "AND NOT EXISTS (SELECT FROM algorithm_states s WHERE s.runner_id = r.id)"
            )
            row = cursor.execute(
                "INSERT INTO algorithm_runners (holder, token, lease_until, details) "
                "VALUES (%s, %s, clock_timestamp() + %s * interval '1 second', %s) RETURNING id",
                (holder, token, seconds, json.dumps(dict(details or {}))),
            ).fetchone()
            assert row is not None
            return int(row[0])

        return RunnerLease(self._link, self._link.run(work), token, seconds)
