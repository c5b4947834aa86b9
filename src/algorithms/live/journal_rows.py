"""The journal's statements: records out of rows, and a cycle's entries into them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from algorithms.errors import JournalError
from algorithms.live.connection import Cursor
from algorithms.live.records import Claim, Delivery, Desired, Entry, Life, Record, Registration

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

ORDER_COLUMNS: Final = (
    "order_id", "symbol", "quantity", "limit_price", "stop_price", "time_in_force", "created",
    "expires", "parent", "twin", "tag", "state", "filled", "filled_price", "triggered", "reason",
    "delivery",
)  # fmt: skip
_ORDER_TYPES: Final = (
    "text", "text", "float8", "float8", "float8", "text", "timestamptz", "timestamptz", "text",
    "text", "text", "text", "float8", "float8", "bool", "text", "text",
)  # fmt: skip
FILL_COLUMNS: Final = (
    "number", "order_id", "symbol", "time", "quantity", "price", "fee", "tag",
)  # fmt: skip

_RECORD: Final = (
    "SELECT a.id, a.name, a.source, a.params, a.symbols, a.timeframe, a.venue, a.cash, a.options, "
    "a.desired, a.flatten, a.reason, s.state, r.holder, s.epoch, s.run, s.cursor, s.fills, "
    "s.failures, s.restarts, s.slow_calls, s.cash, s.equity, s.error, s.stepped_at, a.changed_at "
    "FROM algorithms a JOIN algorithm_states s ON s.algorithm_id = a.id "
    "LEFT JOIN algorithm_runners r ON r.id = s.runner_id AND r.lease_until > clock_timestamp() "
)


def moment(micros: int | None) -> datetime | None:
    """Return microseconds since 1970 as an aware datetime."""
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def micros(when: datetime | None) -> int | None:
    """Return an aware datetime as microseconds since 1970, exactly."""
    return None if when is None else (when - _EPOCH) // _MICROSECOND


# ---------------------------------------------------------------------------------- records


def _record(row: tuple[Any, ...]) -> Record:
    (
        identity, name, source, params, symbols, timeframe, venue, cash, options,
        desired, flatten, reason, state, holder, epoch, run, cursor, fill_count,
        failures, restarts, slow_calls, cash_now, equity, error, stepped_at, changed_at,
    ) = row  # fmt: skip
    return Record(
        id=identity,
        registration=Registration(
            name, source, tuple(symbols), timeframe, params, venue, cash, options
        ),
        desired=Desired(desired),
        flatten=flatten,
        reason=reason,
        # A runner that vanished wrote no farewell.
        life=_left(Life(state)) if holder is None else Life(state),
        runner=holder,
        epoch=epoch,
        run=run,
        cursor=micros(cursor),
        fills=fill_count,
        failures=failures,
        restarts=restarts,
        slow_calls=slow_calls,
        cash=cash_now,
        equity=equity,
        error=error,
        stepped_at=stepped_at,
        changed_at=changed_at,
    )


def _left(life: Life) -> Life:
    return life if life in (Life.ERROR, Life.KILLED) else Life.STOPPED


def find(cursor: Cursor, name: str) -> Record | None:
    row = cursor.execute(_RECORD + "WHERE a.name = %s", (name,)).fetchone()
    return None if row is None else _record(row)


def only(cursor: Cursor, name: str) -> Record:
    found = find(cursor, name)
    if found is None:
        raise unknown(cursor, name)
    return found


def find_all(cursor: Cursor, names: Sequence[str] | None) -> list[Record]:
    every = names is None
    cursor.execute(
        _RECORD + "WHERE %s OR a.name = ANY (%s::text[]) ORDER BY a.name",
        (every, list(names or [])),
    )
    return [_record(row) for row in cursor]


def unknown(cursor: Cursor, name: str) -> JournalError:
    known = [each for (each,) in cursor.execute("SELECT name FROM algorithms ORDER BY name")]
    near = difflib.get_close_matches(name, known, 3) or known[:5]
    return JournalError(
        f"there is no algorithm {name!r}",
        cure=f"there are {', '.join(near)}" if near else "none was ever registered here",
    )


def insert_algorithm(cursor: Cursor, wanted: Registration) -> int:
    row = cursor.execute(
        "INSERT INTO algorithms (name, source, params, symbols, timeframe, venue, cash, options) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
        (wanted.name, *_registered(wanted)),
    ).fetchone()
    assert row is not None
    return int(row[0])


def update_algorithm(cursor: Cursor, identity: int, wanted: Registration) -> None:
    cursor.execute(
        "UPDATE algorithms SET source = %s, params = %s, symbols = %s, timeframe = %s, venue = %s, "
        "cash = %s, options = %s, desired = 'running', flatten = false, reason = '', "
        "changed_at = clock_timestamp() WHERE id = %s",
        (*_registered(wanted), identity),
    )


def _registered(wanted: Registration) -> tuple[Any, ...]:
    return (
        wanted.source,
        json.dumps(dict(wanted.params)),
        list(wanted.symbols),
        wanted.timeframe,
        wanted.venue,
        wanted.cash,
        json.dumps(dict(wanted.options)),
    )


def insert_state(cursor: Cursor, identity: int) -> None:
    cursor.execute(
        "INSERT INTO algorithm_states (algorithm_id) VALUES (%s) ON CONFLICT DO NOTHING",
        (identity,),
    )


def begin_anew(cursor: Cursor, identity: int) -> None:
    cursor.execute(
        "UPDATE algorithm_states SET run = run + 1, epoch = epoch + 1, cursor = NULL, fills = 0, "
        "cash = NULL, equity = NULL, failures = 0, error = NULL, error_at = NULL, state = 'stopped' "
        "WHERE algorithm_id = %s",
        (identity,),
    )
    cursor.execute("DELETE FROM algorithm_snapshots WHERE algorithm_id = %s", (identity,))
    cursor.execute("DELETE FROM algorithm_positions WHERE algorithm_id = %s", (identity,))


def claims(cursor: Cursor, names: Sequence[str]) -> list[Claim]:
    found = find_all(cursor, names)
    snapshots = {
        identity: (run, text)
        for identity, run, text in cursor.execute(
            "SELECT algorithm_id, run, snapshot FROM algorithm_snapshots WHERE algorithm_id = ANY (%s)",
            ([record.id for record in found],),
        )
    }
    taken = []
    for record in found:
        run, text = snapshots.get(record.id, (None, None))
        taken.append(Claim(record, text if run == record.run else None))
    return taken


def orders(cursor: Cursor, name: str, open_only: bool) -> list[tuple[Any, ...]]:
    cursor.execute(
        f"SELECT {', '.join('o.' + c for c in ORDER_COLUMNS)} FROM algorithm_orders o "  # noqa: S608
        "JOIN algorithms a ON a.id = o.algorithm_id JOIN algorithm_states s ON s.algorithm_id = a.id "
        "WHERE a.name = %s AND o.run = s.run AND (NOT %s OR o.state IN ('held', 'open')) "
        "ORDER BY o.created, o.order_id",
        (name, open_only),
    )
    return cursor.fetchall()


def fills(cursor: Cursor, name: str) -> list[tuple[Any, ...]]:
    cursor.execute(
        f"SELECT {', '.join('f.' + c for c in FILL_COLUMNS)} FROM algorithm_fills f "  # noqa: S608
        "JOIN algorithms a ON a.id = f.algorithm_id JOIN algorithm_states s ON s.algorithm_id = a.id "
        "WHERE a.name = %s AND f.run = s.run ORDER BY f.number",
        (name,),
    )
    return cursor.fetchall()


def positions(cursor: Cursor, name: str) -> dict[str, float]:
    cursor.execute(
        "SELECT p.symbol, p.quantity FROM algorithm_positions p JOIN algorithms a "
        "ON a.id = p.algorithm_id WHERE a.name = %s ORDER BY p.symbol",
        (name,),
    )
    return dict(cursor.fetchall())


# ---------------------------------------------------------------------------------- a cycle


def write(cursor: Cursor, entries: Sequence[Entry]) -> None:
    """Write entries, ascending by algorithm and their states' rows locked."""
    _write_states(cursor, entries)
    _write_snapshots(cursor, [entry for entry in entries if entry.snapshot is not None])
    _write_orders(cursor, [entry for entry in entries if entry.orders])
    _write_fills(cursor, [entry for entry in entries if entry.fills])
    _write_positions(cursor, [entry for entry in entries if entry.positions is not None])
    _write_sessions(cursor, [entry for entry in entries if entry.sessions])


def _write_states(cursor: Cursor, entries: Sequence[Entry]) -> None:
    columns = list(
        zip(
            *(
                (
                    e.algorithm,
                    e.life.value,
                    moment(e.cursor),
                    e.first_fill - 1 + len(e.fills),
                    e.cash,
                    e.equity,
                    e.failures,
                    e.restarts,
                    e.slow_calls,
                    e.error,
                )
                for e in entries
            ),
            strict=True,
        )
    )
    if not columns:
        return
    cursor.execute(
        "UPDATE algorithm_states s SET state = n.state, cursor = coalesce(n.cursor, s.cursor), "
        "fills = n.fills, cash = coalesce(n.cash, s.cash), equity = coalesce(n.equity, s.equity), "
        "failures = n.failures, restarts = n.restarts, slow_calls = n.slow_calls, error = n.error, "
        "error_at = CASE WHEN n.error IS NULL THEN NULL WHEN n.error IS DISTINCT FROM s.error "
        "OR n.failures <> s.failures THEN clock_timestamp() ELSE s.error_at END, "
        "stepped_at = clock_timestamp() "
        "FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::bigint[], %s::float8[], "
        "%s::float8[], %s::int[], %s::bigint[], %s::bigint[], %s::text[]) "
        "AS n (id, state, cursor, fills, cash, equity, failures, restarts, slow_calls, error) "
        "WHERE s.algorithm_id = n.id",
        [list(column) for column in columns],
    )


def _write_snapshots(cursor: Cursor, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    cursor.execute(
        "INSERT INTO algorithm_snapshots (algorithm_id, run, taken_at, snapshot) "
        "SELECT n.id, n.run, coalesce(n.cursor, s.cursor, clock_timestamp()), n.snapshot "
        "FROM unnest(%s::bigint[], %s::int[], %s::timestamptz[], %s::text[]) "
        "AS n (id, run, cursor, snapshot) JOIN algorithm_states s ON s.algorithm_id = n.id "
        "ON CONFLICT (algorithm_id) DO UPDATE SET run = excluded.run, taken_at = excluded.taken_at, "
        "snapshot = excluded.snapshot",
        (
            [e.algorithm for e in entries],
            [e.run for e in entries],
            [moment(e.cursor) for e in entries],
            [e.snapshot for e in entries],
        ),
    )


def _write_orders(cursor: Cursor, entries: Sequence[Entry]) -> None:
    found: dict[tuple[int, str], tuple[Any, ...]] = {}
    for e in entries:
        for o in e.orders:  # an order that changed twice counts once, as it is now
            found[e.algorithm, o.id] = (
                e.algorithm, e.run,
                o.id, o.symbol, o.quantity, o.limit, o.stop, o.time_in_force.value,
                moment(o.created), moment(o.expires), o.parent, o.twin, o.tag, o.state.value,
                o.filled, _number(o.filled_price), o.triggered, o.reason,
                e.delivery.get(o.id, Delivery.PAPER).value,
            )  # fmt: skip
    if not found:
        return
    names = ", ".join(ORDER_COLUMNS)
    arrays = ", ".join(f"%s::{kind}[]" for kind in ("bigint", "int", *_ORDER_TYPES))
    kept = ", ".join(
        f"{name} = excluded.{name}"
        for name in ORDER_COLUMNS
        if name not in ("order_id", "delivery")
    )
    cursor.execute(
        f"INSERT INTO algorithm_orders AS o (algorithm_id, run, {names}) "  # noqa: S608
        f"SELECT * FROM unnest({arrays}) ON CONFLICT (algorithm_id, run, order_id) DO UPDATE SET {kept}, "
        # What a broker was told is for `delivered` to say; that it is to be told something, for us.
        "delivery = CASE WHEN excluded.delivery IN ('cancel', 'done') THEN excluded.delivery "
        "ELSE o.delivery END, changed_at = clock_timestamp()",
        [list(column) for column in zip(*(found[key] for key in sorted(found)), strict=True)],
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_fills(cursor: Cursor, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    found = [
        (e.algorithm, e.run, number, f.order_id, f.symbol, moment(f.time), f.quantity, f.price, f.fee, f.tag)
        for e in entries
        for number, f in enumerate(e.fills, e.first_fill)
    ]  # fmt: skip
    # A conflict is this very cycle, stored by a try whose answer was lost.
    cursor.execute(
        "INSERT INTO algorithm_fills "
        "(algorithm_id, run, number, order_id, symbol, time, quantity, price, fee, tag) "
        "SELECT * FROM unnest(%s::bigint[], %s::int[], %s::bigint[], %s::text[], %s::text[], "
        "%s::timestamptz[], %s::float8[], %s::float8[], %s::float8[], %s::text[]) "
        "ON CONFLICT DO NOTHING",
        [list(column) for column in zip(*found, strict=True)],
    )


def _write_positions(cursor: Cursor, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    cursor.execute(
        "DELETE FROM algorithm_positions WHERE algorithm_id = ANY (%s)",
        ([e.algorithm for e in entries],),
    )
    found = [
        (e.algorithm, symbol, quantity, _number(price))
        for e in entries
        for symbol, (quantity, price) in sorted((e.positions or {}).items())
        if quantity
    ]
    if found:
        cursor.execute(
            "INSERT INTO algorithm_positions (algorithm_id, symbol, quantity, price) "
            "SELECT * FROM unnest(%s::bigint[], %s::text[], %s::float8[], %s::float8[])",
            [list(column) for column in zip(*found, strict=True)],
        )


def _write_sessions(cursor: Cursor, entries: Sequence[Entry]) -> None:
    found = {
        (e.algorithm, e.run, ended.session): (ended.cash, ended.equity)
        for e in entries
        for ended in e.sessions
    }
    if not found:
        return
    cursor.execute(
        "INSERT INTO algorithm_equity (algorithm_id, run, session, cash, equity) "
        "SELECT * FROM unnest(%s::bigint[], %s::int[], %s::date[], %s::float8[], %s::float8[]) "
        "ON CONFLICT (algorithm_id, run, session) DO UPDATE SET cash = excluded.cash, "
        "equity = excluded.equity",
        [
            list(column)
            for column in zip(
                *((*key, *value) for key, value in sorted(found.items())), strict=True
            )
        ],
    )


def write_deliveries(
    cursor: Cursor, algorithm: int, run: int, outcome: Mapping[str, tuple[Delivery, str]]
) -> None:
    """Write what a broker made of orders; the algorithm's state row is locked."""
    cursor.execute(
        "UPDATE algorithm_orders o SET delivery = n.delivery, changed_at = clock_timestamp(), "
        "reason = CASE WHEN n.reason = '' THEN o.reason ELSE n.reason END "
        "FROM unnest(%s::text[], %s::text[], %s::text[]) AS n (order_id, delivery, reason) "
        "WHERE o.algorithm_id = %s AND o.run = %s AND o.order_id = n.order_id",
        (
            list(outcome),
            [delivery.value for delivery, _ in outcome.values()],
            [reason for _, reason in outcome.values()],
            algorithm,
            run,
        ),
    )
