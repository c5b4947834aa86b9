"""Strategies by what a person types, and what is said where there is none."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorithms import Algorithm, StrategyFileError
from algorithms.library import SmaCross
from algorithms.loader import catalogue, find_algorithm, strategies_in
from marketdata.cli.exits import USAGE, exit_code

ONE = "from algorithms import Algorithm\n\nclass {name}(Algorithm):\n    symbols = ('AAPL',)\n"


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path, modules = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def refusal(where: str) -> StrategyFileError:
    with pytest.raises(StrategyFileError) as caught:
        find_algorithm(where)
    assert caught.value.cure
    assert not caught.value.transient
    assert exit_code(caught.value) == USAGE
    return caught.value


def test_a_file_with_one_strategy():
    write("mine_one.py", ONE.format(name="Mine"))
    kind = find_algorithm("mine_one.py")
    assert (kind.__name__, kind.symbols) == ("Mine", ("AAPL",))
    assert issubclass(kind, Algorithm)


def test_a_file_with_several_strategies_and_one_named():
    write("several.py", ONE.format(name="First") + ONE.format(name="Second"))
    assert find_algorithm("several.py:Second").__name__ == "Second"
    error = refusal("several.py")
    assert "2 strategies" in error.message
    assert "several.py:First, several.py:Second" in str(error.cure)
    assert "did you mean Second" in str(refusal("several.py:Secnd").cure)


def test_a_base_class_and_what_is_imported_are_no_strategies_of_the_file():
    base = "\nclass Base(Algorithm):\n    pass\n\nclass _Hidden(Base):\n    pass\n"
    text = "from algorithms.library import SmaCross\n" + ONE.format(name="Other") + base
    write("derived.py", text + "\nclass Mine(Base, Other):\n    pass\n")
    assert find_algorithm("derived.py").__name__ == "Mine"
    assert list(strategies_in(sys.modules["derived"])) == ["Mine"]


def test_modules_and_the_catalogue():
    assert find_algorithm("algorithms.library.sma_cross") is SmaCross
    assert find_algorithm("algorithms.library.sma_cross:SmaCross") is SmaCross
    assert find_algorithm("algorithms.library:SmaCross") is SmaCross
    assert find_algorithm(" sma_cross ") is SmaCross
    assert list(catalogue()) == [
        "bollinger_breakout", "macd_trend", "monthly_momentum", "pair", "rsi_reversion",
        "sma_cross",
    ]  # fmt: skip
    write("here/__init__.py", "")
    write("here/deep.py", ONE.format(name="Deep"))
    assert find_algorithm("here.deep:Deep").__module__ == "here.deep"


def test_what_lies_beside_a_file_can_be_imported_by_it():
    write("beside/its_numbers.py", "LENGTH = 7\n")
    write("beside/uses.py", "from its_numbers import LENGTH\n" + ONE.format(name="Uses"))
    assert find_algorithm("beside/uses.py").__name__ == "Uses"
    assert sys.modules["uses"].LENGTH == 7


def test_a_file_keeps_its_class_until_it_changes():
    path = write("changing.py", ONE.format(name="Mine"))
    kind = find_algorithm("changing.py")
    assert find_algorithm(str(path.resolve())) is kind
    assert pickle.loads(pickle.dumps(kind)) is kind
    write("changing.py", ONE.format(name="Mine").replace("AAPL", "MSFT"))
    again = find_algorithm("changing.py")
    assert again is not kind
    assert again.symbols == ("MSFT",)


def test_a_file_named_like_another_module_replaces_nothing():
    import random

    write("random.py", ONE.format(name="Mine"))
    kind = find_algorithm("random.py")
    assert kind.__module__ != "random"
    assert sys.modules["random"] is random
    write("one/same.py", ONE.format(name="One"))
    write("two/same.py", ONE.format(name="Two"))
    kinds = [find_algorithm("one/same.py"), find_algorithm("two/same.py")]
    assert [k.__name__ for k in kinds] == ["One", "Two"]
    assert len({k.__module__ for k in kinds}) == 2


@pytest.mark.parametrize(
    ("text", "said", "cure"),
    [
        ("x = (1,\n", "not Python", "mend that line"),
        ("class A:\n    pass\n", "defines no strategy", "class Mine"),
        ("import not_installed_at_all\n", "(line 1)", "install not_installed_at_all"),
        ("x = 1\n\n1 / 0\n", "ZeroDivisionError: division by zero (line 3)", "mend it"),
        ("\x00", "not Python", ""),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(text: str, said: str, cure: str):
    write("wrong.py", text)
    error = refusal("wrong.py")
    assert "wrong.py" in error.message
    assert said in error.message
    assert cure in str(error.cure)


def test_the_line_of_a_syntax_error_is_a_fact():
    write("wrong.py", "a = 1\nb = = 2\n")
    error = refusal("wrong.py")
    assert error.facts["line"] == 2
    assert "line 2: b = = 2" in error.message


def test_what_is_not_there():
    write("my_strategy.py", ONE.format(name="Mine"))
    assert "did you mean my_strategy.py?" in str(refusal("my_stratgy.py").cure)
    assert "algo new" in str(refusal("nowhere/else.py").cure)
    assert find_algorithm("my_strategy").__name__ == "Mine"
    assert refusal("sma_crs").cure == "did you mean sma_cross?"
    assert refusal("SmaCross").cure == "did you mean sma_cross?"
    assert "no module nothing_like_it" in refusal("nothing_like_it").message
    assert "no module" in refusal("nothing.like.it:Mine").message
    assert "names no strategy" in refusal("a/b").message
    assert "no strategy was named" in refusal("").message
    assert "is no strategy" in refusal("algorithms.library:__all__").message
    assert "names no strategy" in refusal("2x:Mine").message


def test_a_module_that_cannot_be_imported():
    write("faulty_module.py", "import also_not_installed\n")
    error = refusal("faulty_module:Mine")
    assert "cannot be imported" in error.message
    assert "install also_not_installed" in str(error.cure)
