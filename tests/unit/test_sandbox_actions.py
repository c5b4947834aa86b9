"""The sandbox's corporate actions: what they do to its market, and how it tells of them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from marketdata.brokers.alpaca_actions import parse_actions
from marketdata.calendars import calendar_for
from marketdata.clock import to_micros
from marketdata.corporate_actions import ActionKind
from marketdata.sandbox import Action, FileMarket, GeneratedMarket
from marketdata.sandbox.corporate import TYPES, action_json
from marketdata.sandbox.source import Ledger
from marketdata.spans import Span
from marketdata.types import CLOSE, VOLUME, Bars
from tests.shared_data import SHARED, needs_shared_data

CALENDAR = calendar_for("XNYS", to_micros(datetime(2025, 1, 1, tzinfo=UTC)))
SPAN = Span(CALENDAR.midnight_of(date(2024, 1, 2)), CALENDAR.midnight_of(date(2024, 6, 3)))
DAY = date(2024, 3, 12)
CUT = CALENDAR.midnight_of(DAY)
BEFORE, AFTER = Span(SPAN.start, CUT), Span(CUT, SPAN.end)


def daily(market: GeneratedMarket, symbol: str, span: Span = SPAN) -> Bars:
    return market.days(symbol, span, "sip")


def minutes(market: GeneratedMarket, symbol: str, span: Span) -> Bars:
    return Bars.concat(list(market.minutes(symbol, span, "sip")))


def same(left: Bars, right: Bars) -> bool:
    return bool(
        (left.timestamp == right.timestamp).all()
        and np.array_equal(left.values, right.values, equal_nan=True)
    )


def of_type(kind: str) -> Action:
    return Action(
        "KO", DAY, 2.0 if kind != "reverse_split" else 1.0, 3.0, 1.5, kind=kind,
        other_symbol="NEW", process_date=date(2024, 4, 2),
    )  # fmt: skip


# -------------------------------------------------------------------------------- wire format


@needs_shared_data
@pytest.mark.parametrize("kind", TYPES)
def test_each_type_has_the_fields_of_the_published_description(kind: str) -> None:
    described = json.loads((SHARED / "alpaca" / "market-data-openapi.json").read_text())
    schema = described["components"]["schemas"][kind]
    record = action_json(of_type(kind))
    assert set(schema["required"]) <= set(record)
    assert set(record) <= set(schema["properties"])
    kinds = described["components"]["schemas"]["corporate_actions"]["properties"]
    assert kinds[f"{kind}s"]["items"]["$ref"].endswith(f"/{kind}")


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_can_be_read(kind: str) -> None:
    found, unreadable = parse_actions(
        {f"{kind}s": [action_json(of_type(kind))]}, CALENDAR.midnight_of
    )
    assert unreadable == {}
    assert found[0].symbol == "KO"
    assert found[0].ex_date == CUT
    assert found[0].id == of_type(kind).id
    kinds = [a.kind for a in found]
    assert (ActionKind.NAME_CHANGE in kinds) == (kind in ("name_change", "reverse_split"))


# ------------------------------------------------------------------------- what they do to prices


def test_a_stock_dividend_moves_prices_and_volumes_from_its_day_on() -> None:
    plain = daily(GeneratedMarket(), "MSFT")
    market = GeneratedMarket()
    market.add_action(Action("MSFT", DAY, 0.25, 1.0, kind="stock_dividend"))
    moved = daily(market, "MSFT")
    assert same(moved.within(BEFORE), plain.within(BEFORE))
    ratio = moved.within(AFTER).values / plain.within(AFTER).values
    np.testing.assert_allclose(ratio[CLOSE], 0.8, rtol=1e-3)
    np.testing.assert_allclose(ratio[VOLUME], 1.25, rtol=1e-3)


def test_a_spin_off_takes_its_value_out_of_the_price_and_leaves_the_volume() -> None:
    plain = daily(GeneratedMarket(), "MSFT")
    market = GeneratedMarket()
    market.list_new("NEWCO", DAY, like="S00002")
    market.add_action(Action("MSFT", DAY, 1.0, 4.0, kind="spin_off", other_symbol="NEWCO"))
    moved, spun = daily(market, "MSFT"), daily(market, "NEWCO")
    assert same(moved.within(BEFORE), plain.within(BEFORE))
    assert spun.timestamp[0] == CUT
    leaves = float(spun.values[CLOSE, 0]) / 4
    left = 1 - leaves / float(plain.within(BEFORE).values[CLOSE, -1])
    ratio = moved.within(AFTER).values / plain.within(AFTER).values
    np.testing.assert_allclose(ratio[CLOSE], left, rtol=1e-3)
    np.testing.assert_array_equal(ratio[VOLUME], 1.0)


@pytest.mark.parametrize("kind", ["cash_merger", "stock_merger", "redemption", "worthless_removal"])
def test_what_ends_has_no_bar_from_its_day_on_and_stays_readable(kind: str) -> None:
    market = GeneratedMarket()
    market.add_action(Action("MSFT", DAY, kind=kind, other_symbol="KO", amount=9.0))
    assert same(daily(market, "MSFT"), daily(GeneratedMarket(), "MSFT").within(BEFORE))
    assert not len(minutes(market, "MSFT", Span(CUT, CUT + 86_400_000_000)))
    asset = market.asset("MSFT")
    assert asset is not None
    assert asset.active_on(date(2024, 3, 11))
    assert not asset.active_on(DAY)


# ------------------------------------------------------------------------------------- renames


def test_bars_are_under_the_name_of_their_time() -> None:
    plain = GeneratedMarket()
    market = GeneratedMarket()
    market.rename("KO", "COLA", DAY)
    assert same(daily(market, "KO"), daily(plain, "KO").within(BEFORE))
    assert same(daily(market, "COLA"), daily(plain, "KO").within(AFTER))
    week = Span(CALENDAR.midnight_of(date(2024, 3, 11)), CALENDAR.midnight_of(date(2024, 3, 14)))
    joined = Bars.concat([minutes(market, s, week) for s in ("KO", "COLA")])
    assert same(joined, minutes(plain, "KO", week))
    whole = market.whole("COLA", date(2024, 5, 1))
    assert same(daily(market, whole), daily(plain, "KO"))
    assert market.whole("KO", date(2024, 1, 5)) == whole
    split = market.add_action(Action("COLA", date(2024, 5, 6), 2.0, 1.0))
    assert split in market.actions("COLA")
    assert split not in market.actions("KO")
    assert [a.type for a in market.actions(whole) if a.type != "cash_dividend"].count(
        "forward_split"
    ) == len([a for a in plain.actions("KO") if a.is_split]) + 1
    for name in ("KO", "COLA"):
        assert "name_change" in [a.type for a in market.actions(name)]


def test_an_old_name_may_be_given_to_a_symbol_that_exists() -> None:
    market = GeneratedMarket()
    market.rename("FB", "META", date(2022, 6, 9))
    plain = daily(GeneratedMarket(), "META", Span(0, SPAN.end))
    cut = CALENDAR.midnight_of(date(2022, 6, 9))
    assert same(daily(market, "FB", Span(0, SPAN.end)), plain.within(Span(0, cut)))
    assert same(daily(market, "META", Span(0, SPAN.end)), plain.within(Span(cut, SPAN.end)))
    listed = {a.symbol: a for a in market.assets()}
    assert not listed["FB"].active_on(date(2024, 1, 2))
    assert listed["META"].active_on(date(2024, 1, 2))


def test_a_symbol_may_be_used_again() -> None:
    """As META was: a fund's until January 2022, Facebook's from June on."""
    market = GeneratedMarket()
    market.list_new("META", date(2021, 6, 30), like="S00005")
    market.rename("META", "METV", date(2022, 1, 31))
    market.rename("GOOG", "META", date(2022, 6, 9))
    every = Span(0, SPAN.end)
    fund = daily(market, market.whole("METV", date(2024, 1, 2)), every)
    assert same(
        Bars.concat([daily(market, s, Span(0, CALENDAR.midnight_of(date(2022, 6, 9))))
                     for s in ("META", "METV")]),
        fund.within(Span(0, CALENDAR.midnight_of(date(2022, 6, 9)))),
    )  # fmt: skip
    spring = Span(CALENDAR.midnight_of(date(2022, 2, 1)), CALENDAR.midnight_of(date(2022, 6, 9)))
    assert not len(daily(market, "META", spring)), "nobody's in between"
    assert same(daily(market, "META", SPAN), daily(GeneratedMarket(), "GOOG", SPAN))
    with pytest.raises(ValueError, match="is not listed on"):
        market.rename("GOOG", "XYZ", DAY)


def test_a_reverse_split_may_change_the_name() -> None:
    market = GeneratedMarket()
    market.add_action(Action("MSFT", DAY, 1.0, 10.0, other_symbol="MSFTD"))
    before, after = daily(market, "MSFT"), daily(market, "MSFTD")
    assert before.timestamp[-1] < CUT
    assert after.timestamp[0] == CUT
    assert after.values[CLOSE, 0] > 8 * before.values[CLOSE, -1]


# --------------------------------------------------------------------------- what is told of them


def test_corrections_and_withdrawals_change_what_is_told_and_not_what_happened() -> None:
    market = GeneratedMarket()
    split = market.add_action(Action("MSFT", DAY, 2.0, 1.0))
    bars = daily(market, "MSFT")
    wrong = market.correct_action(split, new=20.0)
    assert wrong.id == split.id
    assert market.correct_action(split.id, ex_date=date(2024, 3, 13)).new == 20.0
    assert wrong.type == "forward_split"
    assert same(daily(market, "MSFT"), bars)
    market.withdraw_action(split.id)
    assert split.id not in [a.id for a in market.actions("MSFT")]
    assert same(daily(market, "MSFT"), bars)
    with pytest.raises(ValueError, match="no action has the id"):
        market.withdraw_action("nothing")


def test_built_in_actions_can_be_corrected_too() -> None:
    market = GeneratedMarket()
    paid = market.actions("KO")[-1]
    market.correct_action(paid.id, amount=0.61)
    assert [a.amount for a in market.actions("KO") if a.id == paid.id] == [0.61]


def test_files_tell_of_added_actions(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    path.write_text(
        "symbol,timestamp,open,high,low,close,volume\nKO,2024-03-11T04:00:00Z,60,61,59,60,1000\n"
    )
    market = FileMarket(path)
    action = market.add_action(Action("KO", DAY, kind="name_change", other_symbol="COLA"))
    assert market.actions("KO") == market.actions("COLA") == [action]
    market.correct_action(action, other_symbol="CO")
    assert [a.other_symbol for a in market.actions("KO")] == ["CO"]
    market.withdraw_action(action.id)
    assert market.actions("KO") == []


def test_ids_differ_and_stay() -> None:
    plain, special = Action("KO", DAY, amount=1.0), Action("KO", DAY, amount=1.0, special=True)
    assert plain.id != special.id
    assert plain.id == Action("KO", DAY, amount=2.0).id
    corrected = Ledger().correct(plain, {"ex_date": date(2024, 3, 13)})
    assert corrected.id == plain.id


def test_a_file_lists_a_symbol_that_was_given_up_until_then_only(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    rows = [
        f"{symbol},2024-03-{day:02}T00:00:00-05:00,1,1,1,1,10"
        for symbol, days in (("OLDER", (4, 5)), ("NEWER", (6, 7)), ("AGAIN", (4, 5, 6, 7)))
        for day in days
    ]
    path.write_text("symbol,timestamp,open,high,low,close,volume\n" + "\n".join(rows))
    market, day = FileMarket(path), date(2024, 3, 6)
    for symbol in ("OLDER", "AGAIN"):
        market.add_action(Action(symbol, day, kind="name_change", other_symbol="NEWER"))
    listed = {asset.symbol: asset.active_on(date(2024, 3, 7)) for asset in market.assets()}
    assert listed == {"OLDER": False, "NEWER": True, "AGAIN": True}
    older = market.asset("OLDER")
    assert older is not None
    assert older.active_on(date(2024, 3, 5))
