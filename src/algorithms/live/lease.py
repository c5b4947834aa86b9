"""The right of one process to run algorithms, and what it may write while it has it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from algorithms.errors import JournalError
from algorithms.live import journal_rows as rows
from algorithms.live.connection import Cursor, Link
from algorithms.live.records import Claim, Delivery, Entry, Life

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
