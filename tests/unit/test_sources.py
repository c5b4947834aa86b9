"""Which broker: the table is complete, the choice follows settings and database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marketdata.brokers.offline import OfflineBroker
from marketdata.calendars import calendar_for
from marketdata.clock import parse_clock
from marketdata.config import ALONE, BROKERS, VARIABLES, Settings
from marketdata.errors import ConfigurationError
from marketdata.sources import (
    KINDS,
    NOBODY,
    Source,
    Surroundings,
    check_keys,
    choose_sources,
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
    assert set(BROKERS) == set(KINDS)
    assert {"auto", NOBODY} == ALONE
    for name in (*KINDS, *ALONE):
        assert Settings.load(broker=name).brokers == (name,)


def test_every_row_names_settings_that_exist() -> None:
    for kind in KINDS.values():
        named = {*kind.key_fields, kind.url_field} - {None}
        assert named <= set(VARIABLES)


@pytest.mark.parametrize("name", KINDS)
def test_every_row_makes_a_broker_of_its_provider_and_feed(name: str) -> None:
    settings = Settings.load(broker=name, **KEYS)
    source = choose_sources(settings, None)[0]
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
    source = choose_sources(Settings.load(**given), held)[0]
    assert (source.kind, source.provider, source.feed) == expected


@pytest.mark.parametrize(
    ("given", "held", "expected"),
    [
        (
            {**KEYS, "broker": "alpaca,yahoo"},
            None,
            [("alpaca", "alpaca", "sip"), ("yahoo", "yahoo", "yahoo")],
        ),
        (
            {**KEYS, "broker": ["yahoo", "alpaca"]},
            None,
            [("yahoo", "yahoo", "yahoo"), ("alpaca", "alpaca", "sip")],
        ),
        (
            {**KEYS, "broker": " Alpaca , YAHOO", "feed": "iex"},
            ("yahoo", "yahoo"),
            [("alpaca", "alpaca", "iex"), ("yahoo", "yahoo", "yahoo")],
        ),
        (  # one server that speaks as both
            {**KEYS, "broker": "alpaca,yahoo", "alpaca_url": FOREIGN, "yahoo_url": FOREIGN},
            ("prices.example.com:8080", "sip"),
            [
                ("alpaca", "prices.example.com:8080", "sip"),
                ("yahoo", "prices.example.com:8080", "yahoo"),
            ],
        ),
        (
            {**KEYS, "broker": "alpaca", "alpaca_url": FOREIGN},
            ("prices.example.com:8080", "yahoo"),
            [("alpaca", "prices.example.com:8080", "sip")],
        ),
    ],
)
def test_the_choice_of_several(
    given: dict[str, Any], held: tuple[str, str] | None, expected: list[tuple[str, str, str]]
) -> None:
    found = choose_sources(Settings.load(**given), held)
    assert [(source.kind, source.provider, source.feed) for source in found] == expected


def test_several_without_keys_name_the_one_that_lacks_them() -> None:
    with pytest.raises(ConfigurationError, match="the broker alpaca needs keys"):
        check_keys(Settings.load(broker="yahoo,alpaca"))


def test_simulated_prices_are_never_completed_with_real_ones() -> None:
    for broker in ("sandbox,yahoo", "yahoo,sandbox"):
        with pytest.raises(ConfigurationError, match="never completed with real ones"):
            choose_sources(Settings.load(broker=broker), None)
    choose_sources(Settings.load(broker="sandbox,yahoo", yahoo_url=FOREIGN), None)


def test_two_brokers_under_one_key_are_refused() -> None:
    settings = Settings.load(
        **KEYS, broker="alpaca,yahoo", alpaca_url=FOREIGN, yahoo_url=FOREIGN, feed="yahoo"
    )
    with pytest.raises(ConfigurationError, match="two brokers of the chain"):
        choose_sources(settings, None)


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
