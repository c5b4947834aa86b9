"""Corporate actions end to end: asked for, late, corrected, withdrawn, refreshed, printed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.action_refresh import ActionsReport, refresh_actions
from marketdata.clock import Deadline
from marketdata.corporate_actions import ActionKind
from marketdata.sandbox import Action, Fault, GeneratedMarket
from marketdata.store import PostgresStore
from marketdata.store.migrations import Migrator, load_migrations
from marketdata.types import DAY, Timeframe
from tests.command_line import CommandLine, InProcess
from tests.stack import Stack, runtime

ACTIONS = "/v1/corporate-actions"
PAID = Action("AMD", date(2024, 2, 14), amount=3.5, special=True, process_date=date(2024, 4, 1))
EVENTFUL = [
    Action("AMD", date(2024, 2, 7), 2.0, 1.0),
    Action("AMD", date(2024, 2, 21), 0.05, 1.0, kind="stock_dividend"),
    PAID,
    Action("AMD", date(2024, 2, 28), 1.0, 4.0, kind="spin_off", other_symbol="NEWCO", amount=2.5),
    Action("AMD", date(2024, 3, 6), kind="rights_distribution", other_symbol="AMD.RT"),
]


@pytest.fixture
def market() -> GeneratedMarket:
    return GeneratedMarket(seed=3)


@pytest.fixture
def eventful(make_stack: Callable[..., Stack], market: GeneratedMarket) -> Stack:
    for action in EVENTFUL:
        market.add_action(action)
    return make_stack(source=market)


def refreshed(stack: Stack) -> ActionsReport:
    return refresh_actions(runtime(stack.client), threading.Event())


def told(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    columns = ["kind", "ex_date", "new", "old", "cash", "other_symbol"]
    plain = frame[columns].astype(object).where(frame[columns].notna(), None)
    return [(k, str(d.date()), *rest) for k, d, *rest in plain.itertuples(index=False)]


# --------------------------------------------------------------------------------- get_actions


def test_every_kind_is_one_row(eventful: Stack) -> None:
    frame = eventful.client.get_actions("AMD", start="2024-02-01", end="2024-03-14")
    assert told(frame) == [
        ("split", "2024-02-07", 2.0, 1.0, None, None),
        ("cash_dividend", "2024-02-14", None, None, 3.5, None),
        ("stock_dividend", "2024-02-21", 0.05, 1.0, None, None),
        ("spin_off", "2024-02-28", 1.0, 4.0, None, "NEWCO"),
        ("other", "2024-03-06", None, None, None, "AMD.RT"),
    ]
    special = frame.iloc[1]
    assert special["special"]
    assert special["process_date"] == pd.Timestamp("2024-04-01"), "paid long after the ex-date"
    assert special["id"] == PAID.id
    assert special["fetched_at"] == pd.Timestamp("2024-03-14T19:00:30Z")
    assert frame.dtypes["ex_date"] == "datetime64[us]"
    assert str(frame.dtypes["announced_at"]) == "datetime64[us, UTC]"
    assert frame.attrs["marketdata"]["simulated"] is True


def test_kinds_and_dates_choose_and_an_empty_answer_has_the_same_columns(eventful: Stack) -> None:
    get = eventful.client.get_actions
    whole = get("KO")
    assert len(whole) > 100, "thirty years of quarterly dividends"
    assert eventful.calls(ACTIONS) == 1
    splits = get(["AMD", "MSFT"], kinds=["split", "stock_dividend"], start="2024-01-01")
    assert list(splits["kind"]) == ["split", "stock_dividend"]
    nothing = get("AMD", kinds="merger")
    assert len(nothing) == 0
    assert (nothing.dtypes == whole.dtypes).all()
    assert list(get("AMD", start="2024-02-07", end="2024-02-14")["kind"]) == ["split"]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"kinds": "splits"}, md.RequestError),
        ({"start": "2024-02-01", "end": "2024-02-01"}, md.InvalidRangeError),
        ({"timeout": 0}, md.RequestError),
        ({"as_of": "2030-01-01"}, md.RequestError),
    ],
)
def test_what_cannot_be_right_is_refused_before_anybody_is_asked(
    stack: Stack, asked: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        stack.client.get_actions("AMD", **asked)
    assert len(stack.sandbox.requests) == 0


def test_a_broker_that_is_down_is_an_error_and_never_no_actions(eventful: Stack) -> None:
    eventful.sandbox.faults.add(Fault("status", match=ACTIONS, status=500, times=None))
    with pytest.raises(md.BrokerUnavailableError):
        eventful.client.get_actions("AMD", timeout=4)
    eventful.sandbox.faults.clear()
    assert len(eventful.client.get_actions("AMD", start="2024-02-01", end="2024-03-14")) == 5
    eventful.sandbox.faults.add(Fault("status", match=ACTIONS, status=500, times=None))
    eventful.set_time("2024-03-15T15:00:00-04:00")
    held = eventful.client.get_actions("AMD", start="2024-02-01", end="2024-03-14", timeout=4)
    assert len(held) == 5, "what was asked yesterday is still known"


def test_a_rename_is_one_row_whichever_name_is_asked_for(
    make_stack: Callable[..., Stack], market: GeneratedMarket
) -> None:
    market.rename("FB", "META", date(2022, 6, 9))
    stack = make_stack(source=market)
    for names in ("META", ["FB"], ["FB", "META"]):
        frame = stack.client.get_actions(names, kinds="name_change")
        assert told(frame) == [("name_change", "2022-06-09", None, None, None, "META")]
        assert list(frame["symbol"]) == ["FB"]


def test_the_first_answer_about_a_new_name_brings_what_happened_under_the_old_one(
    make_stack: Callable[..., Stack], market: GeneratedMarket
) -> None:
    market.add_action(Action("KO", date(2021, 5, 5), 4.0, 1.0))
    market.rename("KO", "COLA", date(2022, 6, 9))
    stack = make_stack(source=market)
    running = runtime(stack.client)
    start = int(pd.Timestamp("2020-01-01", tz="UTC").value // 1000)
    found = running.actions.checked(running.provider, ["COLA"], start, Deadline(20))["COLA"]
    kinds = [a.kind for a in found]
    assert ActionKind.SPLIT in kinds
    assert ActionKind.NAME_CHANGE in kinds
    assert {a.symbol for a in found if a.kind is ActionKind.CASH_DIVIDEND} == {"KO", "COLA"}


# ------------------------------------------------------------------- late, corrected, withdrawn


def test_what_is_known_follows_corrections_and_as_of_what_was_known(
    eventful: Stack, market: GeneratedMarket
) -> None:
    def cash(**asked: Any) -> list[float]:
        window = {"start": "2024-02-01", "end": "2024-03-01", "kinds": "cash_dividend"}
        return list(eventful.client.get_actions("AMD", **{**window, **asked})["cash"])

    market.correct_action(PAID, amount=0.35)
    assert cash() == [0.35]
    market.correct_action(PAID, amount=3.5)
    eventful.set_time("2024-03-15T05:00:00-04:00")
    report = refreshed(eventful)
    assert [(c.symbol, c.kind, c.change) for c in report.changes] == [
        ("AMD", ActionKind.CASH_DIVIDEND, "corrected")
    ]
    assert cash() == [3.5]
    assert cash(as_of="2024-03-14T20:00:00Z") == [0.35], "as the broker had it then"
    assert cash(as_of="2024-02-14T12:00:00Z") == [0.35], "its first statement was always known"
    assert cash(as_of="2024-02-13T12:00:00Z") == [], "prices showed it on the day after"
    market.withdraw_action(PAID)
    eventful.set_time("2024-03-15T18:30:00-04:00")
    assert refreshed(eventful).summary()["withdrawn"] == 1
    assert cash() == []
    assert cash(as_of="2024-03-15T12:00:00Z") == [3.5]


def test_an_action_listed_late_is_found_by_its_ex_date(
    make_stack: Callable[..., Stack], market: GeneratedMarket
) -> None:
    """Processed months after its ex-date, and not listed before a moment of the market's."""
    listed_at = int(datetime(2024, 3, 15, 12, tzinfo=UTC).timestamp()) * 1_000_000
    market.add_action(
        Action("AMD", date(2023, 12, 20), amount=1.0, special=True,
               process_date=date(2024, 6, 3), listed_at=listed_at)
    )  # fmt: skip
    stack = make_stack(source=market)
    window = {"start": "2023-12-15", "end": "2023-12-25"}
    assert len(stack.client.get_actions("AMD", **window)) == 0  # type: ignore[arg-type]
    stack.set_time("2024-03-15T06:15:00-04:00")
    assert refreshed(stack).changes == []
    stack.set_time("2024-03-15T18:15:00-04:00")
    assert [c.change for c in refreshed(stack).changes] == ["new"]
    assert list(stack.client.get_actions("AMD", **window)["cash"]) == [1.0]  # type: ignore[arg-type]


def test_one_unreadable_action_costs_its_symbol_and_no_other(
    eventful: Stack, market: GeneratedMarket
) -> None:
    bad = market.add_action(Action("MSFT", date(2024, 2, 20), -1.0, 1.0, kind="forward_split"),
                            happens=False)  # fmt: skip
    eventful.client.subscribe(["AMD", "MSFT", "AAPL"], owner="me")
    report = refreshed(eventful)
    assert report.summary()["failed"] == 1
    (failed,) = report.failed
    assert failed.symbols == ("MSFT",)
    assert "new_rate is -1" in failed.error.message
    assert len(eventful.client.get_actions("AMD", start="2024-02-01", end="2024-03-14")) == 5
    with pytest.raises(md.BrokerResponseError, match="MSFT"):
        eventful.client.get_actions("MSFT", start="2024-01-02")
    market.withdraw_action(bad)
    assert refreshed(eventful).failed == []


# ------------------------------------------------------------------------------------- the job


def test_each_run_asks_the_recent_months_in_one_call_and_the_whole_once_a_week(
    make_stack: Callable[..., Stack], market: GeneratedMarket
) -> None:
    stack = make_stack(source=market)
    stack.client.get_actions("AAPL")
    runtime(stack.client).subscriptions.pin("me", ["KO", "MSFT"], Timeframe.DAY_1)
    early = market.add_action(
        Action("AAPL", date(2019, 2, 4), amount=9.0, special=True), happens=False
    )
    late = market.add_action(Action("AAPL", date(2024, 3, 4), amount=8.0, special=True))
    stack.forget_calls()
    stack.set_time("2024-03-15T06:15:00-04:00")
    first = refreshed(stack)
    assert first.summary() == {
        "symbols": 3, "whole_history": 0, "calls": 2, "failed": 0,
        "new": len(first.changes), "corrected": 0, "withdrawn": 0,
    }  # fmt: skip
    assert stack.calls(ACTIONS) == 1, "the other call asks who is listed"
    assert ("AAPL", late.ex_date.day) in [
        (c.symbol, datetime.fromtimestamp(c.ex_date / 1e6, UTC).day) for c in first.changes
    ]
    assert refreshed(stack).changes == [], "running it twice changes nothing"
    stack.forget_calls()
    assert 9.0 not in list(stack.client.get_actions("AAPL")["cash"])
    assert stack.calls(ACTIONS) == 0, "a run counts as asking lately"
    stack.set_time("2024-03-21T18:15:00-04:00")
    weekly = refreshed(stack)
    assert weekly.summary()["whole_history"] == 1, "the others are not a week old"
    assert [(c.symbol, c.change) for c in weekly.changes] == [("AAPL", "new")]
    assert early.amount in list(stack.client.get_actions("AAPL")["cash"])


def test_a_run_without_anybody_to_ask_about_asks_nobody(stack: Stack) -> None:
    assert refreshed(stack).summary()["symbols"] == 0
    assert stack.calls(ACTIONS) == 0


def test_a_run_that_reaches_nobody_fails_with_the_brokers_error(eventful: Stack) -> None:
    eventful.client.subscribe("AMD", owner="me")
    eventful.sandbox.faults.add(Fault("status", match=ACTIONS, status=403, times=None))
    with pytest.raises(md.AuthenticationError):
        refreshed(eventful)


def test_new_actions_take_effect_in_other_processes_at_once(eventful: Stack) -> None:
    """Redis forgets the indicators of a symbol before its new actions are recorded."""
    get = eventful.client.get_indicators
    get("MSFT", limit=5)
    assert get("MSFT", limit=5).attrs["marketdata"]["tiers"] == "redis:1"
    assert refreshed(eventful).changes == []
    again = get("MSFT", limit=5).attrs["marketdata"]["tiers"]
    assert again == "redis:1", "an answer that says nothing new disturbs nothing"
    market = eventful.sandbox.source
    assert isinstance(market, GeneratedMarket)
    market.add_action(Action("MSFT", date(2024, 3, 8), 3.0, 1.0), happens=False)
    eventful.set_time("2024-03-14T15:00:31-04:00")
    before = get("MSFT", limit=5)["sma_200"].iloc[-1]
    other = eventful.connect()
    try:
        refresh_actions(runtime(other), threading.Event())
    finally:
        other.close()
    after = get("MSFT", limit=5)
    assert after.attrs["marketdata"]["tiers"] != "redis:1"
    assert after["sma_200"].iloc[-1] < before / 2


# ------------------------------------------------------------------------------- command line


@pytest.fixture
def marketdata(
    eventful: Stack,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    settings = {name: str(value) for name, value in eventful.settings.items()}
    line = CommandLine(tmp_path, **settings, clock=repr(eventful.clock))
    return InProcess(line, monkeypatch, capsys)


def test_the_command_prints_a_table_json_or_csv(marketdata: InProcess, tmp_path: Any) -> None:
    command = ("actions", "AMD", "--start", "2024-02-01", "--end", "2024-03-14")
    shown = marketdata(*command, COLUMNS="80")
    assert shown.code == 0
    assert "SIMULATED" in shown.out
    assert "-> NEWCO" in shown.out
    done = marketdata(*command, "--kind", "split", "--kind", "cash_dividend", "--json")
    assert done.objects[0] == {
        "symbol": "AMD", "kind": "split", "ex_date": "2024-02-07", "new": 2.0, "old": 1.0,
        "cash": None, "other_symbol": None, "process_date": "2024-02-07", "announced_at": None,
        "fetched_at": "2024-03-14T19:00:30+00:00", "id": done.objects[0]["id"], "special": False,
        "doubt": "",
    }  # fmt: skip
    assert done.summary["rows"] == 2
    table = marketdata(*command, "--csv", "-").out.splitlines()
    assert table[0].startswith("symbol,kind,ex_date,new,old,cash")
    assert len(table) == 6
    assert marketdata(*command, "--csv", str(tmp_path / "a.csv")).code == 0
    assert (tmp_path / "a.csv").read_text().splitlines() == table
    assert marketdata(*command, "--csv", "-", "--json").code == 2
    assert marketdata("actions", "AMD", "--kind", "nonsense").code == 2


def test_the_job_is_a_command(marketdata: InProcess, eventful: Stack) -> None:
    eventful.client.subscribe(["AMD"], owner="me")
    done = marketdata("run", "actions", "--json")
    assert done.code == 0, done.err
    assert done.summary["summary"]["symbols"] == 1
    assert done.summary["summary"]["new"] >= 5
    assert marketdata("run", "actions", "--json").summary["summary"]["new"] == 0


# ---------------------------------------------------------------------------------- migration


def test_splits_that_an_older_release_stored_stay_and_its_checks_do_not_count(
    database_url: str,
) -> None:
    with PostgresStore(database_url) as store:
        Migrator(store.database, load_migrations()[:10]).migrate()
        with psycopg.connect(database_url, autocommit=True) as plain:
            plain.execute("SET search_path = marketdata; SET TimeZone = 'UTC'")
            plain.execute(
                """INSERT INTO corporate_actions (provider, symbol, type, ex_date, new_rate,
                       old_rate, fetched_at, withdrawn_at, corrections)
                   VALUES ('alpaca', 'AAPL', 'split', '2020-08-31T04:00Z', 4, 1,
                           '2024-01-03T12:00Z', NULL,
                           '[{"new_rate": 40, "old_rate": 1, "withdrawn_at": null,
                              "fetched_at": "2024-01-02T12:00:00+00:00"}]'),
                          ('alpaca', 'KO', 'split', '2012-08-13T04:00Z', 2, 1,
                           '2024-01-03T12:00Z', '2024-01-03T12:00Z', '[]')"""
            )
            plain.execute(
                """INSERT INTO action_checks VALUES
                   ('alpaca', 'AAPL', 'split', '[2010-01-01,2024-02-01)', '2024-01-03T12:00Z')"""
            )
        store.migrate()
        (split,) = store.actions("alpaca", ["AAPL", "KO"])["AAPL"]
        assert (split.kind, split.new, split.id) == (ActionKind.SPLIT, 4.0, "")
        assert store.actions("alpaca", ["KO"]) == {"KO": []}
        assert store.checked("alpaca", ["AAPL"]) == {}
        noon = int(datetime(2024, 1, 2, 12, tzinfo=UTC).timestamp()) * 1_000_000
        (then,) = store.history("alpaca", ["AAPL"], noon)["AAPL"]
        assert then.new == 40.0
        (later,) = store.history("alpaca", ["AAPL"], noon + 2 * DAY)["AAPL"]
        assert later == split
