"""Errors: each says what to do, travels between processes, and knows whether a retry helps."""

from __future__ import annotations

import pickle

import pytest

from marketdata import errors
from marketdata.errors import MarketDataError, as_other_waiter, error_from_record

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, MarketDataError) and cls is not MarketDataError
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class_has_a_cure(cls: type[MarketDataError]) -> None:
    error = cls("it failed")
    assert error.cure
    assert str(error) == f"it failed -> {error.cure}"
    assert cls("it failed", cure="do this").cure == "do this"


def test_a_cure_shared_by_all_brokers_names_none() -> None:
    for cls in CLASSES:
        if issubclass(cls, errors.BrokerError):
            assert cls.default_cure is not None
            assert not {"APCA", "ALPACA", "YAHOO"} & set(cls.default_cure.upper().split("_"))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_an_error_survives_travelling(cls: type[MarketDataError]) -> None:
    error = cls("it failed", asked="AAPL 1min", transient=True, retry_after=2.5)
    for copy in (
        error_from_record(error.to_record()),
        as_other_waiter(error),
        pickle.loads(pickle.dumps(error)),
    ):
        assert type(copy) is cls
        assert copy is not error
        assert str(copy) == str(error)
        assert (copy.transient, copy.facts, copy.asked) == (True, {"retry_after": 2.5}, "AAPL 1min")
