"""A run's lists as DataFrames: one fixed set of columns and dtypes each, also when empty. Pure.

Instants are ``datetime64[us, UTC]``, NaT where there is none; numbers float64; words strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from algorithms.orders import Fill, Order
from algorithms.run_record import AppliedAction, Floats, Instants
from algorithms.trades import Trade


def timestamps(times: Instants) -> pd.DatetimeIndex:
    """Return instants in microseconds UTC as an aware index named ``timestamp``."""
    stamps = pd.DatetimeIndex(np.asarray(times, np.int64).view("datetime64[us]"))
    return stamps.tz_localize("UTC").rename("timestamp")


def curve(values: Floats, times: Instants, name: str) -> pd.Series[float]:
    return pd.Series(np.array(values, np.float64), index=timestamps(times), name=name)


def trades_frame(trades: Sequence[Trade]) -> pd.DataFrame:
    entries = _instants(t.entry_time for t in trades)
    exits = _instants(t.exit_time for t in trades)
    frame = pd.DataFrame(
        {
            "symbol": _words(t.symbol for t in trades),
            "quantity": _numbers(t.quantity for t in trades),
            "entry_time": entries,
            "exit_time": exits,
            "entry_price": _numbers(t.entry_price for t in trades),
            "exit_price": _numbers(t.exit_price for t in trades),
            "pnl": _numbers(t.pnl for t in trades),
            "return": _numbers(t.return_on_entry for t in trades),
            "fees": _numbers(t.fees for t in trades),
            "dividends": _numbers(t.dividends for t in trades),
            "holding": exits - entries,
            "closed": np.array([t.closed for t in trades], np.bool_),
            "entry_tag": _words(t.entry_tag for t in trades),
            "exit_tag": _words(t.exit_tag for t in trades),
        }
    )
    return frame.rename_axis("trade")


def fills_frame(fills: Sequence[Fill]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "timestamp": _instants(f.time for f in fills),
            "symbol": _words(f.symbol for f in fills),
            "quantity": _numbers(f.quantity for f in fills),
            "price": _numbers(f.price for f in fills),
            "fee": _numbers(f.fee for f in fills),
            "order_id": _words(f.order_id for f in fills),
            "tag": _words(f.tag for f in fills),
        }
    )
    return frame.rename_axis("fill")


def orders_frame(orders: Sequence[Order]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "symbol": _words(o.symbol for o in orders),
            "type": _words(o.type for o in orders),
            "quantity": _numbers(o.quantity for o in orders),
            "limit": _numbers(o.limit for o in orders),
            "stop": _numbers(o.stop for o in orders),
            "time_in_force": _words(o.time_in_force for o in orders),
            "created": _instants(o.created for o in orders),
            "expires": _instants(o.expires for o in orders),
            "state": _words(o.state for o in orders),
            "filled": _numbers(o.filled for o in orders),
            "filled_price": _numbers(o.filled_price for o in orders),
            "parent": _words(o.parent or "" for o in orders),
            "twin": _words(o.twin or "" for o in orders),
            "tag": _words(o.tag for o in orders),
            "reason": _words(o.reason for o in orders),
        },
        index=pd.Index(_words(o.id for o in orders), name="order_id"),
    )


def actions_frame(actions: Sequence[AppliedAction]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "timestamp": _instants(a.time for a in actions),
            "symbol": _words(a.symbol for a in actions),
            "kind": _words(a.kind for a in actions),
            "cash": _numbers(a.cash for a in actions),
            "ratio": _numbers(a.ratio for a in actions),
            "paid_out": _numbers(a.paid_out for a in actions),
        }
    )
    return frame.rename_axis("action")


def _instants(times: Iterable[int | None]) -> pd.DatetimeIndex:
    missing = np.iinfo(np.int64).min  # numpy's NaT
    found = np.array([missing if t is None else t for t in times], np.int64)
    return pd.DatetimeIndex(found.view("datetime64[us]")).tz_localize("UTC")


def _numbers(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _words(values: Iterable[str]) -> Any:
    return pd.array([str(v) for v in values], dtype="str")
