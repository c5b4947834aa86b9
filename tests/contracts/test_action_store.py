"""What every `ActionStore` promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from marketdata.errors import DataQualityError
from marketdata.protocols import ActionStore
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import DAY, Split
from tests.store_examples import migrated_store

JUNE = 1_402_286_400_000_000
YEAR = Span(JUNE - 200 * DAY, JUNE + 165 * DAY)
SEVEN = Split(JUNE, 7.0, 1.0)
LATER = Split(JUNE + 100 * DAY, 1.0, 10.0)
NOW = JUNE + 200 * DAY


@pytest.fixture(params=["postgres"])
def actions(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    with migrated_store(request.getfixturevalue("database_url")) as made:
        yield made


def test_a_symbol_never_asked_has_no_splits_and_no_check(actions: ActionStore):
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": []}
    assert actions.checked("alpaca", ["AAPL"]) == {}
    assert actions.splits("alpaca", []) == {}


def test_splits_come_back_by_symbol_ascending(actions: ActionStore):
    actions.record("alpaca", {"AAPL": [LATER, SEVEN], "MSFT": []}, YEAR, NOW)
    assert actions.splits("alpaca", ["AAPL", "MSFT", "KO"]) == {
        "AAPL": [SEVEN, LATER],
        "MSFT": [],
        "KO": [],
    }
    assert actions.checked("alpaca", ["AAPL", "MSFT", "KO"]) == {
        "AAPL": (YEAR, NOW),
        "MSFT": (YEAR, NOW),
    }


def test_providers_are_apart(actions: ActionStore):
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    assert actions.splits("yahoo", ["AAPL"]) == {"AAPL": []}
    assert actions.checked("yahoo", ["AAPL"]) == {}


def test_recording_again_changes_nothing(actions: PostgresStore):
    for _ in range(2):
        actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    assert corrections(actions) == [[]]


def test_a_corrected_ratio_replaces_the_old_one_and_leaves_a_trail(actions: PostgresStore):
    actions.record("alpaca", {"AAPL": [Split(JUNE, 17.0, 1.0)]}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW + DAY)
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": [SEVEN]}
    assert [c["new_rate"] for c in corrections(actions)[0]] == [17]


def test_an_answer_older_than_what_is_stored_corrects_nothing(actions: ActionStore):
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": [Split(JUNE, 17.0, 1.0)]}, YEAR, NOW - DAY)
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": [SEVEN]}


def test_a_moved_ex_date_does_not_leave_the_split_twice(actions: ActionStore):
    moved = Split(JUNE + DAY, 7.0, 1.0)
    actions.record("alpaca", {"AAPL": [SEVEN], "KO": [SEVEN]}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": [moved]}, YEAR, NOW + DAY)
    assert actions.splits("alpaca", ["AAPL", "KO"]) == {"AAPL": [moved], "KO": [SEVEN]}
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW + 2 * DAY)
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": [SEVEN]}


def test_splits_outside_the_dates_asked_stay(actions: ActionStore):
    actions.record("alpaca", {"AAPL": [SEVEN, LATER]}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": []}, Span(JUNE + DAY, JUNE + 10 * DAY), NOW + DAY)
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": [SEVEN, LATER]}


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
def test_the_dates_asked_grow_cautiously(actions: ActionStore, again, span, moment):
    actions.record("alpaca", {"AAPL": []}, YEAR, NOW)
    actions.record("alpaca", {"AAPL": []}, again, NOW + DAY)
    assert actions.checked("alpaca", ["AAPL"]) == {"AAPL": (span, moment)}


def test_splits_and_the_dates_asked_are_stored_together_or_not_at_all(actions: ActionStore):
    with pytest.raises(DataQualityError):
        actions.record("alpaca", {"AAPL": [Split(JUNE, 0.0, 1.0)]}, YEAR, NOW)
    assert actions.checked("alpaca", ["AAPL"]) == {}


def test_asking_about_one_kind_says_nothing_of_the_other(actions: ActionStore):
    actions.record("alpaca", {"AAPL": []}, YEAR, NOW, kind="dividend")
    assert actions.checked("alpaca", ["AAPL"]) == {}
    assert actions.checked("alpaca", ["AAPL"], "dividend") == {"AAPL": (YEAR, NOW)}
    actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW + DAY)
    actions.record("alpaca", {"AAPL": []}, YEAR, NOW + 2 * DAY, kind="dividend")
    assert actions.splits("alpaca", ["AAPL"]) == {"AAPL": [SEVEN]}, "withdrawn by the other kind"
    assert actions.checked("alpaca", ["AAPL"]) == {"AAPL": (YEAR, NOW + DAY)}
    assert actions.checked("alpaca", ["AAPL"], "dividend") == {"AAPL": (YEAR, NOW + 2 * DAY)}


def test_a_split_is_no_dividend(actions: ActionStore):
    with pytest.raises(ValueError, match="cannot be recorded as a dividend"):
        actions.record("alpaca", {"AAPL": [SEVEN]}, YEAR, NOW, kind="dividend")
    assert actions.checked("alpaca", ["AAPL"], "dividend") == {}


def corrections(actions: PostgresStore) -> list[list[dict[str, float]]]:
    query = text("SELECT corrections FROM corporate_actions ORDER BY symbol, ex_date")
    return list(actions.database.run(lambda c: c.execute(query).scalars().all()))
