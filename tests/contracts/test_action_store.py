"""What every `ActionStore` promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import DataQualityError
from marketdata.protocols import ActionStore
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import DAY
from tests.store_examples import migrated_store

JUNE = 1_402_286_400_000_000
YEAR = Span(JUNE - 200 * DAY, JUNE + 165 * DAY)
NOW = JUNE + 200 * DAY


def split(ex_date: int, new: float, old: float = 1.0, **more: Any) -> CorporateAction:
    return CorporateAction("AAPL", ActionKind.SPLIT, ex_date, new=new, old=old, **more)


SEVEN = split(JUNE, 7.0)
LATER = split(JUNE + 100 * DAY, 1.0, 10.0)
PAID = CorporateAction(
    "AAPL", ActionKind.CASH_DIVIDEND, JUNE + 60 * DAY, "d1", cash=0.47,
    process_date=JUNE + 74 * DAY, announced_us=JUNE + 20 * DAY,
)  # fmt: skip
EXTRA = replace(PAID, id="d2", cash=3.0, special=True)
RENAMED = CorporateAction("FB", ActionKind.NAME_CHANGE, JUNE, "n1", other_symbol="META")
EVERY_KIND = [
    SEVEN,
    CorporateAction("AAPL", ActionKind.STOCK_DIVIDEND, JUNE + DAY, "2", new=0.05, old=1.0, order=1),
    replace(PAID, ex_date=JUNE + 2 * DAY),
    CorporateAction(
        "AAPL", ActionKind.SPIN_OFF, JUNE + 3 * DAY, "4", new=1.0, old=19.35, other_symbol="SRM"
    ),
    CorporateAction(
        "AAPL", ActionKind.MERGER, JUNE + 4 * DAY, "5",
        new=0.7733, old=1.0, cash=7.8, other_symbol="X",
    ),
    CorporateAction("AAPL", ActionKind.NAME_CHANGE, JUNE + 5 * DAY, "6", other_symbol="APPL"),
    CorporateAction("AAPL", ActionKind.DELISTING, JUNE + 6 * DAY, "7", cash=0.141134),
    CorporateAction("AAPL", ActionKind.OTHER, JUNE + 7 * DAY, "8", other_symbol="AAPL.RT"),
]  # fmt: skip


@pytest.fixture(params=["postgres"])
def actions(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    with migrated_store(request.getfixturevalue("database_url")) as made:
        yield made


def told(
    actions: ActionStore, *symbols: str, provider: str = "alpaca"
) -> dict[str, list[CorporateAction]]:
    """Return what is known, without the times at which it was said."""
    return without_times(actions.actions(provider, symbols or ["AAPL"]))


def without_times(
    found: dict[str, list[CorporateAction]],
) -> dict[str, list[CorporateAction]]:
    return {s: [replace(a, fetched_us=None) for a in each] for s, each in found.items()}


def test_a_symbol_never_asked_has_no_actions_and_no_check(actions: ActionStore) -> None:
    assert actions.actions("alpaca", ["AAPL"]) == {"AAPL": []}
    assert actions.history("alpaca", ["AAPL"], NOW) == {"AAPL": []}
    assert actions.checked("alpaca", ["AAPL"]) == {}
    assert actions.actions("alpaca", []) == {}


def test_actions_come_back_by_symbol_ascending(actions: ActionStore) -> None:
    changes = actions.record("alpaca", {"AAPL": [LATER, SEVEN], "MSFT": []}, YEAR, NOW)
    assert {(c.ex_date, c.change) for c in changes} == {
        (SEVEN.ex_date, "new"),
        (LATER.ex_date, "new"),
    }
    assert told(actions, "AAPL", "MSFT", "KO") == {"AAPL": [SEVEN, LATER], "MSFT": [], "KO": []}
    assert actions.actions("alpaca", ["AAPL"])["AAPL"][0].fetched_us == NOW
    assert actions.checked("alpaca", ["AAPL", "MSFT", "KO"]) == {
        "AAPL": (YEAR, NOW),
        "MSFT": (YEAR, NOW),
    }


def test_every_kind_comes_back_as_it_was_told(actions: ActionStore) -> None:
    actions.record("alpaca", {"AAPL": EVERY_KIND}, YEAR, NOW)
    assert told(actions)["AAPL"] == EVERY_KIND
    assert {a.kind for a in EVERY_KIND} == set(ActionKind)
    wanted = {ActionKind.SPLIT, ActionKind.SPIN_OFF}
    assert {a.kind for a in actions.actions("alpaca", ["AAPL"], wanted)["AAPL"]} == wanted


def test_a_regular_and_a_special_dividend_share_an_ex_date(actions: ActionStore) -> None:
    plain = [replace(PAID, id=""), replace(EXTRA, id="")]
    for answer in ([PAID, EXTRA], plain):
        actions.record("alpaca", {"AAPL": answer}, YEAR, NOW)
    assert sorted(a.cash or 0.0 for a in told(actions)["AAPL"]) == [0.47, 3.0]
    same = [replace(PAID, id=""), replace(PAID, id="", cash=0.1)]
    actions.record("alpaca", {"AAPL": same}, YEAR, NOW + DAY)
    assert sorted(a.cash or 0.0 for a in told(actions)["AAPL"]) == [0.1, 0.47], "two alike"


def test_a_name_change_is_known_under_both_names(actions: ActionStore) -> None:
    actions.record("alpaca", {"FB": [RENAMED], "META": [RENAMED]}, YEAR, NOW)
    assert told(actions, "FB", "META", "KO") == {"FB": [RENAMED], "META": [RENAMED], "KO": []}
    only = actions.actions("alpaca", ["META"], {ActionKind.NAME_CHANGE})
    assert without_times(only) == {"META": [RENAMED]}
    assert without_times(actions.history("alpaca", ["META", "FB"], NOW)) == {
        "META": [RENAMED],
        "FB": [RENAMED],
    }


def test_a_name_change_goes_only_where_both_names_were_asked_about(actions: ActionStore) -> None:
    actions.record("alpaca", {"META": [RENAMED]}, YEAR, NOW)
    for name in ("FB", "META"):
        assert actions.record("alpaca", {name: []}, YEAR, NOW + DAY) == []
    assert told(actions, "FB")["FB"] == [RENAMED]
    (gone,) = actions.record("alpaca", {"FB": [], "META": []}, YEAR, NOW + DAY)
    assert (gone.symbol, gone.kind, gone.change) == ("FB", ActionKind.NAME_CHANGE, "withdrawn")
    assert told(actions, "FB", "META") == {"FB": [], "META": []}


def test_providers_are_apart(actions: ActionStore) -> None:
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    assert told(actions, provider="yahoo") == {"AAPL": []}
    assert actions.checked("yahoo", ["AAPL"]) == {}


def test_recording_again_changes_nothing(actions: PostgresStore) -> None:
    assert actions.record("alpaca", {"AAPL": EVERY_KIND}, YEAR, NOW)
    assert actions.record("alpaca", {"AAPL": EVERY_KIND}, YEAR, NOW + DAY) == []
    assert corrections(actions) == [[]] * len(EVERY_KIND)
    assert {a.fetched_us for a in actions.actions("alpaca", ["AAPL"])["AAPL"]} == {NOW}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (split(JUNE, 17.0), SEVEN),
        (PAID, replace(PAID, cash=0.61)),
        (PAID, replace(PAID, ex_date=PAID.ex_date + DAY)),
        (PAID, replace(PAID, process_date=None)),
        (PAID, replace(PAID, special=True)),
        (replace(PAID, announced_us=None), PAID),
        (RENAMED, replace(RENAMED, other_symbol="FACE")),
        (EVERY_KIND[1], replace(EVERY_KIND[1], order=None)),
    ],
)
def test_a_correction_replaces_what_was_said_and_keeps_it(
    actions: PostgresStore, first: CorporateAction, second: CorporateAction
) -> None:
    symbol = first.symbol
    actions.record("alpaca", {symbol: [first]}, YEAR, NOW)
    (change,) = actions.record("alpaca", {symbol: [second]}, YEAR, NOW + DAY)
    assert change.change == "corrected"
    (now,) = actions.actions("alpaca", [symbol])[symbol]
    assert now == replace(second, fetched_us=NOW + DAY)
    for moment in (NOW - DAY, NOW, NOW + DAY - 1):
        (then,) = actions.history("alpaca", [symbol], moment)[symbol]
        assert then == replace(first, fetched_us=NOW), "the first knowledge was always known"
    assert actions.history("alpaca", [symbol], NOW + DAY)[symbol] == [now]
    assert [len(c) for c in corrections(actions)] == [1]


def test_an_answer_older_than_what_is_stored_corrects_nothing(actions: ActionStore) -> None:
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    assert actions.record("alpaca", {"AAPL": [split(JUNE, 17.0)]}, YEAR, NOW - DAY) == []
    assert actions.record("alpaca", {"AAPL": []}, YEAR, NOW - DAY) == []
    assert told(actions)["AAPL"] == [SEVEN]


def test_what_is_withdrawn_counts_for_nothing_and_may_come_back(actions: PostgresStore) -> None:
    moved = split(JUNE + DAY, 7.0)  # without an id, another ex-date is another action
    actions.record("alpaca", {"AAPL": [SEVEN], "KO": [replace(SEVEN, symbol="KO")]}, YEAR, NOW)
    changes = actions.record("alpaca", {"AAPL": [moved]}, YEAR, NOW + DAY)
    assert {(c.ex_date, c.change) for c in changes} == {
        (JUNE, "withdrawn"),
        (JUNE + DAY, "new"),
    }
    assert told(actions, "AAPL", "KO") == {"AAPL": [moved], "KO": [replace(SEVEN, symbol="KO")]}
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW + 2 * DAY)
    assert told(actions)["AAPL"] == [SEVEN]

    def then(moment: int) -> list[int]:
        return [a.ex_date for a in actions.history("alpaca", ["AAPL"], moment)["AAPL"]]

    # What an answer after its ex-date did not have was not known; what was gone by then counts not.
    assert then(NOW) == [JUNE]
    assert then(NOW + DAY) == [JUNE + DAY]
    assert then(NOW + 2 * DAY) == [JUNE]


def test_actions_outside_the_dates_asked_stay(actions: ActionStore) -> None:
    actions.record("alpaca", {"AAPL": [SEVEN, LATER]}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": []}, Span(JUNE + DAY, JUNE + 10 * DAY), NOW + DAY)
    assert told(actions)["AAPL"] == [SEVEN, LATER]


def test_an_id_that_comes_later_is_no_other_action(actions: PostgresStore) -> None:
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    assert actions.record("alpaca", {"AAPL": [replace(SEVEN, id="s1")]}, YEAR, NOW + DAY) == []
    assert told(actions)["AAPL"] == [replace(SEVEN, id="s1")]
    assert corrections(actions) == [[]]


@pytest.mark.parametrize(
    ("again", "span", "moment"),
    [
        (YEAR, YEAR, NOW + DAY),
        (Span(YEAR.start, YEAR.end + DAY), Span(YEAR.start, YEAR.end + DAY), NOW + DAY),
        # only part of what is known is fresh: the whole is as old as its oldest part
        (Span(JUNE, YEAR.end + DAY), Span(YEAR.start, YEAR.end + DAY), NOW),
        (Span(JUNE, JUNE + DAY), YEAR, NOW),
        (
            Span(YEAR.end + DAY, YEAR.end + 2 * DAY),
            Span(YEAR.end + DAY, YEAR.end + 2 * DAY),
            NOW + DAY,
        ),
    ],
)
def test_the_dates_asked_grow_cautiously(
    actions: ActionStore, again: Span, span: Span, moment: int
) -> None:
    actions.record("alpaca", {"AAPL": []}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": []}, again, NOW + DAY)
    assert actions.checked("alpaca", ["AAPL"]) == {"AAPL": (span, moment)}


def test_a_part_that_holds_the_recent_months_is_a_check_and_not_of_the_whole(
    actions: PostgresStore,
) -> None:
    first = JUNE + 150 * DAY  # within the dates asked
    recent = Span(JUNE + 20 * DAY, YEAR.end + 30 * DAY)
    late = Span(JUNE + 80 * DAY, YEAR.end + 30 * DAY)
    past = Span(JUNE, first + 2 * DAY)
    actions.record("alpaca", {"AAPL": [], "KO": [], "MSFT": []}, YEAR, first)
    actions.record("alpaca", {"AAPL": []}, recent, first + 2 * DAY)
    actions.record("alpaca", {"KO": []}, late, first + 2 * DAY)
    actions.record("alpaca", {"MSFT": []}, past, first + 2 * DAY)
    grown = Span(YEAR.start, YEAR.end + 30 * DAY)
    assert actions.checked("alpaca", ["AAPL", "KO", "MSFT"]) == {
        "AAPL": (grown, first + 2 * DAY),
        "KO": (grown, first),
        "MSFT": (YEAR, first),
    }
    assert actions.checks("alpaca") == {
        "AAPL": (grown, first),
        "KO": (grown, first),
        "MSFT": (YEAR, first),
    }
    assert actions.checks("yahoo") == {}


@pytest.mark.parametrize(
    "bad",
    [
        split(JUNE, 0.0),
        replace(SEVEN, old=None),
        replace(PAID, cash=None),
        replace(PAID, cash=float("nan")),
        replace(RENAMED, symbol="AAPL", other_symbol=None),
    ],
)
def test_actions_and_the_dates_asked_are_stored_together_or_not_at_all(
    actions: ActionStore, bad: CorporateAction
) -> None:
    with pytest.raises(DataQualityError):
        actions.record("alpaca", {"AAPL": [LATER, bad]}, YEAR, NOW)
    assert actions.checked("alpaca", ["AAPL"]) == {}
    assert told(actions) == {"AAPL": []}


def corrections(actions: PostgresStore) -> list[list[dict[str, float]]]:
    query = text("SELECT corrections FROM corporate_actions ORDER BY symbol, ex_date")
    return list(actions.database.run(lambda c: c.execute(query).scalars().all()))
