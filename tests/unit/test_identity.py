"""Which instrument a ticker means: renames, chains, re-use, swaps, ends, and what contradicts itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from marketdata.clock import to_micros
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.identity import ALWAYS, Lineage, Piece, TickerHistory
from marketdata.spans import Span
from marketdata.types import DAY


def day(text: str) -> int:
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=UTC))


def renamed(old: str, new: str, on: str) -> CorporateAction:
    return CorporateAction(old, ActionKind.NAME_CHANGE, day(on), other_symbol=new)


def ended(symbol: str, on: str, kind: ActionKind = ActionKind.DELISTING) -> CorporateAction:
    return CorporateAction(symbol, kind, day(on), other_symbol="XYZ")


def text(lineage: Lineage) -> str:
    """Return ``FB ..2022-06-09 META 2022-06-09..`` of a lineage."""
    from marketdata.clock import from_micros

    def shown(moment: int) -> str:
        return "" if moment in ALWAYS else str(from_micros(moment).date())

    return " ".join(
        f"{p.symbol} {shown(p.span.start)}..{shown(p.span.end)}" for p in lineage.pieces
    )


META = renamed("FB", "META", "2022-06-09")
NOW = day("2024-03-14")


def test_a_symbol_without_changes_is_an_instrument_of_its_own() -> None:
    lineage = TickerHistory([META]).lineage("AAPL", NOW)
    assert lineage == Lineage((Piece("AAPL", ALWAYS),))
    assert lineage.end is None


@pytest.mark.parametrize("name", ["FB", "META"])
def test_a_rename_resolves_in_both_directions(name: str) -> None:
    history = TickerHistory([META])
    assert text(history.lineage(name, NOW)) == "FB ..2022-06-09 META 2022-06-09.."
    assert history.lineage(name, NOW).symbol_at(NOW) == "META"
    assert history.lineage(name, NOW).symbol_at(day("2020-01-02")) == "FB"


def test_before_the_change_the_new_name_was_somebody_elses() -> None:
    history = TickerHistory([META])
    assert text(history.lineage("META", day("2021-01-04"))) == "META ..2022-06-09"
    assert text(history.lineage("FB", day("2021-01-04"))) == "FB ..2022-06-09 META 2022-06-09.."


def test_an_announced_change_is_still_to_come() -> None:
    lineage = TickerHistory([renamed("A", "B", "2024-06-03")]).lineage("A", NOW)
    assert lineage.symbol_at(NOW) == "A"
    assert [p.symbol for p in lineage.within(Span(ALWAYS.start, NOW))] == ["A"]


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_chains(name: str) -> None:
    history = TickerHistory([renamed("B", "C", "2021-05-03"), renamed("A", "B", "2019-05-01")])
    assert (
        text(history.lineage(name, NOW)) == "A ..2019-05-01 B 2019-05-01..2021-05-03 C 2021-05-03.."
    )


def test_a_ticker_taken_up_by_a_renamed_company() -> None:
    history = TickerHistory([META, renamed("XYZ", "FB", "2023-02-01")])
    assert text(history.lineage("FB", NOW)) == "XYZ ..2023-02-01 FB 2023-02-01.."
    assert text(history.lineage("META", NOW)) == "FB ..2022-06-09 META 2022-06-09.."
    assert text(history.lineage("FB", day("2022-09-01"))) == "FB ..2022-06-09 META 2022-06-09.."


def test_a_ticker_taken_up_by_a_new_listing() -> None:
    history = TickerHistory([META], {"FB": day("2023-08-01"), "META": NOW})
    assert text(history.lineage("FB", NOW)) == "FB 2022-06-09.."
    assert text(history.lineage("META", NOW)) == "FB ..2022-06-09 META 2022-06-09.."
    assert history.is_listed_anew("FB", NOW) is True


def test_a_listing_from_before_the_change_is_the_old_company() -> None:
    history = TickerHistory([META], {"FB": META.ex_date + DAY - 1})
    assert text(history.lineage("FB", NOW)) == "FB ..2022-06-09 META 2022-06-09.."
    assert history.is_listed_anew("FB", NOW) is None
    assert history.is_listed_anew("META", NOW) is False
    assert history.is_listed_anew("AAPL", NOW) is False


def test_two_symbols_swapped_on_one_day() -> None:
    history = TickerHistory([renamed("A", "B", "2022-01-03"), renamed("B", "A", "2022-01-03")])
    assert text(history.lineage("A", NOW)) == "B ..2022-01-03 A 2022-01-03.."
    assert text(history.lineage("B", NOW)) == "A ..2022-01-03 B 2022-01-03.."


@pytest.mark.parametrize("name", ["A", "B"])
def test_there_and_back_again(name: str) -> None:
    history = TickerHistory([renamed("A", "B", "2020-01-02"), renamed("B", "A", "2022-01-03")])
    found = "A ..2020-01-02 B 2020-01-02..2022-01-03 A 2022-01-03.."
    assert text(history.lineage(name, NOW)) == found


def test_a_ring_of_three_on_one_day_is_taken_at_once() -> None:
    on = "2022-01-03"
    history = TickerHistory([renamed("A", "B", on), renamed("B", "C", on), renamed("C", "A", on)])
    assert text(history.lineage("A", NOW)) == "C ..2022-01-03 A 2022-01-03.."
    assert text(history.lineage("B", NOW)) == "A ..2022-01-03 B 2022-01-03.."
    assert text(history.lineage("C", NOW)) == "B ..2022-01-03 C 2022-01-03.."


def test_renamed_to_two_joins_nothing() -> None:
    history = TickerHistory([renamed("A", "B", "2022-01-03"), renamed("A", "C", "2022-01-03")])
    assert text(history.lineage("A", NOW)) == "A ..2022-01-03"
    assert text(history.lineage("B", NOW)) == "B 2022-01-03.."
    assert text(history.lineage("C", NOW)) == "C 2022-01-03.."


def test_two_renamed_to_one_joins_nothing() -> None:
    history = TickerHistory([renamed("A", "C", "2022-01-03"), renamed("B", "C", "2022-01-03")])
    assert text(history.lineage("A", NOW)) == "A ..2022-01-03"
    assert text(history.lineage("B", NOW)) == "B ..2022-01-03"
    assert text(history.lineage("C", NOW)) == "C 2022-01-03.."


@pytest.mark.parametrize("again", ["2022-06-09", "2022-06-10", "2022-07-05"])
def test_one_change_reported_twice_is_one(again: str) -> None:
    history = TickerHistory([META, renamed("FB", "META", again)])
    assert text(history.lineage("FB", NOW)) == "FB ..2022-06-09 META 2022-06-09.."


def test_a_merger_that_is_a_delisting_too_is_one_end() -> None:
    history = TickerHistory([ended("X", "2022-01-03", ActionKind.MERGER), ended("X", "2022-01-06")])
    lineage = history.lineage("X", NOW)
    assert text(lineage) == "X ..2022-01-06"
    assert lineage.end == day("2022-01-06")


def test_a_rename_counts_before_an_end_beside_it() -> None:
    history = TickerHistory([ended("X", "2022-01-03"), renamed("X", "Y", "2022-01-05")])
    assert text(history.lineage("X", NOW)) == "X ..2022-01-05 Y 2022-01-05.."


def test_an_end_and_a_new_start() -> None:
    history = TickerHistory([ended("X", "2020-01-03"), renamed("Z", "X", "2022-01-03")])
    assert history.lineage("X", day("2021-01-04")).ended is ActionKind.DELISTING
    assert text(history.lineage("X", NOW)) == "Z ..2022-01-03 X 2022-01-03.."


def test_a_holder_displaced_without_an_end_of_its_own_has_ended() -> None:
    lineage = TickerHistory([META]).lineage("META", day("2021-01-04"))
    assert lineage.end == META.ex_date


def test_renamed_to_itself_is_nothing() -> None:
    assert TickerHistory([renamed("A", "A", "2022-01-03")]).symbols == frozenset()


def test_instruments_are_listed_once() -> None:
    history = TickerHistory([META, renamed("XYZ", "FB", "2023-02-01"), ended("OLD", "2020-01-02")])
    assert [text(each) for each in history.instruments()] == [
        "FB ..2022-06-09 META 2022-06-09..",
        "OLD ..2020-01-02",
        "XYZ ..2023-02-01 FB 2023-02-01..",
    ]
