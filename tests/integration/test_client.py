"""The client around a read: nothing starts before the arguments are right, time is injected, a
fork is survived, and what is said is said to the caller."""

from __future__ import annotations

import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import marketdata as md
from marketdata.client import Client
from marketdata.clock import FixedClock
from marketdata.config import Settings
from tests.stack import Stack, runtime

LATEST = "2024-03-14T15:00:30-04:00"


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[Client]:
    """A client whose servers would have to be started."""
    settings = Settings.load(home=tmp_path / "home", broker="sandbox", progress="off")
    clock = FixedClock(datetime.fromisoformat(LATEST))
    with Client(settings, clock=clock) as client:
        yield client
    assert client._lazy.running is None
    assert not (tmp_path / "home").exists(), "an embedded server was started"


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("get_bars", {"limit": 0}),
    ("get_bars", {"missing": "skp"}),
    ("get_bars", {"field": "clse"}),
    ("get_bars", {"start": "2024-13-01"}),
    ("get_bars", {"start": "2024-03-20"}),
    ("get_bars", {"start": "2024-03-05", "end": "2024-03-01"}),
    ("get_bars", {"period": "soon"}),
    ("get_bars", {"timeframe": "1M"}),
    ("get_bars", {"session": "premarket"}),
    ("get_bars", {"adjustment": "splits"}),
    ("get_bars", {"as_of": "2099-01-01"}),
    ("get_bars", {"as_of": "2024-01-01", "include_forming": True}),
    ("revisions", {"timeframe": "1M"}),
    ("get_bars", {"feed": 1}),
    ("get_bars", {"tz": "Mars/Olympus"}),
    ("get_bars", {"tz": ""}),
    ("get_bars", {"timeframe": "1min", "tz": None}),
    ("get_bars", {"timeout": 0}),
    ("get_bars", {"symbols": "AAPL MSFT"}),
    ("explain", {"limit": 0}),
    ("explain", {"start": "2024-13-01"}),
    ("gaps", {"start": "2024-13-01"}),
    ("gaps", {"timeframe": "1M"}),
    ("coverage", {"timeframe": "1M"}),
    ("coverage", {"symbols": []}),
    ("get_latest_bar", {"timeout": 0}),
    ("get_latest_quote", {"symbols": "^GSPC"}),
    ("get_latest_trade", {"feed": 1}),
    ("get_snapshots", {"symbols": []}),
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_a_wrong_argument_starts_no_server(
    unstarted: Client, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(md.RequestError) as caught:
        getattr(unstarted, name)(**{"symbols": "AAPL", **options})
    assert caught.value.cure


def test_counting_starts_no_server(unstarted: Client, stack: Stack) -> None:
    before = unstarted.stats()
    assert set(before.values()) == {0}
    stack.client.get_bars("AAPL", "1day", limit=3)
    after = stack.client.stats()
    assert before.keys() <= after.keys()
    assert (after["reads"], after["series_from_broker"], after["broker_pages"]) == (1, 1, 1)
    assert after["broker_requests"] >= 1
    assert (after["redis_misses"], after["redis_errors"]) == (1, 0)


def test_stats_documents_what_it_counts(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1day", limit=3)
    documented = inspect.getdoc(Client.stats) or ""
    for name in stack.client.stats():
        assert f"``{name}``" in documented, name


def test_time_is_the_clocks(stack: Stack) -> None:
    frame = stack.client.get_bars("AAPL", "1min", limit=1)
    stack.clock.advance(minutes=10)
    later = stack.client.get_bars("AAPL", "1min", limit=1)
    assert later.index[0] - frame.index[0] == pd.Timedelta(minutes=10)
    (newest,) = [stack.client.get_latest_trade("AAPL")]
    assert newest.age is not None
    assert abs(newest.age.total_seconds()) < 120


def test_a_child_of_a_busy_client_is_not_blocked(stack: Stack) -> None:
    """A fork while another thread makes the stack leaves its lock held in the child for ever."""
    client = stack.client
    client.get_bars("AAPL", "1day", limit=1)
    lock = client._lazy._lock
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(client.get_bars("AAPL", "1day", limit=1)) == 1 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    over.set()
    holder.join(30)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(client.get_bars("AAPL", "1day", limit=1)) == 1, "the parent's connections live"


def test_provenance_prints_and_returns_nothing(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    show: Any = stack.client.provenance
    assert show(stack.client.get_bars("AAPL", "1day", limit=1)) is None
    assert "fingerprint" in capsys.readouterr().out
    for foreign in (pd.DataFrame({"close": [1.0]}), None):
        show(foreign)
        assert capsys.readouterr().out == "no provenance: not a frame of marketdata\n"


def test_the_zone_follows_the_setting_unless_given(stack: Stack) -> None:
    default = inspect.signature(Client.get_bars).parameters["tz"].default
    assert repr(default) == "<MARKETDATA_TZ>"
    with stack.connect(tz="exchange") as client:
        settings: Any = client.get_bars("AAPL", "1day", limit=1).index
        given: Any = client.get_bars("AAPL", "1day", limit=1, tz="UTC").index
    assert (str(settings.tz), str(given.tz)) == ("America/New_York", "UTC")


def test_delay_is_said_once_and_at_the_callers_line(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(market={"entitled_sip": False})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stack.client.get_bars("AAPL", "1min", limit=5)
        stack.client.get_bars("MSFT", "1min", limit=5)
    (warning,) = said
    assert warning.category is md.DelayedDataWarning
    assert warning.filename == __file__
    assert "16 minutes" in str(warning.message)


def test_many_unknown_symbols_cost_one_list(stack: Stack) -> None:
    wrong = [f"ZZ{a}{b}" for a in "ABCDE" for b in "ABCDEFG"]
    with pytest.raises(md.UnknownSymbolError) as caught:
        stack.client.get_bars(["AAPL", *wrong], "1day", limit=1)
    named: Any = caught.value.facts["symbols"]
    assert sorted(named) == sorted(wrong)
    paths = [r.path for r in stack.sandbox.requests.matching("/v2/assets")]
    asked_again = runtime(stack.client).verdicts.SAMPLED  # a list may lack what exists
    assert paths == ["/v2/assets", *(f"/v2/assets/{s}" for s in sorted(wrong)[:asked_again])]
    assert runtime(stack.client).verdicts.remembered_unknown(wrong) == wrong


def test_few_unknown_symbols_are_asked_singly(stack: Stack) -> None:
    with pytest.warns(md.MissingSymbolsWarning):
        stack.client.get_bars(["AAPL", "NOSUCHA"], "1day", limit=1, missing="skip")
    paths = [r.path for r in stack.sandbox.requests.matching("/v2/assets")]
    assert paths == ["/v2/assets/NOSUCHA"]
