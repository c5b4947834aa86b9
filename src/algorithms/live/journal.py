"""What algorithms did, in PostgreSQL: written a cycle at a time, by whoever has the right to.

::

    register -> claim (epoch + 1) -> commit, commit, commit ... -> give_back
                      ^                    |
                      |                    refused once somebody else has claimed it
                      the lease of its runner has run out

A runner is a row with a lease on the server's clock; an algorithm is of the runner that claimed it
last. `Journal.commit` looks at both in its own transaction, with the algorithms' rows locked: a
process that was paused and comes back finds its rows of a higher epoch and writes nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from algorithms.errors import JournalError
from algorithms.live import journal_rows as rows
from algorithms.live.connection import Cursor, Link
from algorithms.live.records import (
    Claim,
    Delivery,
    Desired,
    Entry,
    Life,
    Record,
    Registration,
    Switch,
)

LEASE_SECONDS: Final = 30.0

_CLAIM: Final = """
    UPDATE algorithm_states s SET runner_id = %(me)s, epoch = s.epoch + 1, state = 'starting'
    FROM algorithms a
    WHERE a.id = s.algorithm_id AND s.algorithm_id IN (
        SELECT f.algorithm_id FROM algorithm_states f JOIN algorithms w ON w.id = f.algorithm_id
        WHERE CASE WHEN NOT %(all)s THEN w.name = ANY (%(names)s)
            WHEN w.desired <> 'stopped' THEN true
            ELSE w.venue = ANY (%(brokers)s) AND (f.runner_id IS NOT NULL OR EXISTS (
                SELECT FROM algorithm_orders o
                WHERE o.algorithm_id = f.algorithm_id AND o.run = f.run AND o.state = 'open'
                AND o.parent IS NULL)) END
        AND (f.runner_id IS NULL OR f.runner_id <> %(me)s AND NOT EXISTS (
            SELECT FROM algorithm_runners r
            WHERE r.id = f.runner_id AND r.lease_until > clock_timestamp()))
        ORDER BY f.algorithm_id FOR UPDATE OF f SKIP LOCKED)
    RETURNING a.name
"""


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


class RunnerLease:
    """The right of one process to run algorithms, for as long as its lease is renewed."""

    def __init__(self, link: Link, identity: int, token: str, seconds: float) -> None:
        self._link = link
        self.id = identity
        self._token = token
        self._seconds = seconds

    def renew(
        self, market_time: int | None = None, details: Mapping[str, Any] | None = None
    ) -> bool:
        """Extend the lease; return False where it has run out, which is for good.

        Parameters
        ----------
        market_time : int, optional
            Microseconds UTC, shown beside the heartbeat.
        details : mapping, optional
            What this process says of itself, JSON.
        """
        return self._link.run(
            lambda cursor: (
                cursor.execute(
                    "UPDATE algorithm_runners SET lease_until = clock_timestamp() + %s * interval '1 second', "
                    "market_time = %s, details = coalesce(%s, details) "
                    "WHERE id = %s AND token = %s AND lease_until > clock_timestamp()",
                    (
                        self._seconds,
                        rows.moment(market_time),
                        None if details is None else json.dumps(dict(details)),
                        self.id,
                        self._token,
                    ),
                ).rowcount
                == 1
            )
        )

    def claim(
        self, names: Sequence[str] | None = None, *, brokers: Sequence[str] = ()
    ) -> list[Claim]:
        """Take algorithms that nobody runs and that are to run; return those this took.

        Parameters
        ----------
        names : sequence of str, optional
            These alone, also stopped ones; by default all that are wanted running or killed.
        brokers : sequence of str
            Venues at which, by default, stopped ones are taken too whose entries may still stand.
        """

        def work(cursor: Cursor) -> list[Claim]:
            self._hold(cursor)
            # One at a time, each seeing what the one before took.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('algorithms.claim'))")
            taken = cursor.execute(
                _CLAIM,
                {
                    "me": self.id,
                    "all": names is None,
                    "names": list(names or ()),
                    "brokers": list(brokers),
                },
            ).fetchall()
            return rows.claims(cursor, [name for (name,) in taken])

        return self._link.run(work)

    def commit(self, entries: Iterable[Entry]) -> set[int]:
        """Store what a cycle changed, all of it in one transaction; return whose writes were refused.

        Repeating it is harmless: who does not know whether it was stored calls it again.

        Returns
        -------
        set of int
            Algorithms that are no longer this runner's: nothing of theirs was stored, and nothing
            they decide counts.

        Raises
        ------
        JournalError
            The fills of an algorithm do not follow those stored: nothing was stored.
        """
        given = sorted(entries, key=lambda entry: entry.algorithm)
        if not given:
            return set()

        def work(cursor: Cursor) -> set[int]:
            if not self._held(cursor):
                return {entry.algorithm for entry in given}
            stored = {
                identity: (epoch, run, fills)
                for identity, epoch, run, fills in cursor.execute(
                    "SELECT algorithm_id, epoch, run, fills FROM algorithm_states "
                    "WHERE algorithm_id = ANY (%s) AND runner_id = %s "
                    "ORDER BY algorithm_id FOR NO KEY UPDATE",
                    ([entry.algorithm for entry in given], self.id),
                )
            }
            ours, lost = [], set()
            for entry in given:
                epoch, run, fills = stored.get(entry.algorithm, (None, None, 0))
                if (epoch, run) != (entry.epoch, entry.run):
                    lost.add(entry.algorithm)
                    continue
                if fills not in (entry.first_fill - 1, entry.first_fill - 1 + len(entry.fills)):
                    raise JournalError(
                        f"algorithm {entry.algorithm} has {fills} fills stored, and its next is "
                        f"number {entry.first_fill}",
                        cure="report this as a bug; nothing of this cycle was stored",
                    )
                ours.append(entry)
            rows.write(cursor, ours)
            return lost

        return self._link.run(work)

    def delivered(
        self, algorithm: int, epoch: int, run: int, outcome: Mapping[str, tuple[Delivery, str]]
    ) -> bool:
        """Store what a broker made of orders: order id to (what is known of it, reason).

        Returns
        -------
        bool
            False where the algorithm is no longer this runner's; nothing was stored.
        """

        def work(cursor: Cursor) -> bool:
            if not self._held(cursor):
                return False
            ours = cursor.execute(
                "SELECT FROM algorithm_states WHERE algorithm_id = %s AND runner_id = %s "
                "AND epoch = %s AND run = %s FOR NO KEY UPDATE",
                (algorithm, self.id, epoch, run),
            ).rowcount
            if ours:
                rows.write_deliveries(cursor, algorithm, run, outcome)
            return bool(ours)

        return self._link.run(work)

    def give_back(self, lives: Mapping[int, Life] | None = None) -> None:
        """Let others have these algorithms at once (all of this runner by default).

        Parameters
        ----------
        lives : mapping, optional
            Algorithm to the state it is left in; `Life.STOPPED` by default.
        """
        states = {} if lives is None else {k: v.value for k, v in lives.items()}

        def work(cursor: Cursor) -> None:
            if lives is None:
                cursor.execute(
                    "UPDATE algorithm_states SET runner_id = NULL, state = CASE state "
                    "WHEN 'error' THEN state WHEN 'killed' THEN state ELSE 'stopped' END "
                    "WHERE runner_id = %s",
                    (self.id,),
                )
                return
            cursor.execute(
                "UPDATE algorithm_states s SET runner_id = NULL, state = n.state "
                "FROM unnest(%s::bigint[], %s::text[]) AS n (id, state) "
                "WHERE s.algorithm_id = n.id AND s.runner_id = %s",
                (list(states), list(states.values()), self.id),
            )

        self._link.run(work)

    def end(self) -> None:
        """Give everything back and end the lease."""
        self.give_back()
        self._link.run(
            lambda cursor: cursor.execute(
                "UPDATE algorithm_runners SET lease_until = clock_timestamp() "
                "WHERE id = %s AND token = %s AND lease_until > clock_timestamp()",
                (self.id, self._token),
            )
        )

    def _held(self, cursor: Cursor) -> bool:
        """Return whether the lease lasts; it cannot be renewed or ended while this looks."""
        return (
            cursor.execute(
                "SELECT FROM algorithm_runners WHERE id = %s AND token = %s "
                "AND lease_until > clock_timestamp() FOR SHARE",
                (self.id, self._token),
            ).rowcount
            == 1
        )

    def _hold(self, cursor: Cursor) -> None:
        if not self._held(cursor):
            raise JournalError(
                "this runner's lease has run out", cure="begin a new one", transient=True
            )
