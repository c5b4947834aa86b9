"""Whatever providers say, an instant of a symbol belongs to one instrument at most."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.identity import ALWAYS, SAME_EVENT, TickerHistory
from marketdata.spans import Span
from marketdata.types import DAY

SYMBOLS = ("A", "B", "C", "D")

changes = st.lists(
    st.builds(
        CorporateAction,
        symbol=st.sampled_from(SYMBOLS),
        kind=st.sampled_from(
            [
                ActionKind.NAME_CHANGE,
                ActionKind.NAME_CHANGE,
                ActionKind.MERGER,
                ActionKind.DELISTING,
            ]
        ),
        # A few days near each other, and others far apart.
        ex_date=st.sampled_from([n * DAY for n in (100, 101, 110, 200, 260, 300, 400, 500)]),
        other_symbol=st.sampled_from([*SYMBOLS, None]),
    ),
    max_size=12,
)
listings = st.dictionaries(
    st.sampled_from(SYMBOLS), st.sampled_from([n * DAY for n in (50, 150, 450, 600)])
)
moments = st.integers(90, 620).map(lambda n: n * DAY)


@given(changes, listings, moments)
def test_pieces_ascend_without_overlap_and_follow_each_other(
    told: list[CorporateAction], listed: dict[str, int], moment: int
) -> None:
    history = TickerHistory(told, listed)
    for symbol in SYMBOLS:
        lineage = history.lineage(symbol, moment)
        assert lineage.pieces
        for piece in lineage.pieces:
            assert not piece.span.empty
        for before, after in pairwise(lineage.pieces):
            assert before.span.end == after.span.start
            assert before.symbol != after.symbol
        assert (lineage.end is None) == (lineage.pieces[-1].span.end == ALWAYS.end)
        assert symbol in {piece.symbol for piece in lineage.pieces}


@given(changes, listings)
def test_every_instant_of_a_symbol_belongs_to_one_instrument_at_most(
    told: list[CorporateAction], listed: dict[str, int]
) -> None:
    history = TickerHistory(told, listed)
    held: dict[str, list[Span]] = {}
    for instrument in history.instruments():
        for piece in instrument.pieces:
            held.setdefault(piece.symbol, []).append(piece.span)
    for spans in held.values():
        for before, after in pairwise(sorted(spans)):
            assert before.end <= after.start


@given(changes, listings, moments)
def test_whoever_holds_a_symbol_is_found_by_it(
    told: list[CorporateAction], listed: dict[str, int], moment: int
) -> None:
    history = TickerHistory(told, listed)
    instruments = list(history.instruments())
    for symbol in history.symbols:
        found = history.lineage(symbol, moment)
        holding = [
            each
            for each in instruments
            if any(p.symbol == symbol and p.span.start <= moment < p.span.end for p in each.pieces)
        ]
        assert not holding or holding == [found]


@given(changes, listings, moments)
def test_the_order_of_reports_means_nothing(
    told: list[CorporateAction], listed: dict[str, int], moment: int
) -> None:
    forward = TickerHistory(told, listed)
    backward = TickerHistory([*reversed(told), *told], listed)
    for symbol in SYMBOLS:
        assert forward.lineage(symbol, moment) == backward.lineage(symbol, moment)


@given(st.permutations(SYMBOLS), st.integers(1, 50))
def test_a_chain_is_one_instrument_by_every_name(names: list[str], apart: int) -> None:
    step = SAME_EVENT + apart * DAY
    told = [
        CorporateAction(old, ActionKind.NAME_CHANGE, n * step, other_symbol=new)
        for n, (old, new) in enumerate(pairwise(names), 1)
    ]
    history = TickerHistory(told)
    lineages = {history.lineage(name, 100 * step) for name in names}
    assert len(lineages) == 1
    assert [p.symbol for p in lineages.pop().pieces] == names
