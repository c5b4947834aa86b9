"""Under which symbol the close is looked up that a distribution is measured by."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import Deadline, FixedClock, to_micros
from marketdata.identities import Identities
from marketdata.instrument_closes import InstrumentCloses
from marketdata.reference_closes import ReferenceCloses
from tests.unit.test_identities import META, NOW, Store


def day(text: str) -> int:
    return to_micros(datetime.fromisoformat(f"{text}T05:00").replace(tzinfo=UTC))


BEFORE = day("2021-12-01")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, set[int]]]:
    found: list[dict[str, set[int]]] = []

    def under(self: object, provider: str, feed: str, days: Any, *_: object, **__: object) -> Any:
        found.append({symbol: set(labels) for symbol, labels in days.items()})
        return {}

    monkeypatch.setattr(ReferenceCloses, "under", under)
    return found


@pytest.fixture
def closes() -> InstrumentCloses:
    store = Store()
    store.changes.append(META)
    calendar: Callable[[], Any] = lambda: calendar_for(EXCHANGE, to_micros(NOW))  # noqa: E731
    nobody: Any = None
    return InstrumentCloses(
        Identities(store, FixedClock(NOW), calendar), nobody, nobody, nobody, calendar
    )


def test_a_renamed_symbol_is_looked_up_under_the_name_of_the_day(
    closes: InstrumentCloses, asked: list[dict[str, set[int]]]
) -> None:
    closes.find("alpaca", "sip", {"META": {BEFORE}}, Deadline(1))
    assert asked == [{"FB": {BEFORE}}]


def test_as_of_a_day_before_the_change_it_is_the_holder_of_that_time(
    closes: InstrumentCloses, asked: list[dict[str, set[int]]]
) -> None:
    closes.find("alpaca", "sip", {"META": {BEFORE}}, Deadline(1), as_of_us=day("2022-01-03"))
    assert asked == [{"META": {BEFORE}}]
