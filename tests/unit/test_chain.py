"""How a chain goes on where the work on an answer fails for some of its symbols."""

from dataclasses import dataclass

import pytest

from marketdata.answers import Answer, SeriesAnswer
from marketdata.arguments import Request
from marketdata.chain import Chain
from marketdata.clock import Deadline
from marketdata.errors import DataQualityError
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.types import Bars, Timeframe
from marketdata.warning_types import FallbackWarning

SYMBOLS = tuple(f"S{n:03}" for n in range(200))
DOUBTFUL = {"S007", "S100"}


@dataclass(frozen=True)
class Named:
    provider: str
    feed: str = "sip"


def answer_of(symbols: tuple[str, ...]) -> Answer:
    return Answer({s: SeriesAnswer(Bars.empty(), "postgres", 1) for s in symbols})


@pytest.mark.parametrize("says", [True, False])
def test_one_doubtful_symbol_does_not_cost_a_round_for_each_of_the_others(says: bool) -> None:
    first, second = Named("alpaca"), Named("yahoo")
    chain = Chain([first, second])  # type: ignore[list-item]
    window = Window(None, 1, 5)
    request = Request(BarsQuery("alpaca", "sip", SYMBOLS, Timeframe.DAY_1, window), False, "all", 1)
    worked: list[tuple[str, tuple[str, ...]]] = []

    def work(link: Named, asked: Request, answer: Answer, until: Deadline) -> None:
        worked.append((link.provider, asked.query.symbols))
        doubted = DOUBTFUL.intersection(answer.series)
        if link is first and doubted:
            error = DataQualityError("no factor")
            if says:
                error.facts["symbols"] = sorted(doubted)
            raise error

    whole = answer_of(SYMBOLS)
    with pytest.warns(FallbackWarning, match="S007 S100"):
        chain.finish(
            request,
            whole,
            Deadline(60),
            lambda link, asked, *_: answer_of(asked.query.symbols),
            work,  # type: ignore[arg-type]
        )
    assert set(whole.served_by) == DOUBTFUL
    assert set(whole.series) == set(SYMBOLS)
    rounds = [symbols for provider, symbols in worked if provider == "alpaca"]
    assert len(rounds) == (2 if says else 1 + len(SYMBOLS))
    assert [set(symbols) for provider, symbols in worked if provider == "yahoo"] == [DOUBTFUL]
