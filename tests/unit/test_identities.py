"""What a process remembers of identities, while others record something new."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import FixedClock, to_micros
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.identities import Identities, InstrumentActions
from marketdata.identity import Lineage
from marketdata.protocols import ActionChange, Asset, KnownAsset
from marketdata.spans import Span

NOW = datetime(2024, 3, 13, 15, tzinfo=UTC)
META = CorporateAction(
    "FB",
    ActionKind.NAME_CHANGE,
    to_micros(datetime(2022, 6, 9, 4, tzinfo=UTC)),
    other_symbol="META",
)


class Store:
    """Identity changes in memory, and what happens right after they are read."""

    def __init__(self) -> None:
        self.changes: list[CorporateAction] = []
        self.after_reading: Callable[[], None] | None = None
        self.rebuilt: list[Sequence[str] | None] = []

    def identity_changes(self, provider: str) -> list[CorporateAction]:
        found = list(self.changes)
        after, self.after_reading = self.after_reading, None
        if after is not None:
            after()
        return found

    def last_days(self, provider: str) -> dict[str, int]:
        return {}

    def assets(self, provider: str, symbols: Sequence[str] | None = None) -> list[KnownAsset]:
        return []

    def assets_checked(self, provider: str) -> int | None:
        return None

    def record_assets(
        self, provider: str, assets: Sequence[Asset], observed_us: int, *, complete: bool
    ) -> None:
        raise NotImplementedError

    def rebuild(
        self,
        provider: str,
        lineages: Iterable[Lineage],
        now_us: int,
        symbols: Sequence[str] | None = None,
    ) -> None:
        self.rebuilt.append(symbols)


class Recorded:
    """An action store to which the answer says nothing new."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
    ) -> list[ActionChange]:
        return []


def identities_on(store: Store) -> Identities:
    return Identities(store, FixedClock(NOW), lambda: calendar_for(EXCHANGE, to_micros(NOW)))


def symbols(identities: Identities) -> list[str]:
    return [piece.symbol for piece in identities.lineage("alpaca", "META")]


def test_a_rename_recorded_while_another_thread_reads_is_known_at_once() -> None:
    store = Store()
    identities = identities_on(store)

    def record_elsewhere() -> None:
        store.changes.append(META)
        identities.forget("alpaca")

    store.after_reading = record_elsewhere
    assert symbols(identities) == ["META"]  # read before it was recorded
    assert symbols(identities) == ["FB", "META"]


def test_one_thread_looks_again_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Identities, "MEMORY", 0.0)
    store = Store()
    identities = identities_on(store)
    assert symbols(identities) == ["META"]
    others: list[list[str]] = []
    store.changes.append(META)
    store.after_reading = lambda: others.append(symbols(identities))
    assert symbols(identities) == ["FB", "META"]
    assert others == [["META"]]
    assert symbols(identities) == ["FB", "META"]


def test_a_rename_that_is_no_change_to_the_store_is_known_at_once() -> None:
    store = Store()
    identities = identities_on(store)
    assert symbols(identities) == ["META"]
    store.changes.append(META)  # by another process, or by a commit whose reply was lost
    actions = InstrumentActions(Recorded(store), identities)  # type: ignore[arg-type]
    actions.record("alpaca", {"META": [META], "FB": [META]}, Span(0, 1), 0)
    assert symbols(identities) == ["FB", "META"]
    assert store.rebuilt == [["FB", "META"]]
    actions.record("alpaca", {"META": [META], "FB": [META]}, Span(0, 1), 0)
    assert len(store.rebuilt) == 1
