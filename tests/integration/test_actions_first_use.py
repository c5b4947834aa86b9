"""Corporate actions for people: slips of the pen, users without rights, and no broker at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import marketdata as md
from marketdata.types import Adjustment
from tests.command_line import CommandLine, InProcess
from tests.stack import Stack, same

YEARS: dict[str, Any] = {"start": "2020-06-01", "end": "2020-10-01"}
"""Across a 4:1 split of AAPL."""
TWO_DAYS_LATER = "2024-03-16T12:00:00-04:00"


@pytest.mark.parametrize("adjustment", ["split", "all"])
def test_a_user_who_may_only_read_has_adjusted_prices_of_what_is_stored(
    stack: Stack, adjustment: Adjustment
) -> None:
    """The last check is too old, and asking again needs rights: what is known is applied."""
    written = stack.client.get_bars("AAPL", adjustment=adjustment, **YEARS)
    values = stack.client.get_indicators("AAPL", ["sma_10"], **YEARS)
    stack.set_time(TWO_DAYS_LATER)
    url = stack.settings["database_url"]
    joint = "&" if "?" in url else "?"
    reader = f"{url}{joint}options=-c%20role%3Dmarketdata_reader"
    stack.flush_redis()
    with stack.connect(database_url=reader) as client:
        same(client.get_bars("AAPL", adjustment=adjustment, **YEARS), written)
        pd.testing.assert_frame_equal(
            client.get_indicators("AAPL", ["sma_10"], **YEARS), values, check_freq=False
        )
        assert "split" in set(client.get_actions("AAPL")["kind"])
        with pytest.raises(md.StoreReadOnlyError, match="marketdata_writer"):
            client.get_actions("MSFT")


def test_without_a_broker_it_is_said_how_actions_come_to_be_stored(stack: Stack) -> None:
    settings = {"alpaca_key_id": "id", "alpaca_secret_key": "secret"}
    with stack.connect(broker="alpaca", **settings) as client:
        client.get_bars("KO", **YEARS)
        client.get_bars("MSFT", **YEARS)
        client.get_actions("KO")
    with stack.connect(broker="none") as client:
        assert len(client.get_actions("KO"))
        with pytest.raises(md.DataUnavailableError, match="marketdata actions PEP --broker"):
            client.get_actions("PEP")


def test_symbols_that_do_not_exist_are_named_and_cost_the_others_nothing(stack: Stack) -> None:
    with pytest.raises(md.UnknownSymbolError, match=r"NVDXX \(did you mean NVDA") as raised:
        stack.client.get_actions(["KO", "NVDXX", "NOSUCHONE"])
    assert raised.value.facts["symbols"] == ["NOSUCHONE", "NVDXX"]
    stack.forget_calls()
    assert len(stack.client.get_actions("KO"))
    assert stack.calls("/v1/corporate-actions") == 0


def test_a_company_to_which_nothing_ever_happened_is_no_unknown_one(stack: Stack) -> None:
    assert len(stack.client.get_actions("AMD")) == 0


@pytest.fixture
def marketdata(
    make_stack: Callable[..., Stack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    stack = make_stack()
    names = ("database_url", "redis_url", "alpaca_url", "alpaca_trading_url", "broker")
    line = CommandLine(
        tmp_path, clock=repr(stack.clock), **{name: stack.settings[name] for name in names}
    )
    return InProcess(line, monkeypatch, capsys)


def test_dividends_are_printed_with_what_they_are_paid_for(marketdata: InProcess) -> None:
    told = marketdata("actions", "AAPL", "--start", "2023-12-01", "--end", "2024-01-01")
    assert told.code == 0
    assert "0.08 a share" in told.out
    unknown = marketdata("actions", "AAPLL")
    assert unknown.code == 3
    assert "did you mean AAPL" in unknown.err


def test_no_revisions_of_what_is_not_stored_are_no_good_news(marketdata: InProcess) -> None:
    told = marketdata("revisions", "AAPL")
    assert "nothing is stored of AAPL" in told.err
    assert marketdata("bars", "AAPL", "-n", "5").code == 0
    assert "nothing is stored" not in marketdata("revisions", "AAPL").err


def test_verify_refuses_what_it_would_not_do(marketdata: InProcess) -> None:
    for wrong in (
        ("--tolerance", "0.1"),
        ("--against", "yahoo", "--correct"),
        ("--against", "yahoo", "--all"),
        ("--against", "sandbox"),
    ):
        told = marketdata("verify", "AAPL", *wrong)
        assert told.code == 2, told
        assert "--against" in told.err
