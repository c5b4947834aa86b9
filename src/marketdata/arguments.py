"""Reads the arguments of a call: symbols, choices, zones, time-outs. Pure, and strict: what cannot
be right is refused with the cure, before anything is asked of anybody."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import cast
from zoneinfo import ZoneInfo

from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline
from marketdata.errors import InvalidSymbolError, RequestError
from marketdata.queries import BarsQuery
from marketdata.types import Adjustment, Timeframe, canonical_symbol, unique_symbols

Symbols = str | Collection[str]
_SHOWN = 8


class Configured(Enum):
    """Stands for what a setting says, where None has a meaning of its own."""

    TZ = "MARKETDATA_TZ"

    def __repr__(self) -> str:
        return f"<{self.value}>"


@dataclass(frozen=True, slots=True)
class Request:
    """One checked `get_bars` call."""

    query: BarsQuery
    single: bool
    """Whether one symbol was given as a string: the answer then has a DatetimeIndex."""
    adjustment: Adjustment
    now_us: int

    @property
    def as_of_us(self) -> int | None:
        """The moment whose knowledge is asked for; None for today's."""
        return self.query.as_of_us


def symbol_list(symbols: Symbols) -> tuple[tuple[str, ...], bool]:
    """Return canonical symbols without repeats, and whether it was one as a string."""
    if isinstance(symbols, str):
        return tuple(unique_symbols([symbols])), True
    if not isinstance(symbols, Iterable) or isinstance(symbols, bytes | Mapping):
        raise InvalidSymbolError(
            f"symbols={symbols!r} is not a symbol", cure='give "AAPL" or ["AAPL", "MSFT"]'
        )
    names = list(symbols)
    wrong = [n for n in names if not isinstance(n, str)]
    if wrong:
        raise InvalidSymbolError(f"{wrong[0]!r} is not a symbol", cure="symbols are strings")
    if not names:
        raise InvalidSymbolError("no symbols given", cure='give "AAPL" or ["AAPL", "MSFT"]')
    return tuple(unique_symbols(names)), False


def every_symbol(symbols: Symbols) -> tuple[tuple[str, ...], bool]:
    """Return what `symbol_list` does; its error names every malformed symbol, not the first one."""
    try:
        return symbol_list(symbols)
    except InvalidSymbolError as error:
        if isinstance(symbols, str) or not isinstance(symbols, Collection):
            raise
        wrong = [n for n in symbols if isinstance(n, str) and not _is_symbol(n)]
        if len(wrong) < 2:
            raise
        shown = ", ".join(f"{n[:60]!r}" for n in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InvalidSymbolError(
            f"{shown}{more} are not US equity or ETF symbols", cure=error.cure, symbols=wrong
        ) from None


def _is_symbol(text: str) -> bool:
    try:
        canonical_symbol(text)
    except InvalidSymbolError:
        return False
    return True


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `RequestError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise RequestError(
            f"{name}={value!r} is not known", cure=f"use one of: {', '.join(choices)}"
        )


def adjustment_of(value: object) -> Adjustment:
    """Return the adjustment a call asks for."""
    check_choice("adjustment", value, ("raw", "split", "dividend", "all"))
    return cast(Adjustment, value)


def check_forming(include_forming: bool, as_of: object) -> None:
    """Raise `RequestError` where the forming bar of an earlier moment is asked for."""
    if include_forming and as_of is not None:
        raise RequestError(
            "include_forming=True contradicts as_of: bars are observed when they have closed, and "
            "how one looked before is not kept",
            cure="leave one of them out",
        )


def check_feed(feed: object) -> None:
    """Raise `RequestError` unless `feed` is a name, or None for the configured one."""
    if feed is not None and not isinstance(feed, str):
        raise RequestError(f"feed={feed!r} is not a feed", cure='give a name such as "sip"')


def deadline_of(timeout: float | None, default: float) -> Deadline:
    """Return the deadline of a call that begins now."""
    if timeout is None:
        return Deadline(default)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise RequestError(
            f"timeout={timeout!r} is not a number of seconds",
            cure="give the seconds the call may take in all, more than 0",
        )
    return Deadline(timeout)


def zone_of(tz: str | None, timeframe: Timeframe, calendar: TradingCalendar) -> str | None:
    """Return the IANA name `tz` means; None stands for naive session dates."""
    if tz == "UTC":
        return tz
    if tz is None:
        if timeframe.intraday:
            raise RequestError(
                "tz=None gives naive session dates, which intraday bars do not have",
                cure='give an IANA name or "exchange"',
            )
        return None
    if tz == "exchange":
        return calendar.zone.key
    try:
        return ZoneInfo(tz).key
    except (KeyError, ValueError, OSError, TypeError, AttributeError):
        raise RequestError(
            f"tz={tz!r} is not a time zone", cure='give an IANA name, "exchange" or None'
        ) from None
