"""Which broker: the table is complete, the choice follows settings and database."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from marketdata.brokers.offline import OfflineBroker
from marketdata.calendars import calendar_for
from marketdata.clock import parse_clock
from marketdata.config import VARIABLES, Settings
from marketdata.errors import ConfigurationError
from marketdata.sources import (
    KINDS,
    NOBODY,
    Source,
    Surroundings,
    check_keys,
    choose_source,
    kind_named,
    make_broker,
)

KEYS = {"alpaca_key_id": "id", "alpaca_secret_key": "secret"}
FOREIGN = "http://prices.example.com:8080"


@pytest.fixture(autouse=True)
def empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def surroundings(settings: Settings, source: Source) -> Surroundings:
    clock = parse_clock("2024-03-14T15:00:30-04:00")
    return Surroundings(settings, source, clock, lambda: calendar_for("XNYS", clock.now_us()))


def test_every_choice_of_the_settings_is_a_row() -> None:
    choices = get_args(Settings.model_fields["broker"].annotation)
    assert set(choices) == {*KINDS, "auto", NOBODY}


def test_every_row_names_settings_that_exist() -> None:
    for kind in KINDS.values():
        named = {*kind.key_fields, kind.url_field} - {None}
        assert named <= set(VARIABLES)


@pytest.mark.parametrize("name", KINDS)
def test_every_row_makes_a_broker_of_its_provider_and_feed(name: str) -> None:
    settings = Settings.load(broker=name, **KEYS)
    source = choose_source(settings, None)
    given = surroundings(settings, source)
    broker = make_broker(given)
    with given.closing:
        assert (broker.provider, broker.default_feed) == (name, KINDS[name].default_feed)
        broker.capabilities(broker.default_feed)
        assert set(broker.health()) >= {"breaker", "requests_sent"}
        broker.close()
        broker.close()


def test_an_unknown_kind_is_an_error_and_no_other_broker() -> None:
    with pytest.raises(ConfigurationError, match="alpaca, yahoo, sandbox"):
        kind_named("polygon")
    settings = Settings.load()
    with pytest.raises(ConfigurationError, match="polygon"):
        make_broker(surroundings(settings, Source("polygon", "polygon", "all")))


@pytest.mark.parametrize(
    ("given", "held", "expected"),
    [
        ({}, None, ("yahoo", "yahoo", "yahoo")),
        (KEYS, None, ("alpaca", "alpaca", "sip")),
        ({**KEYS, "feed": "iex"}, None, ("alpaca", "alpaca", "iex")),
        (KEYS, ("yahoo", "yahoo"), ("yahoo", "yahoo", "yahoo")),
        (KEYS, ("alpaca", "iex"), ("alpaca", "alpaca", "iex")),
        ({}, ("alpaca", "sip"), ("none", "alpaca", "sip")),
        (KEYS, ("prices.example.com:8080", "sip"), ("none", "prices.example.com:8080", "sip")),
        (
            {**KEYS, "alpaca_url": FOREIGN},
            ("prices.example.com:8080", "sip"),
            ("alpaca", "prices.example.com:8080", "sip"),
        ),
        ({}, ("sandbox", "sip"), ("sandbox", "sandbox", "sip")),
        ({"broker": "sandbox", "alpaca_url": FOREIGN}, None, ("sandbox", "sandbox", "sip")),
        ({"broker": "yahoo"}, ("alpaca", "iex"), ("yahoo", "yahoo", "yahoo")),
        ({"broker": "none"}, ("alpaca", "iex"), ("none", "alpaca", "iex")),
        ({"broker": "none"}, None, ("none", "alpaca", "sip")),
    ],
)
def test_the_choice(
    given: dict[str, Any], held: tuple[str, str] | None, expected: tuple[str, str, str]
) -> None:
    source = choose_source(Settings.load(**given), held)
    assert (source.kind, source.provider, source.feed) == expected


def test_a_named_broker_without_its_keys_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="set APCA_API_KEY_ID and APCA_API_SECRET_KEY"):
        check_keys(Settings.load(broker="alpaca"))
    for name in ("auto", "yahoo", "sandbox", "none"):
        check_keys(Settings.load(broker=name))


def test_nobody_refuses_with_the_reason() -> None:
    chosen, lost = Settings.load(broker="none"), Settings.load()
    source = Source(NOBODY, "alpaca", "sip")
    for settings in (chosen, lost):
        broker = make_broker(surroundings(settings, source))
        assert isinstance(broker, OfflineBroker)
        assert broker.health() == {}
        broker.close()
