"""Corporate actions on PostgreSQL: what a provider says, since when, and what it said before.

An action is the same one as long as it keeps its key: the provider's id where it gives one, else
its ex-date and what it is. A changed answer corrects the row and leaves the earlier version in it;
one that is gone is withdrawn and counts for nothing.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from marketdata.clock import from_micros, to_micros
from marketdata.corporate_actions import ActionKind, CorporateAction, names_of
from marketdata.protocols import RECENT, ActionChange
from marketdata.spans import Span
from marketdata.store.connection import Database

_NEW_YORK: Final = ZoneInfo("America/New_York")

_VALUES: Final = (
    "ex_date",
    "process_date",
    "new_rate",
    "old_rate",
    "cash",
    "other_symbol",
    "special",
    "sequence",
    "announced_at",
)
"""Columns a correction may change; `provider_id`, `symbol` and `type` make another action."""
_TYPES: Final = {
    "symbol": "text",
    "type": "text",
    "action_key": "text",
    "provider_id": "text",
    "ex_date": "timestamptz",
    "process_date": "timestamptz",
    "new_rate": "float8",
    "old_rate": "float8",
    "cash": "float8",
    "other_symbol": "text",
    "special": "boolean",
    "sequence": "integer",
    "announced_at": "timestamptz",
}
_COLUMNS: Final = ", ".join(_TYPES)
_ROWS: Final = (
    "unnest(" + ", ".join(f"CAST(:{n}s AS {t}[])" for n, t in _TYPES.items()) + ")"
    f" AS r ({_COLUMNS})"
)
_READ: Final = ", ".join(
    f"a.{n}" for n in ("symbol", "type", "provider_id", *_VALUES, "fetched_at", "withdrawn_at")
)
# A name change is under both names. Two searches, each by an index of its own.
_OF_SYMBOLS: Final = """FROM corporate_actions AS a
    WHERE a.provider = :provider AND a.symbol = ANY (:symbols) AND {more}
UNION
SELECT {what} FROM corporate_actions AS a
    WHERE a.provider = :provider AND a.other_symbol = ANY (:symbols)
      AND a.type = 'name_change' AND {more}
"""


_IN_ORDER: Final = "ORDER BY ex_date, sequence NULLS LAST, type, provider_id, cash"


def _of_symbols(what: str, more: str) -> str:
    return f"SELECT {what} " + _OF_SYMBOLS.format(what=what, more=more)


_ACTIONS: Final = text(_of_symbols(_READ, "a.withdrawn_at IS NULL") + _IN_ORDER)
_ACTIONS_OF_KINDS: Final = text(
    _of_symbols(_READ, "a.type = ANY (:kinds) AND a.withdrawn_at IS NULL") + _IN_ORDER
)
_WITHOUT_RENAMES: Final = text(
    f"""SELECT {_READ} FROM corporate_actions AS a
    WHERE a.provider = :provider AND a.symbol = ANY (:symbols) AND a.type = ANY (:kinds)
      AND a.withdrawn_at IS NULL {_IN_ORDER}"""
)
_VERSIONS: Final = text(
    _of_symbols(f"a.id, {_READ}, a.corrections", "true").replace("UNION", "UNION ALL")
)
_CHECKED: Final = text("""
SELECT symbol, lower(asked), upper(asked), checked_at FROM action_checks
WHERE provider = :provider AND symbol = ANY (:symbols)
""")

_EARLIER: Final = (
    "a.corrections || jsonb_build_object("
    + ", ".join(f"'{n}', a.{n}" for n in (*_VALUES, "fetched_at", "withdrawn_at"))
    + ")"
)
# What was stored without an id, by an earlier release or before the provider gave ids, is the same
# action where the answer has just one like it.
_ADOPT: Final = text(f"""
UPDATE corporate_actions AS a SET provider_id = r.provider_id, action_key = r.action_key
FROM {_ROWS}
WHERE a.provider = :provider AND a.symbol = ANY (:asked_symbols)
  AND a.symbol = r.symbol AND a.type = r.type AND a.ex_date = r.ex_date
  AND a.special = r.special AND a.provider_id = '' AND r.provider_id <> ''
  AND r.action_key = ANY (:alone)
  AND NOT EXISTS (SELECT FROM corporate_actions AS b
                  WHERE b.provider = :provider AND b.symbol = r.symbol AND b.type = r.type
                    AND b.action_key = r.action_key)
""")
# What was asked about before, and when an answer last told all of it or, of recent ex-dates, those.
_EARLIER_CHECKS: Final = """LATERAL (
    SELECT c.symbol, tstzrange(c.lower, c.upper) AS asked,
           CASE WHEN r.ex_date >= c.checked_at - CAST(:recent_months AS interval)
                THEN c.checked_at ELSE c.whole_at END AS without_it
    FROM unnest(CAST(:c_symbols AS text[]), CAST(:c_lowers AS timestamptz[]),
                CAST(:c_uppers AS timestamptz[]), CAST(:c_wholes AS timestamptz[]),
                CAST(:c_checkeds AS timestamptz[])) AS c (symbol, lower, upper, whole_at, checked_at)
    WHERE c.symbol = r.symbol
) AS p"""
_BEFORE: Final = text("""
SELECT symbol, lower(asked), upper(asked), whole_at, checked_at FROM action_checks
WHERE provider = :provider AND symbol = ANY (:asked_symbols)
""")
# An answer older than what is stored changes nothing. Of an action that an answer given on or after
# its ex-date did not have, that answer is the first version: without it. So is one of the twelve
# hours before, for which an answer counts as new.
_RECORD: Final = text(f"""
INSERT INTO corporate_actions AS a (provider, {_COLUMNS}, fetched_at, first_fetched_at, corrections)
SELECT :provider, {", ".join(f"r.{n}" for n in _TYPES)}, :observed, :observed,
    CASE WHEN r.ex_date <@ p.asked AND r.ex_date - interval '12 hours' <= p.without_it AND p.without_it < :observed
         THEN jsonb_build_array(jsonb_build_object({", ".join(f"'{n}', r.{n}" for n in _VALUES)},
                                'fetched_at', p.without_it, 'withdrawn_at', p.without_it))
         ELSE '[]' END
FROM {_ROWS} LEFT JOIN {_EARLIER_CHECKS} ON p.symbol = r.symbol
ORDER BY r.symbol, r.type, r.action_key
ON CONFLICT (provider, symbol, type, action_key) DO UPDATE
    SET {", ".join(f"{n} = excluded.{n}" for n in _VALUES)},
        fetched_at = excluded.fetched_at, withdrawn_at = NULL, corrections = {_EARLIER}
    WHERE excluded.fetched_at >= a.fetched_at
      AND (a.withdrawn_at IS NOT NULL
           OR ({", ".join(f"a.{n}" for n in _VALUES)})
              IS DISTINCT FROM ({", ".join(f"excluded.{n}" for n in _VALUES)}))
RETURNING a.symbol, a.type, a.ex_date, (a.xmax = 0) AS new
""")
# Either name of a renamed instrument may be the one the provider lists it under: only who asked
# about both knows that it is gone.
_WITHDRAW: Final = text(f"""
UPDATE corporate_actions AS a
SET withdrawn_at = :observed, fetched_at = :observed, corrections = {_EARLIER}
WHERE provider = :provider AND symbol = ANY (:asked_symbols)
  AND (type <> 'name_change' OR other_symbol = ANY (:asked_symbols))
  AND withdrawn_at IS NULL AND fetched_at <= :observed
  AND ex_date >= :start AND ex_date < :end
  AND NOT EXISTS (
      SELECT FROM {_ROWS}
      WHERE r.symbol = a.symbol AND r.type = a.type AND r.action_key = a.action_key)
RETURNING a.symbol, a.type, a.ex_date
""")
_CHECKS: Final = text("""
SELECT symbol, lower(asked), upper(asked), whole_at FROM action_checks WHERE provider = :provider
""")
# One span per symbol: it grows, and one that does not touch it replaces it. The whole of a span
# that grew was asked when its older part was, the cautious time; an answer about a part leaves it.
_CHECK: Final = text("""
INSERT INTO action_checks AS c (provider, symbol, asked, whole_at, checked_at)
SELECT :provider, s, tstzrange(:start, :end), :observed, :observed
FROM unnest(CAST(:asked_symbols AS text[])) AS s ORDER BY s
ON CONFLICT (provider, symbol) DO UPDATE
    SET asked = CASE WHEN c.asked && excluded.asked OR c.asked -|- excluded.asked
                     THEN c.asked + excluded.asked ELSE excluded.asked END,
        whole_at = CASE
            WHEN excluded.asked @> c.asked THEN greatest(c.whole_at, excluded.whole_at)
            WHEN c.asked && excluded.asked OR c.asked -|- excluded.asked
                THEN least(c.whole_at, excluded.whole_at)
            ELSE excluded.whole_at END,
        checked_at = CASE
            WHEN excluded.asked @> c.asked OR :recent THEN
                greatest(c.checked_at, excluded.checked_at)
            WHEN c.asked && excluded.asked OR c.asked -|- excluded.asked
                THEN least(c.checked_at, excluded.checked_at)
            ELSE excluded.checked_at END
""")


class PostgresActions:
    """The action store on PostgreSQL. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def actions(
        self, provider: str, symbols: Sequence[str], kinds: Collection[ActionKind] | None = None
    ) -> dict[str, list[CorporateAction]]:
        """Return the known actions of each symbol, or those of some `kinds`, ascending by ex-date;
        withdrawn ones are out."""
        statement, more = _ACTIONS, {}
        if kinds is not None:
            more = {"kinds": [str(k) for k in kinds]}
            renames = ActionKind.NAME_CHANGE in kinds
            statement = _ACTIONS_OF_KINDS if renames else _WITHOUT_RENAMES
        rows = self._rows(statement, provider, symbols, **more)
        return _by_symbol(symbols, (_action(row._mapping) for row in rows))

    def history(
        self, provider: str, symbols: Sequence[str], known_us: int
    ) -> dict[str, list[CorporateAction]]:
        """Return the actions of each symbol as they were stored at a market time. The first version
        of each counts as always known, unless it was not in an answer given after its ex-date."""
        rows = self._rows(_VERSIONS, provider, symbols)
        once = {row.id: row._mapping for row in rows}
        found = [a for row in once.values() if (a := _as_known(row, known_us)) is not None]
        return _by_symbol(symbols, sorted(found, key=_place))

    def checked(self, provider: str, symbols: Sequence[str]) -> dict[str, tuple[Span, int]]:
        """Return, for symbols ever asked about, the ex-date span asked and the market time of
        asking."""
        return _spans(self._rows(_CHECKED, provider, symbols))

    def checks(self, provider: str) -> dict[str, tuple[Span, int]]:
        """Return, for every symbol ever asked about, the ex-date span asked, and the market time
        at which the whole of it was asked last."""
        return _spans(
            self._database.run(
                lambda c: c.execute(_CHECKS, {"provider": provider}).all(), snapshot=True
            )
        )

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
        before_commit: Callable[[list[ActionChange]], None] | None = None,
    ) -> list[ActionChange]:
        """Store the answer for every symbol of `actions` over the ex-dates `asked`, ``[start, end)``.

        New actions are added, changed ones corrected, and those that the answer no longer has are
        withdrawn; what they said before stays in the row. One transaction; `before_commit` is
        called in it with what changes, if anything does.

        Returns
        -------
        list of ActionChange
            What is new, corrected or withdrawn; empty where the answer said nothing new.
        """
        if not actions or asked.empty:
            return []
        parameters = {
            "provider": provider,
            "asked_symbols": sorted(actions),
            "start": from_micros(asked.start),
            "end": from_micros(asked.end),
            "observed": from_micros(observed_us),
            "recent": asked.start <= observed_us - RECENT and observed_us < asked.end,
            "recent_months": timedelta(microseconds=RECENT),
            **_columns(a for listed in actions.values() for a in listed),
        }

        def work(connection: Connection) -> list[ActionChange]:
            before = connection.execute(_BEFORE, parameters).all()
            names = ("c_symbols", "c_lowers", "c_uppers", "c_wholes", "c_checkeds")
            columns = zip(*before, strict=True) if before else [()] * len(names)
            parameters.update((n, list(column)) for n, column in zip(names, columns, strict=True))
            connection.execute(_CHECK, parameters)
            if parameters["alone"]:
                connection.execute(_ADOPT, parameters)
            rows = connection.execute(_RECORD, parameters).all() if parameters["symbols"] else []
            gone = connection.execute(_WITHDRAW, parameters).all()
            changes = [
                *(
                    ActionChange(s, ActionKind(t), to_micros(x), "new" if new else "corrected")
                    for s, t, x, new in rows
                ),
                *(ActionChange(s, ActionKind(t), to_micros(x), "withdrawn") for s, t, x in gone),
            ]
            if changes and before_commit is not None:
                before_commit(changes)
            return changes

        return self._database.run(work)

    def _rows(
        self, statement: Any, provider: str, symbols: Sequence[str], **more: object
    ) -> Sequence[Any]:
        if not symbols:
            return []
        parameters = {"provider": provider, "symbols": list(symbols), **more}
        return self._database.run(lambda c: c.execute(statement, parameters).all(), snapshot=True)


# -------------------------------------------------------------------------------- rows to actions


def _spans(rows: Sequence[Any]) -> dict[str, tuple[Span, int]]:
    return {
        symbol: (Span(to_micros(start), to_micros(end)), to_micros(moment))
        for symbol, start, end, moment in rows
    }


def _action(row: Mapping[str, Any]) -> CorporateAction:
    return CorporateAction(
        symbol=row["symbol"],
        kind=ActionKind(row["type"]),
        ex_date=to_micros(row["ex_date"]),
        id=row["provider_id"],
        new=row["new_rate"],
        old=row["old_rate"],
        cash=row["cash"],
        other_symbol=row["other_symbol"],
        process_date=_micros(row["process_date"]),
        announced_us=_micros(row["announced_at"]),
        special=row["special"],
        order=row["sequence"],
        fetched_us=to_micros(row["fetched_at"]),
    )


def _as_known(row: Mapping[str, Any], known_us: int) -> CorporateAction | None:
    """Return the version of an action that was stored at `known_us`, else its first one; None
    where it was withdrawn then."""
    versions = [{**row, **_instants(each)} for each in row["corrections"]] + [dict(row)]
    then = [v for v in versions if to_micros(v["fetched_at"]) <= known_us] or versions[:1]
    return None if then[-1]["withdrawn_at"] is not None else _action(then[-1])


def _instants(correction: Mapping[str, Any]) -> dict[str, Any]:
    """Return a version kept as JSON with its texts as instants again."""
    return {
        name: datetime.fromisoformat(value)
        if isinstance(value, str) and (name.endswith(("_date", "_at")))
        else value
        for name, value in correction.items()
    }


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _place(action: CorporateAction) -> tuple[int, bool, int, str, str]:
    order = action.order
    return (action.ex_date, order is None, order or 0, action.kind, action.id)


def _by_symbol(
    symbols: Sequence[str], actions: Iterable[CorporateAction]
) -> dict[str, list[CorporateAction]]:
    found: dict[str, list[CorporateAction]] = {symbol: [] for symbol in symbols}
    for action in actions:
        for name in names_of(action):
            if name in found:
                found[name].append(action)
    return found


# -------------------------------------------------------------------------------- actions to rows


def _columns(actions: Iterable[CorporateAction]) -> dict[str, list[Any]]:
    """Return the bound columns of `actions`, each action once, and the keys of those that are the
    only one of their kind on their ex-date."""
    keyed: dict[tuple[str, str, str], CorporateAction] = {}
    for action in actions:
        key = action.id and f"id {action.id}"
        if not key:
            key, number = _key_without_id(action), 1
            # The same object comes under both names of a name change; a like one is another action.
            while keyed.get((action.symbol, action.kind, key), action) != action:
                number += 1
                key = f"{_key_without_id(action)} #{number}"
        keyed[action.symbol, str(action.kind), key] = action
    alike = Counter(_likeness(a) for a in keyed.values())
    columns: dict[str, list[Any]] = {f"{name}s": [] for name in _TYPES}
    columns["alone"] = []
    for (symbol, kind, key), action in sorted(keyed.items(), key=lambda item: item[0]):
        values = (
            symbol,
            kind,
            key,
            action.id,
            from_micros(action.ex_date),
            _instant(action.process_date),
            action.new,
            action.old,
            action.cash,
            action.other_symbol,
            action.special,
            action.order,
            _instant(action.announced_us),
        )
        for name, value in zip(_TYPES, values, strict=True):
            columns[f"{name}s"].append(value)
        if action.id and alike[_likeness(action)] == 1:
            columns["alone"].append(key)
    return columns


def _likeness(action: CorporateAction) -> tuple[str, ActionKind, int, bool]:
    return (action.symbol, action.kind, action.ex_date, action.special)


def _key_without_id(action: CorporateAction) -> str:
    day = from_micros(action.ex_date).astimezone(_NEW_YORK).date()
    words = [f"on {day}"]
    if action.special:
        words.append("special")
    if action.other_symbol:
        words.append(f"as {action.other_symbol}")
    return " ".join(words)


def _instant(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)
