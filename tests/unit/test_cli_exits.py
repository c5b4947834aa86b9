"""Exit codes: one for every error there is."""

from __future__ import annotations

import pytest

from marketdata import errors
from marketdata.cli.exits import BY_ERROR, exit_code

CONTRACT = {0, 1, 2, 3, 69, 75, 78, 130}


def _tree(kind: type[errors.MarketDataError]) -> set[type[errors.MarketDataError]]:
    below = [_tree(child) for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return {kind}.union(*below)


def test_the_table_names_every_error_and_nothing_else() -> None:
    assert set(BY_ERROR) == _tree(errors.MarketDataError)
    assert set(BY_ERROR.values()) <= CONTRACT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRangeError("x"), 2),
        (errors.UnknownSymbolError("x"), 3),
        (errors.DataUnavailableError("x"), 3),
        (errors.StoreUnavailableError("x"), 69),
        (errors.BrokerTimeoutError("x"), 69),
        (errors.RateLimitError("x"), 75),
        (errors.StoreUnavailableError("too many connections", sqlstate="53300"), 75),
        (errors.StoreUnavailableError("a lock", sqlstate="55P03"), 75),
        (errors.StoreUnavailableError("gone", sqlstate="57P01"), 69),
        (errors.MissingDependencyError("x"), 78),
        (errors.AuthenticationError("x"), 78),
        (errors.SchemaError("x"), 78),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_code_of(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_of_somebody_else_ends_as_its_nearest_relative() -> None:
    class TheirsError(errors.RateLimitError):
        pass

    assert exit_code(TheirsError("x")) == 75
