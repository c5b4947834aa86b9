"""Parameters and the declarations of a strategy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from algorithms import Algorithm, AlgorithmError, Param, ParameterError
from algorithms.studies import studies_of


class Declared(Algorithm):
    symbols = ("X",)
    length = Param(14, low=2, high=50)
    share = Param(0.5, low=0.0)
    side = Param("long", choices=("long", "short"))
    careful = Param(True)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("length", 20, 20),
        ("length", np.int64(20), 20),
        ("share", 1, 1.0),
        ("share", np.int64(1), 1.0),
        ("share", np.float32(0.25), 0.25),
        ("share", np.float64(0.25), 0.25),
        ("share", math.inf, math.inf),
        ("side", "short", "short"),
        ("side", np.str_("short"), "short"),
        ("careful", False, False),
        ("careful", np.bool_(False), False),
    ],
)
def test_what_is_taken_reads_as_a_plain_value(name: str, given: Any, read: Any) -> None:
    algorithm = Declared(**{name: given})
    found = getattr(algorithm, name)
    assert found == read
    assert type(found) is type(read)
    assert algorithm.params[name] == read
    json.dumps(algorithm.params)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("length", 1, "at least 2"),
        ("length", 51, "at most 50"),
        ("length", 14.0, "takes an int"),
        ("length", True, "takes an int"),
        ("length", "14", "takes an int"),
        ("length", None, "takes an int"),
        ("share", -0.1, "at least 0"),
        ("share", math.nan, "takes a number"),
        ("share", True, "takes a float"),
        ("side", "flat", "is one of 'long', 'short'"),
        ("careful", 1, "takes a bool"),
        ("length", np.array([3, 4]), "takes an int"),
        ("lenght", 3, "did you mean 'length'"),
    ],
)
def test_what_is_refused_says_why(name: str, given: Any, says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Declared(**{name: given})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("length", "20", 20),
        ("share", "1", 1.0),
        ("side", "short", "short"),
        ("careful", "No", False),
    ],
)
def test_reading_a_command_line(name: str, text: str, read: Any) -> None:
    assert Declared.declared()[name].read(text) == read


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("length", "1", "at least 2"),
        ("length", "many", "takes an int"),
        ("length", "2.5", "takes an int"),
        ("share", "nan", "takes a number"),
        ("side", "up", "is one of"),
        ("careful", "perhaps", "true or false"),
    ],
)
def test_a_bad_command_line_says_what_is_wrong(name: str, text: str, says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Declared.declared()[name].read(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("default", [[1, 2], None, {"a": 1}, 1j])
def test_a_parameter_is_a_number_a_word_or_a_yes(default: Any) -> None:
    with pytest.raises(ParameterError):
        Param(default)


def test_a_subclass_gives_an_inherited_parameter_another_default() -> None:
    class Longer(Declared):
        length = 30

    assert Longer().length == 30
    assert Declared().length == 14
    with pytest.raises(ParameterError, match="at most 50"):
        Longer(length=51)

    with pytest.raises(ParameterError):

        class TooLong(Declared):
            length = 60


def test_instances_do_not_share_anything() -> None:
    one, two = Declared(length=3), Declared()
    one.state["a"] = 1
    assert two.state == {}
    assert two.length == 14
    assert repr(one) == "Declared(length=3, share=0.5, side='long', careful=True)"


def test_one_word_where_several_are_meant_is_one_of_them() -> None:
    class Plain(Algorithm):
        symbols = "AAPL"
        timeframes = "1day"
        indicators = "sma_5"
        timeframe = "1min"

    algorithm = Plain()
    assert tuple(algorithm.symbols) == ("AAPL",)
    assert tuple(algorithm.timeframes) == ("1day",)
    assert list(algorithm.indicator_specs()) == ["sma_5"]


def test_a_symbol_given_twice_is_watched_once() -> None:
    assert tuple(Declared(symbols=["X", "Y", "X"]).symbols) == ("X", "Y")


# ------------------------------------------------------------------------- indicators declared


def own(bars: Any, length: int, extra: float = 1.0) -> Any:
    return bars.close * length * extra


def with_indicators(indicators: Any, **given: Any) -> Any:
    class Has(Declared):
        pass

    Has.indicators = indicators
    return Has(**given)


def names(algorithm: Algorithm) -> list[str]:
    return [alias for study in studies_of(algorithm) for alias in study.aliases]


def test_names_are_filled_in_and_several_outputs_have_several_names() -> None:
    assert names(with_indicators({"fast": "sma_{length}"}, length=9)) == ["fast"]
    assert studies_of(with_indicators({"fast": "sma_{length}"}, length=9))[0].key[0] == "sma_9"
    assert names(with_indicators({"m": "macd_12_26_9"}))[0] == "m"
    assert set(names(with_indicators({"m": "macd_12_26_9"}))) == {"m", "m_signal", "m_hist"}
    assert set(names(with_indicators({"band": "bbands_20_2"}))) == {
        "band_upper", "band_middle", "band_lower"
    }  # fmt: skip
    assert names(with_indicators({"top": "bbands_20_2_upper"})) == ["top"]
    assert names(with_indicators(["sma_5", "rsi_14"])) == ["sma_5", "rsi_14"]


def test_another_timeframe_is_named_after_the_at() -> None:
    algorithm = with_indicators({"slow": "sma_{length}@1week"})
    assert [s.timeframe for s in studies_of(algorithm)] == ["1week"]


def test_a_function_is_given_the_parameters_it_asks_for() -> None:
    (study,) = studies_of(with_indicators({"mine": own}, length=7))
    assert dict(study.arguments) == {"length": 7}
    (study,) = studies_of(with_indicators({"mine": (own, 3)}))
    assert study.needs == 3
    (study,) = studies_of(with_indicators([own]))
    assert study.aliases == ("own",)


@pytest.mark.parametrize(
    ("indicators", "says"),
    [
        ({"x": "sma_{lenght}"}, "does not have"),
        ({"x": lambda bars, width: bars.close}, "asks for 'width'"),
        ({"x": 5}, "give a name"),
        ({"a": "macd_12_26_9", "a_signal": "sma_5"}, "are called 'a_signal'"),
        (["sma_5", "sma_5@1week"], "sma_5"),
        ({"x": "no_such_thing_9"}, "no_such"),
    ],
)
def test_declarations_that_cannot_be_meant(indicators: Any, says: str) -> None:
    with pytest.raises(Exception, match=says) as caught:
        studies_of(with_indicators(indicators))
    assert isinstance(caught.value, AlgorithmError) or "no_such" in says
