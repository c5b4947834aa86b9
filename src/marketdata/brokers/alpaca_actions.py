"""Alpaca's corporate actions: one answer of ``GET /v1/corporate-actions`` to actions of ours. Pure.

Source of every key and its meaning: Alpaca's published OpenAPI description of the market-data API,
schema ``corporate_actions`` and the fifteen schemas it lists. What ends a symbol has no ex-date
there: mergers, unit splits and reorganizations have an effective date, name changes, redemptions,
removals and partial calls only the day they are processed.

======================  ==============  ==========================================================
Alpaca's type           kind            rates
======================  ==============  ==========================================================
forward_split           split           ``new_rate`` for ``old_rate``
reverse_split           split           the same; with a ``new_symbol`` also a name change
stock_dividend          stock_dividend  ``rate`` further shares for 1
cash_dividend           cash_dividend   ``rate`` a share; in a foreign currency: other
spin_off                spin_off        ``new_rate`` of the new symbol for ``source_rate``
cash_merger             merger          ``rate`` a share
stock_merger            merger          ``acquirer_rate`` for ``acquiree_rate``
stock_and_cash_merger   merger          both, with ``cash_rate``
name_change             name_change
redemption              delisting       ``rate`` a share
worthless_removal       delisting
all others              other
======================  ==============  ==========================================================
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import BrokerResponseError

log = logging.getLogger("marketdata.brokers.alpaca")

_SYMBOL_KEYS: Final = ("symbol", "old_symbol", "source_symbol", "acquiree_symbol")
_OTHER_KEYS: Final = ("new_symbol", "acquirer_symbol")
_RENAMING: Final = ("name_changes", "reverse_splits")
_DATE_KEYS: Final = ("ex_date", "effective_date", "process_date")

MidnightOf = Callable[[date], int]


class _UnreadableError(Exception):
    """Something an action must have is missing or impossible."""


@dataclass(frozen=True, slots=True)
class _Raw:
    """One action of an answer, read key by key; what is missing or impossible raises."""

    found: Mapping[str, Any]
    midnight_of: MidnightOf

    def word(self, *keys: str) -> str:
        for key in keys:
            value = self.found.get(key)
            if isinstance(value, str) and value:
                return value
        raise _UnreadableError(f"no {' or '.join(keys)}")

    def word_or_none(self, *keys: str) -> str | None:
        try:
            return self.word(*keys)
        except _UnreadableError:
            return None

    def day(self, *keys: str) -> int:
        """Return the exchange midnight of the first date there is among `keys`."""
        text = self.word(*keys)
        try:
            return self.midnight_of(date.fromisoformat(text))
        except ValueError:
            raise _UnreadableError(f"{text!r} is no date") from None

    def rate(self, key: str, *, least: float = math.ulp(0.0)) -> float:
        """Return a number not below `least`, above zero by default."""
        value = self.found.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if least <= number < math.inf:
                return number
        raise _UnreadableError(f"{key} is {value!r}")

    def rate_or_none(self, key: str) -> float | None:
        try:
            return self.rate(key)
        except _UnreadableError:
            return None


Reader = Callable[[_Raw, CorporateAction], list[CorporateAction]]


def _split(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    split = replace(base, kind=ActionKind.SPLIT, new=raw.rate("new_rate"), old=raw.rate("old_rate"))
    renamed = raw.word_or_none("new_symbol")
    if renamed is None or renamed == split.symbol:
        return [replace(split, other_symbol=None)]
    name_change = replace(base, kind=ActionKind.NAME_CHANGE, other_symbol=renamed)
    return [replace(split, other_symbol=None), name_change]


def _stock_dividend(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    return [replace(base, kind=ActionKind.STOCK_DIVIDEND, new=raw.rate("rate"), old=1.0)]


def _cash_dividend(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    cash, currency = raw.rate("rate", least=0.0), raw.word_or_none("currency")
    special = raw.found.get("special") is True
    if cash == 0.0 or currency not in (None, "USD"):
        # Prices are in dollars: what cannot be put into relation to them changes none.
        log.info("%s pays a dividend of %s %s: not applied", base.symbol, cash, currency or "USD")
        return [replace(base, cash=None, special=special)]
    return [replace(base, kind=ActionKind.CASH_DIVIDEND, cash=cash, special=special)]


def _spin_off(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    return [
        replace(
            base,
            kind=ActionKind.SPIN_OFF,
            new=raw.rate("new_rate"),
            old=raw.rate("source_rate"),
            other_symbol=raw.word("new_symbol"),
        )
    ]


def _merger(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    found = replace(base, kind=ActionKind.MERGER)
    if "acquirer_rate" in raw.found:
        found = replace(
            found,
            new=raw.rate("acquirer_rate"),
            old=raw.rate("acquiree_rate"),
            other_symbol=raw.word("acquirer_symbol"),
        )
    for key in ("rate", "cash_rate"):
        if key in raw.found:
            found = replace(found, cash=raw.rate(key, least=0.0))
    return [found]


def _name_change(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    renamed = raw.word("new_symbol")
    if renamed == base.symbol:  # only the CUSIP is another one
        return [replace(base, other_symbol=None)]
    return [replace(base, kind=ActionKind.NAME_CHANGE, other_symbol=renamed)]


def _delisting(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    return [replace(base, kind=ActionKind.DELISTING, cash=raw.rate_or_none("rate"))]


def _other(raw: _Raw, base: CorporateAction) -> list[CorporateAction]:
    return [base]


_READERS: Final[Mapping[str, Reader]] = {
    "forward_splits": _split,
    "reverse_splits": _split,
    "stock_dividends": _stock_dividend,
    "cash_dividends": _cash_dividend,
    "spin_offs": _spin_off,
    "cash_mergers": _merger,
    "stock_mergers": _merger,
    "stock_and_cash_mergers": _merger,
    "name_changes": _name_change,
    "redemptions": _delisting,
    "worthless_removals": _delisting,
    "unit_splits": _other,
    "rights_distributions": _other,
    "partial_calls": _other,
    "reorganizations": _other,
}


def parse_actions(
    kinds: Mapping[str, Any], midnight_of: MidnightOf
) -> tuple[list[CorporateAction], dict[str, str]]:
    """Return the actions of one page, and of those that cannot be read the symbols with a reason.

    Parameters
    ----------
    kinds : mapping
        The ``corporate_actions`` of an answer: lists by kind.
    midnight_of : callable
        Turns a date into its exchange midnight, microseconds UTC.

    Returns
    -------
    tuple
        Actions in the order they came, and reasons by symbol; a reason under ``""`` concerns an
        action that names no symbol at all.
    """
    found: list[CorporateAction] = []
    unreadable: dict[str, str] = {}
    for kind, rows in kinds.items():
        if kind not in _READERS:
            log.info("alpaca has actions of a kind unknown here: %s", kind)
        for row in _rows_of(kind, rows, unreadable):
            try:
                found += _parse(kind, _Raw(row, midnight_of))
            except _UnreadableError as error:
                if kind not in _READERS:
                    log.info("an action of kind %s left out: %s", kind, error)
                    continue
                for symbol in _symbols_of(kind, row) or [""]:
                    unreadable[symbol] = f"{kind}: {error}: {str(row)[:160]}"
    return found, unreadable


def _rows_of(kind: str, rows: object, unreadable: dict[str, str]) -> Iterable[Mapping[str, Any]]:
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        if kind in _READERS:
            unreadable[""] = f"{kind}: not a list of actions: {str(rows)[:160]}"
        return []
    return rows


def _parse(kind: str, raw: _Raw) -> list[CorporateAction]:
    ex_date = raw.day(*_DATE_KEYS)
    base = CorporateAction(
        symbol=raw.word(*_SYMBOL_KEYS),
        kind=ActionKind.OTHER,
        ex_date=ex_date,
        id=raw.word_or_none("id") or "",
        new=raw.rate_or_none("new_rate"),
        old=raw.rate_or_none("old_rate"),
        other_symbol=raw.word_or_none(*_OTHER_KEYS),
        process_date=raw.day("process_date") if raw.word_or_none("process_date") else None,
    )
    reader = _READERS.get(kind, _other)
    if reader is not _other:
        base = replace(base, new=None, old=None)
    return reader(raw, base)


def _symbols_of(kind: str, row: Mapping[str, Any]) -> list[str]:
    """Return the symbols that an action concerns, as far as it says: an acquirer's own prices and
    name do not depend on the merger that is listed under it too."""
    own, others = (
        [name for key in keys if isinstance(name := row.get(key), str) and name]
        for keys in (_SYMBOL_KEYS, _OTHER_KEYS)
    )
    return own + others if not own or kind in _RENAMING else own


def unreadable_error(unreadable: Mapping[str, str], asked: Iterable[str]) -> BrokerResponseError:
    """Return the error about actions of `asked` that cannot be read."""
    named = sorted(set(unreadable) & set(asked))
    reason = next(iter(unreadable.values()))
    return BrokerResponseError(
        f"alpaca: corporate actions of {', '.join(named) or 'no symbol'} cannot be read: {reason}",
        cure="report it to the broker; raw bars are not affected",
        unreadable=named,
    )
