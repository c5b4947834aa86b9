"""Yahoo's chart format: what one answer says about bars, splits and dividends. Pure.

Sources: Yahoo publishes no description; the format is the one yfinance's ``scrapers/history.py``
and ``utils.py`` read, and recorded answers. Error texts are those of ``chart.error.description``.

- Prices and volumes are already adjusted for every split up to today, whatever the range.
- A bar is labelled by its start; a daily one carries the time of the open, and yfinance labels it
  with the session's midnight. Volume is missing for null rows and 0 outside regular hours.
- The last row may be live: stamped with the last trade's time, or a bar that is not over yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from marketdata.brokers.yahoo_errors import Refusal
from marketdata.brokers.yahoo_session import Reply
from marketdata.calendars import TradingCalendar
from marketdata.errors import BrokerResponseError, DataUnavailableError, MarketDataError
from marketdata.resample import bar_span, closed_until
from marketdata.spans import Span
from marketdata.types import COLUMNS, SECOND, VOLUME, Bars, Int64s, Split, Timeframe

INTERVALS: Final[Mapping[Timeframe, str]] = {
    Timeframe.MIN_1: "1m",
    Timeframe.MIN_5: "5m",
    Timeframe.MIN_15: "15m",
    Timeframe.HOUR_1: "1h",
    Timeframe.DAY_1: "1d",
}
HORIZON_DAYS: Final[Mapping[Timeframe, int]] = {
    Timeframe.MIN_1: 30,
    Timeframe.MIN_5: 60,
    Timeframe.MIN_15: 60,
    Timeframe.HOUR_1: 730,
}
"""How far back Yahoo reaches, in days (``... The requested range must be within the last 30 days``)."""

_PRICES: Final = ("Open", "High", "Low", "Close")
_RAW_NAMES: Final = ("open", "high", "low", "close", "volume")


class SymbolNotFoundError(Exception):
    """Yahoo answers "Not Found": it has no such symbol, or (seen at times) denies one it has."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A dividend or a fund's capital gain, `amount` a share as Yahoo states it: divided by every
    split since."""

    ex_date: int
    amount: float
    gain: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One answer, on Yahoo's own share basis.

    Attributes
    ----------
    bars : Bars
        Ascending; closed bars only; vwap and trade_count are NaN.
    splits : tuple of Split
        The splits that the answer names, ascending.
    name : str or None
        Of the company or fund.
    payments : tuple of Payment
        The dividends and capital gains that the answer names, ascending.
    doubt : MarketDataError or None
        Why its payments cannot be told, where that is so; the bars do not depend on them.
    """

    bars: Bars
    splits: tuple[Split, ...]
    name: str | None = None
    payments: tuple[Payment, ...] = ()
    doubt: MarketDataError | None = None


EMPTY: Final = Chart(Bars.empty(), ())


def yahoo_symbol(symbol: str) -> str:
    """Return our symbol in Yahoo's spelling: ``BRK.B`` is ``BRK-B``."""
    return symbol.replace(".", "-")


def read_chart(
    reply: Reply,
    symbol: str,
    timeframe: Timeframe,
    span: Span,
    *,
    calendar: TradingCalendar,
    now_us: int,
) -> Chart:
    """Return what Yahoo answered for `span`; a quiet span gives a chart without bars.

    Parameters
    ----------
    reply : Reply
        Of one request for `span`.
    symbol : str
        In our spelling.
    now_us : int
        Market time before the request: bars that end later are left out.

    Raises
    ------
    SymbolNotFoundError
        Yahoo denies the symbol.
    DataUnavailableError
        Further back than Yahoo reaches, or not listed in New York; a retry does not help.
    BrokerResponseError
        The answer contradicts itself, or is cut (transient).
    """
    if reply.refusal is not None:
        return _refused(reply.refusal, symbol, timeframe)
    result = _result(reply.body, symbol, timeframe)
    if isinstance(result, Refusal):
        return _refused(result, symbol, timeframe)
    meta = _checked_meta(result, symbol, timeframe, calendar)
    splits, doubt = read_splits(result, calendar), None
    try:
        payments = read_payments(result, calendar)
    except DataUnavailableError as error:
        payments, doubt = (), error
    name = meta.get("longName") or meta.get("shortName")
    stamps = result.get("timestamp") or []
    if not stamps and not any(result["indicators"]["quote"][0].values()):
        return Chart(Bars.empty(), splits, name, payments, doubt)
    if reply.frame is None:
        raise BrokerResponseError(
            f"yfinance cannot read Yahoo's {timeframe} answer for {symbol}: {reply.error!r}"[:300],
            cause=type(reply.error).__name__,
        )
    bars = _bars(reply.frame)
    if timeframe.intraday:
        _undo_live_merge(bars, result)
    if not len(bars) and _has_prices(result, span):
        raise BrokerResponseError(f"yfinance dropped every row of {symbol} {timeframe}")
    bars = _without_live_row(bars, timeframe, calendar, now_us)
    return Chart(bars.within(span), splits, name, payments, doubt)


# -------------------------------------------------------------------------------------- outcome


def _refused(refusal: Refusal, symbol: str, timeframe: Timeframe) -> Chart:
    said = refusal.description.lower()
    if refusal.code == "Not Found":
        raise SymbolNotFoundError(refusal.description)
    if "data doesn't exist" in said:  # before the first trade, or after the last
        return EMPTY
    if refusal.status == 422 or "must be within the last" in said or "not available" in said:
        days = HORIZON_DAYS.get(timeframe)
        reach = f"{days} days" if days else "its own limits"
        raise DataUnavailableError(
            f"Yahoo gives {timeframe} bars for the last {reach} only: {refusal.description}",
            cure="ask for a later start or a coarser timeframe",
            symbol=symbol,
            horizon_days=days,
            status=refusal.status,
        )
    raise BrokerResponseError(
        f"Yahoo answers {refusal.status} {refusal.code}: {refusal.description}",
        symbol=symbol,
        status=refusal.status,
    )


def _result(body: bytes, symbol: str, timeframe: Timeframe) -> Mapping[str, Any] | Refusal:
    """Return ``chart.result[0]``, or the refusal that came with status 200."""
    try:
        chart = json.loads(body)["chart"]
        error = chart.get("error")
        if error:
            return Refusal(200, str(error["code"]), str(error.get("description") or ""))
        result = chart["result"][0]
        quote = result["indicators"]["quote"][0]
        if isinstance(result["meta"], Mapping) and isinstance(quote, Mapping):
            return result  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    raise BrokerResponseError(
        f"Yahoo's {timeframe} answer for {symbol} is cut, empty or not a chart ({len(body)} bytes)",
        transient=True,
    )


def _checked_meta(
    result: Mapping[str, Any], symbol: str, timeframe: Timeframe, calendar: TradingCalendar
) -> Mapping[str, Any]:
    meta: Mapping[str, Any] = result["meta"]
    told = str(meta.get("symbol", "")).upper()
    if told != yahoo_symbol(symbol):
        raise BrokerResponseError(f"Yahoo answers for {told or 'no symbol'} when asked {symbol}")
    zone = meta.get("exchangeTimezoneName")
    if zone != calendar.zone.key or meta.get("currency") not in ("USD", None):
        raise DataUnavailableError(
            f"{symbol} is traded in {zone} in {meta.get('currency')} at Yahoo: not a US listing",
            symbol=symbol,
        )
    granularity = meta.get("dataGranularity")
    same = {"60m": "1h"}.get(str(granularity), granularity)
    if same not in (None, INTERVALS[timeframe]):
        raise BrokerResponseError(f"Yahoo answers {granularity} bars of {symbol} for {timeframe}")
    return meta


# ----------------------------------------------------------------------------------------- bars


def _bars(frame: Any) -> Bars:
    """Return the rows of a frame that hold a price, bit for bit."""
    values = np.full((len(COLUMNS), len(frame)), np.nan)
    values[: len(_PRICES)] = frame[list(_PRICES)].to_numpy(np.float64).T
    values[VOLUME] = frame["Volume"].to_numpy(np.float64)
    timestamps = frame.index.as_unit("us").asi8.astype(np.int64)
    traded = ~np.isnan(values[: len(_PRICES)]).all(axis=0)
    return Bars(timestamps, values).take(traded)


def _undo_live_merge(bars: Bars, result: Mapping[str, Any]) -> None:
    """Give the bar before a live row its own values again.

    yfinance folds the live row into the bar of the same interval, also where that bar is over,
    and adds the volumes.
    """
    stamps = np.asarray(result["timestamp"], np.int64) * SECOND
    if len(stamps) < 2:
        return
    order = np.argsort(stamps, kind="stable")
    at = int(np.searchsorted(bars.timestamp, stamps[order[-2]]))
    if at == len(bars) or bars.timestamp[at] != stamps[order[-2]]:
        return
    quote = result["indicators"]["quote"][0]
    row = [_number(quote, name, int(order[-2])) for name in _RAW_NAMES]
    bars.values[: len(row), at] = [*row[:-1], 0.0 if math.isnan(row[-1]) else row[-1]]


def _number(quote: Mapping[str, Any], name: str, at: int) -> float:
    try:
        return float(quote[name][at])
    except (KeyError, IndexError, TypeError, ValueError):
        return math.nan


def _has_prices(result: Mapping[str, Any], span: Span) -> bool:
    stamps: Int64s = np.asarray(result["timestamp"], np.int64) * SECOND
    quote = result["indicators"]["quote"][0]
    inside = np.flatnonzero((stamps >= span.start) & (stamps < span.end))
    return any(_number(quote, "close", int(i)) > 0 for i in inside)


def _without_live_row(
    bars: Bars, timeframe: Timeframe, calendar: TradingCalendar, now_us: int
) -> Bars:
    """Leave out what is not over at `now_us`, and a last row stamped inside a bar's interval.

    Other rows off the grid stay, for the quality gates to reject and count.
    """
    if not timeframe.intraday:
        closes = calendar.close[calendar.session_index(bars.timestamp)]
        return bars.take(closes <= now_us)
    edge = closed_until(timeframe, calendar, now_us, "extended")
    keep = bars.timestamp < edge
    if len(bars) and keep[-1]:
        last = int(bars.timestamp[-1])
        held = bar_span(last, timeframe, calendar)
        keep[-1] = held.start == last and not held.empty
    return bars.take(keep)


# --------------------------------------------------------------------------------------- splits


def read_splits(result: Mapping[str, Any], calendar: TradingCalendar) -> tuple[Split, ...]:
    """Return the splits an answer names, ascending; the same one named twice counts once.

    Raises
    ------
    DataUnavailableError
        A split cannot be read, or two contradict each other: raw prices cannot be had.
    """
    events = (result.get("events") or {}).get("splits") or {}
    found: dict[int, Split] = {}
    for event in events.values():
        try:
            moment = int(event["date"]) * SECOND
            new, old = float(event["numerator"]), float(event["denominator"])
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(f"a split of Yahoo's cannot be read: {event!r}"[:200]) from error
        if not (math.isfinite(new) and math.isfinite(old) and new > 0 and old > 0):
            raise unreadable(f"a split of Yahoo's has no ratio: {event!r}"[:200])
        split = Split(calendar.midnight_of(calendar.today(moment)), new, old)
        if found.setdefault(split.ex_date, split).ratio != split.ratio:
            raise unreadable(f"Yahoo names two splits for one day: {event!r}"[:200])
    return tuple(sorted((s for s in found.values() if s.new != s.old), key=lambda s: s.ex_date))


def read_payments(result: Mapping[str, Any], calendar: TradingCalendar) -> tuple[Payment, ...]:
    """Return the dividends and capital gains an answer names, ascending.

    Raises
    ------
    DataUnavailableError
        One cannot be read, or two of a kind contradict each other.
    """
    found: dict[tuple[int, bool], Payment] = {}
    for name, gain in (("dividends", False), ("capitalGains", True)):
        for event in ((result.get("events") or {}).get(name) or {}).values():
            try:
                moment, amount = int(event["date"]) * SECOND, float(event["amount"])
            except (KeyError, TypeError, ValueError) as error:
                raise unreadable(f"a payment of Yahoo's cannot be read: {event!r}"[:200]) from error
            if not math.isfinite(amount) or amount < 0:
                raise unreadable(f"a payment of Yahoo's has no amount: {event!r}"[:200])
            paid = Payment(calendar.midnight_of(calendar.today(moment)), amount, gain)
            if found.setdefault((paid.ex_date, gain), paid) != paid:
                raise unreadable(f"Yahoo names two payments for one day: {event!r}"[:200])
    return tuple(sorted((p for p in found.values() if p.amount), key=lambda p: p.ex_date))


def unreadable(message: str) -> MarketDataError:
    """Return the error for prices that cannot be brought back to raw."""
    return DataUnavailableError(
        message,
        cure="Yahoo gives split-adjusted prices only, and raw ones cannot be worked out; use "
        "another broker for this symbol",
    )
