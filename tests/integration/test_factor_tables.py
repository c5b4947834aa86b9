"""Twenty years of another vendor's factor tables, from raw closes and actions, through every tier.

The table is made as its vendor makes it, row by row from the newest event back: ``date, price
factor, split factor, reference price``; a row holds until its date, the last session before the
event, whose raw close is the reference. Source: QuantConnect LEAN, factor files and map files.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marketdata.calendars import EXCHANGE, TradingCalendar
from marketdata.sandbox import FileMarket
from marketdata.sandbox.source import Action
from tests.stack import Stack, same

SYMBOLS = ["ALPHA", "BETA", "GAMMA"]
YEARS: dict[str, Any] = {"start": "1998-01-01", "end": "2018-04-01"}
RENAMED = pd.Timestamp("2009-06-01")


def sessions() -> pd.DatetimeIndex:
    calendar = TradingCalendar.build(EXCHANGE, date(2019, 1, 1))
    days = pd.to_datetime(calendar.midnight, unit="us", utc=True).tz_convert("America/New_York")
    return days[(days >= "1998-01-02") & (days < "2018-03-31")]


def history(seed: int) -> pd.DataFrame:
    """Return one symbol's raw daily bars with its dividends and splits."""
    random = np.random.default_rng(seed)
    days = sessions()
    events = pd.DataFrame({"dividend": 0.0, "split": 1.0}, index=days)
    moves = random.choice(np.arange(100, len(days), 50), 5, replace=False)
    events.iloc[moves, 1] = random.choice([2.0, 3.0, 1.5, 7.0, 0.1, 1.05], 5)
    value = 60 * np.exp(np.cumsum(random.normal(0, 0.012, len(days))))
    close = np.round(value / events["split"].cumprod().to_numpy(), 4)
    paid = np.setdiff1d(np.arange(30 + seed, len(days), 63), moves)
    events.iloc[paid, 0] = np.round(close[paid - 1] * random.uniform(0.001, 0.02, len(paid)), 6)
    bars = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), close), index=days)
    bars["volume"] = random.integers(1000, 10**6, len(days)).astype(float)
    return bars.join(events)


def factor_table(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the vendor's table of one symbol, by date, oldest first."""
    rows: list[tuple[pd.Timestamp, float, float, float]] = []
    price = shares = 1.0
    rows.append((pd.Timestamp("2050-12-31", tz="America/New_York"), price, shares, 0.0))
    for at in range(len(bars) - 1, 0, -1):
        dividend, split = bars["dividend"].iloc[at], bars["split"].iloc[at]
        if dividend or split != 1.0:
            reference = bars["close"].iloc[at - 1]
            price *= (reference - dividend) / reference
            shares /= split
            rows.append((bars.index[at - 1], price, shares, reference))
    columns = ["date", "price_factor", "split_factor", "reference"]
    return pd.DataFrame(rows, columns=columns).set_index("date").sort_index()


@pytest.fixture(scope="module")
def histories() -> dict[str, pd.DataFrame]:
    return {symbol: history(seed) for seed, symbol in enumerate(SYMBOLS)}


@pytest.fixture
def market(tmp_path: Path, histories: dict[str, pd.DataFrame]) -> FileMarket:
    """GAMMA traded as OLDER until it was renamed."""
    whole = pd.concat(histories, names=["symbol", "timestamp"]).reset_index()
    older = (whole["symbol"] == "GAMMA") & (whole["timestamp"].dt.tz_localize(None) < RENAMED)
    whole.loc[older, "symbol"] = "OLDER"
    whole["timestamp"] = whole["timestamp"].dt.tz_convert("UTC")
    whole.to_parquet(tmp_path / "days.parquet", index=False)
    found = FileMarket(tmp_path / "days.parquet")
    found.add_action(Action("OLDER", RENAMED.date(), kind="name_change", other_symbol="GAMMA"))
    return found


@pytest.mark.filterwarnings("ignore:raw prices of")
def test_factor_tables_of_twenty_years(
    make_stack: Callable[..., Stack], market: FileMarket, histories: dict[str, pd.DataFrame]
) -> None:
    stack = make_stack(at="2018-04-02T12:00:00-04:00", source=market)

    def read(adjustment: Any, symbols: Any = SYMBOLS) -> pd.DataFrame:
        return stack.client.get_bars(symbols, "1day", adjustment=adjustment, **YEARS)

    def check(raw: pd.DataFrame) -> None:
        found = {a: read(a)["close"] / raw["close"] for a in ("split", "dividend", "all")}
        volumes = read("all")["volume"] / raw["volume"]
        for symbol, bars in histories.items():
            table = factor_table(bars)
            rows = table.iloc[np.searchsorted(table.index, bars.index)]
            assert len(found["all"].xs(symbol)) == len(bars)
            price, shares = rows["price_factor"].to_numpy(), rows["split_factor"].to_numpy()
            for adjustment, expected in (
                ("dividend", price), ("split", shares), ("all", price * shares),
            ):  # fmt: skip
                np.testing.assert_allclose(found[adjustment].xs(symbol), expected, rtol=1e-9)
            np.testing.assert_allclose(volumes.xs(symbol), 1 / shares, rtol=1e-9)

    raw = read("raw")
    check(raw)
    stack.forget_calls()
    stack.flush_redis()
    check(read("raw"))
    assert stack.calls() == 0
    # Either name is the instrument: the old one, and minutes of no other company.
    same(read("all", "OLDER"), read("all", "GAMMA"))
