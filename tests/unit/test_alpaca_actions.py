"""Alpaca's corporate actions: each published type, and what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import pytest

from marketdata.brokers.alpaca_actions import parse_actions, unreadable_error
from marketdata.clock import to_micros
from marketdata.corporate_actions import ActionKind, CorporateAction
from tests.shared_data import SHARED, needs_shared_data

ID = "a7932b15-f816-4f83-921e-998b524487"


def midnight(day: date) -> int:
    return to_micros(datetime(day.year, day.month, day.day, tzinfo=UTC))


def on(text: str) -> int:
    return midnight(date.fromisoformat(text))


def parsed(**kinds: Any) -> list[CorporateAction]:
    found, unreadable = parse_actions(kinds, midnight)
    assert unreadable == {}
    return found


@needs_shared_data
def test_the_recorded_answer_holds_fourteen_types() -> None:
    """What alpaca-py's own tests are checked against."""
    recorded = json.loads((SHARED / "alpaca" / "responses.json").read_text())
    answer = next(r["body"] for r in recorded if "corporate_actions" in (r["body"] or {}))
    found = {(a.symbol, a.kind): a for a in parsed(**answer["corporate_actions"])}
    told = {key: (a.ex_date, a.new, a.old, a.cash, a.other_symbol) for key, a in found.items()}
    assert told == {
        ("MNTS", ActionKind.SPLIT): (on("2023-08-24"), 1.0, 50.0, None, None),
        ("SRE", ActionKind.SPLIT): (on("2023-08-22"), 2.0, 1.0, None, None),
        ("MSBC", ActionKind.STOCK_DIVIDEND): (on("2023-05-19"), 0.05, 1.0, None, None),
        ("FCF", ActionKind.CASH_DIVIDEND): (on("2023-05-04"), None, None, 0.125, None),
        ("JUPW", ActionKind.SPIN_OFF): (on("2023-08-15"), 1.0, 19.35, None, "SRM"),
        ("GLOP", ActionKind.MERGER): (on("2023-07-17"), None, None, 5.37, None),
        ("LSI", ActionKind.MERGER): (on("2023-07-20"), 0.895, 1.0, None, "EXR"),
        ("MLVF", ActionKind.MERGER): (on("2023-07-18"), 0.7733, 1.0, 7.8, "FRBA"),
        ("ORPHY", ActionKind.DELISTING): (on("2023-06-13"), None, None, 0.141134, None),
        ("BSAQ", ActionKind.NAME_CHANGE): (on("2023-08-15"), None, None, None, "VFS"),
        ("ATNXQ", ActionKind.DELISTING): (on("2023-10-11"), None, None, None, None),
        ("TPBAU", ActionKind.OTHER): (on("2023-03-01"), 1.0, 1.0, None, "LVRO"),
        ("IFN", ActionKind.OTHER): (on("2024-04-17"), None, None, None, "IFN.RTWI"),
    }
    dividend = found["FCF", ActionKind.CASH_DIVIDEND]
    assert dividend.process_date == on("2023-05-19"), "paid two weeks after the ex-date"
    assert dividend.id == ID + "b4"
    assert not dividend.special


def test_a_reverse_split_may_change_the_name_too() -> None:
    raw = {"id": "1", "symbol": "OLD", "new_symbol": "NEW", "new_rate": 1, "old_rate": 8,
           "ex_date": "2024-01-02", "process_date": "2024-01-02"}  # fmt: skip
    split, name_change = parsed(reverse_splits=[raw])
    assert (split.kind, split.symbol, split.new, split.old) == (ActionKind.SPLIT, "OLD", 1.0, 8.0)
    assert split.other_symbol is None
    assert (name_change.kind, name_change.symbol, name_change.other_symbol) == (
        ActionKind.NAME_CHANGE, "OLD", "NEW",
    )  # fmt: skip
    assert name_change.new is None
    assert [a.kind for a in parsed(reverse_splits=[raw | {"new_symbol": ""}])] == [ActionKind.SPLIT]


DIVIDEND = {"id": "1", "symbol": "KO", "cusip": "C", "rate": 0.1234567890123, "special": True,
            "foreign": False, "process_date": "2024-04-01", "ex_date": "2024-03-14"}  # fmt: skip


def test_amounts_keep_their_full_precision() -> None:
    (action,) = parsed(cash_dividends=[DIVIDEND])
    assert action.cash == 0.1234567890123
    assert action.special


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"currency": "USD"}, ActionKind.CASH_DIVIDEND),
        ({"currency": ""}, ActionKind.CASH_DIVIDEND),
        ({"foreign": True}, ActionKind.CASH_DIVIDEND),
        ({"currency": "CAD"}, ActionKind.OTHER),
        ({"rate": 0}, ActionKind.OTHER),
    ],
)
def test_only_dollars_change_prices(change: dict[str, object], kind: ActionKind) -> None:
    (action,) = parsed(cash_dividends=[DIVIDEND | change])
    assert action.kind is kind
    assert (action.cash is None) == (kind is ActionKind.OTHER)


def test_a_new_cusip_alone_changes_no_name() -> None:
    raw = {"id": "1", "old_symbol": "KO", "new_symbol": "KO", "process_date": "2024-04-01"}
    assert [a.kind for a in parsed(name_changes=[raw])] == [ActionKind.OTHER]


def test_kinds_still_unknown_are_kept_or_left_out_and_never_an_error() -> None:
    known = {"symbol": "KO", "process_date": "2024-04-01", "id": "9"}
    found = parsed(token_airdrops=[known, {"what": 1}], moon_landings="none", splits_of_hairs=None)
    assert [(a.kind, a.symbol) for a in found] == [(ActionKind.OTHER, "KO")]
    calls = parsed(
        partial_calls=[known], reorganizations=[known | {"effective_date": "2024-03-28"}]
    )
    assert [(a.kind, a.ex_date) for a in calls] == [
        (ActionKind.OTHER, on("2024-04-01")),
        (ActionKind.OTHER, on("2024-03-28")),
    ]


SPLIT = {"ex_date": "2023-08-24", "new_rate": 1, "old_rate": 50, "symbol": "MNTS"}
MERGER = {"acquiree_symbol": "A", "acquirer_symbol": "B", "acquiree_rate": 1, "acquirer_rate": 2,
          "effective_date": "2024-01-02"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "raw", "symbols"),
    [
        ("reverse_splits", SPLIT | {"ex_date": None}, {"MNTS"}),
        ("reverse_splits", SPLIT | {"ex_date": "2023-13-24"}, {"MNTS"}),
        ("reverse_splits", SPLIT | {"new_rate": 0}, {"MNTS"}),
        ("forward_splits", SPLIT | {"old_rate": None}, {"MNTS"}),
        ("forward_splits", SPLIT | {"new_rate": "2"}, {"MNTS"}),
        ("forward_splits", SPLIT | {"new_rate": True}, {"MNTS"}),
        ("forward_splits", SPLIT | {"new_rate": float("nan")}, {"MNTS"}),
        ("forward_splits", SPLIT | {"symbol": None}, {""}),
        ("forward_splits", {"MNTS": SPLIT}, {""}),
        ("cash_dividends", DIVIDEND | {"rate": -1.0}, {"KO"}),
        ("cash_dividends", DIVIDEND | {"rate": None}, {"KO"}),
        ("stock_dividends", DIVIDEND | {"rate": 0}, {"KO"}),
        ("spin_offs", {"source_symbol": "A", "new_symbol": "B", "ex_date": "2024-01-02"}, {"A"}),
        ("stock_mergers", MERGER | {"acquiree_rate": 0}, {"A"}),
        ("stock_mergers", MERGER | {"acquiree_symbol": None}, {"B"}),
        ("name_changes", {"old_symbol": "FB", "process_date": "2022-06-09"}, {"FB"}),
        ("name_changes", {"old_symbol": "FB", "new_symbol": "META"}, {"FB", "META"}),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_and_costs_no_other(
    kind: str, raw: Mapping[str, Any], symbols: set[str]
) -> None:
    kinds: dict[str, Any] = {"redemptions": [{"symbol": "X", "process_date": "2024-01-02"}]}
    kinds[kind] = [raw] if "MNTS" not in raw else raw
    found, unreadable = parse_actions(kinds, midnight)
    assert [a.symbol for a in found] == ["X"]
    assert unreadable.keys() == symbols
    error = unreadable_error(unreadable, ["A", "KO", "MNTS", "FB"])
    assert error.facts["unreadable"] == sorted(symbols & {"A", "KO", "MNTS", "FB"})
    assert not error.transient
