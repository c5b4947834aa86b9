"""Corporate actions on PostgreSQL: splits, with when they were asked for and how they changed.

The dates asked are kept by kind: who was asked about splits has said nothing about dividends.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.clock import from_micros, to_micros
from marketdata.protocols import ActionKind
from marketdata.spans import Span
from marketdata.store.connection import Database
from marketdata.types import Split

_SPLITS: Final = text("""
SELECT symbol, ex_date, new_rate, old_rate FROM corporate_actions
WHERE provider = :provider AND symbol = ANY (:symbols) AND type = :kind AND withdrawn_at IS NULL
ORDER BY symbol, ex_date
""")
_CHECKED: Final = text("""
SELECT symbol, lower(asked), upper(asked), checked_at FROM action_checks
WHERE provider = :provider AND symbol = ANY (:symbols) AND type = :kind
""")

_EARLIER: Final = """a.corrections || jsonb_build_object('new_rate', a.new_rate,
    'old_rate', a.old_rate, 'fetched_at', a.fetched_at, 'withdrawn_at', a.withdrawn_at)"""
# An answer older than what is stored changes nothing.
_RECORD: Final = text(f"""
INSERT INTO corporate_actions AS a (provider, symbol, type, ex_date, new_rate, old_rate, fetched_at)
SELECT :provider, r.symbol, :kind, r.ex_date, r.new_rate, r.old_rate, :observed
FROM unnest(CAST(:symbols AS text[]), CAST(:ex_dates AS timestamptz[]),
            CAST(:new_rates AS float8[]), CAST(:old_rates AS float8[]))
        AS r (symbol, ex_date, new_rate, old_rate)
ORDER BY r.symbol, r.ex_date
ON CONFLICT (provider, symbol, type, ex_date) DO UPDATE
    SET new_rate = excluded.new_rate, old_rate = excluded.old_rate,
        fetched_at = excluded.fetched_at, withdrawn_at = NULL, corrections = {_EARLIER}
    WHERE excluded.fetched_at >= a.fetched_at
      AND (a.withdrawn_at IS NOT NULL
           OR (a.new_rate, a.old_rate) <> (excluded.new_rate, excluded.old_rate))
""")
_WITHDRAW: Final = text(f"""
UPDATE corporate_actions AS a
SET withdrawn_at = :observed, fetched_at = :observed, corrections = {_EARLIER}
WHERE provider = :provider AND symbol = ANY (:asked_symbols) AND type = :kind
  AND withdrawn_at IS NULL AND fetched_at <= :observed
  AND ex_date >= :start AND ex_date < :end
  AND NOT EXISTS (
      SELECT FROM unnest(CAST(:symbols AS text[]), CAST(:ex_dates AS timestamptz[]))
          AS r (symbol, ex_date)
      WHERE r.symbol = a.symbol AND r.ex_date = a.ex_date)
""")
# One span and one time per symbol: a span that grew keeps its older time, the cautious one; an
# answer about part of what is known leaves it; one that does not touch it replaces it.
_CHECK: Final = text("""
INSERT INTO action_checks AS c (provider, symbol, type, asked, checked_at)
SELECT :provider, s, :kind, tstzrange(:start, :end), :observed
FROM unnest(CAST(:asked_symbols AS text[])) AS s ORDER BY s
ON CONFLICT (provider, symbol, type) DO UPDATE
    SET asked = CASE WHEN c.asked && excluded.asked OR c.asked -|- excluded.asked
                     THEN c.asked + excluded.asked ELSE excluded.asked END,
        checked_at = CASE
            WHEN excluded.asked @> c.asked THEN greatest(c.checked_at, excluded.checked_at)
            WHEN c.asked && excluded.asked OR c.asked -|- excluded.asked
                THEN least(c.checked_at, excluded.checked_at)
            ELSE excluded.checked_at END
""")


class PostgresActions:
    """The action store on PostgreSQL. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def splits(self, provider: str, symbols: Sequence[str]) -> dict[str, list[Split]]:
        """Return the known splits of each symbol, ascending by ex-date; withdrawn ones are out."""
        found: dict[str, list[Split]] = {symbol: [] for symbol in symbols}
        for symbol, ex_date, new, old in self._rows(_SPLITS, provider, symbols):
            found[symbol].append(Split(ex_date=to_micros(ex_date), new=new, old=old))
        return found

    def checked(
        self, provider: str, symbols: Sequence[str], kind: ActionKind = "split"
    ) -> dict[str, tuple[Span, int]]:
        """Return, for symbols ever asked about actions of this kind, the ex-date span asked and the
        market time of asking."""
        return {
            symbol: (Span(to_micros(start), to_micros(end)), to_micros(moment))
            for symbol, start, end, moment in self._rows(_CHECKED, provider, symbols, kind)
        }

    def record(
        self,
        provider: str,
        splits: Mapping[str, Sequence[Split]],
        asked: Span,
        observed_us: int,
        kind: ActionKind = "split",
    ) -> None:
        """Store the answer for every symbol of `splits` over the ex-dates `asked`, ``[start, end)``.

        New splits are added, changed ones corrected, and those that the answer no longer has are
        withdrawn; what they said before stays in the row. One transaction.

        Raises
        ------
        ValueError
            Splits given as another kind.
        """
        if not splits or asked.empty:
            return
        if kind != "split" and any(splits.values()):
            raise ValueError(f"a split cannot be recorded as a {kind}")
        rows = sorted(
            (symbol, s.ex_date, s.new, s.old) for symbol, ss in splits.items() for s in ss
        )
        parameters: dict[str, Any] = {
            "provider": provider,
            "kind": kind,
            "asked_symbols": sorted(splits),
            "start": from_micros(asked.start),
            "end": from_micros(asked.end),
            "observed": from_micros(observed_us),
            "symbols": [row[0] for row in rows],
            "ex_dates": [from_micros(row[1]) for row in rows],
            "new_rates": [row[2] for row in rows],
            "old_rates": [row[3] for row in rows],
        }

        def work(connection: Connection) -> None:
            for statement in (_CHECK, _RECORD, _WITHDRAW):
                connection.execute(statement, parameters)

        self._database.run(work)

    def _rows(
        self, statement: Any, provider: str, symbols: Sequence[str], kind: ActionKind = "split"
    ) -> Sequence[Any]:
        if not symbols:
            return []
        parameters = {"provider": provider, "symbols": list(symbols), "kind": kind}
        return self._database.run(lambda c: c.execute(statement, parameters).all(), snapshot=True)
