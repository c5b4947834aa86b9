"""``sessions``: when the exchange trades."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.clock import from_micros
from marketdata.connected import Connected
from marketdata.errors import InvalidRangeError, RequestError
from marketdata.frames import ATTRS_KEY, Provenance
from marketdata.ranges import Moment, read_moment
from marketdata.types import DAY, Int64s

if TYPE_CHECKING:
    import pandas as pd


class SessionCalls(Connected):
    """The call about trading hours."""

    def sessions(self, start: Moment, end: Moment, *, exchange: str | None = None) -> pd.DataFrame:
        """Return the sessions of an exchange. Starts nothing and asks nobody.

        Parameters
        ----------
        start, end : str, date, datetime or Timestamp
            Sessions that begin, at midnight of the exchange, in ``[start, end)``, as daily bars
            are labelled; written as for `get_bars`. Up to a year from now.
        exchange : str, optional
            ISO 10383 market code; ``XNYS`` by default, the exchange of every symbol served.

        Returns
        -------
        DataFrame
            Index ``session``: naive dates at 00:00, ``datetime64[us]``, ascending. Columns:
            ``open``, ``close`` (regular hours, half-open, ``datetime64[us, UTC]``) and
            ``half_day`` (bool: it closes earlier than usual). Empty where no session begins.

        Raises
        ------
        RequestError
            An unknown exchange, a moment that cannot be read, a reversed range, or one that the
            calendar does not reach; a retry does not help.
        """
        import pandas as pd

        now_us = self._clock.now_us()
        calendar = self._calendar() if exchange is None else _calendar_named(exchange, now_us)
        since = read_moment(start, calendar, now_us, "start")
        until = read_moment(end, calendar, now_us, "end")
        _check(since, until, calendar)
        first, last = np.searchsorted(calendar.midnight, [since, until])
        chosen = slice(int(first), int(last))

        def moments(values: Int64s) -> pd.DatetimeIndex:
            return pd.DatetimeIndex(values[chosen].view("M8[us]"), tz="UTC")

        dates = moments(calendar.midnight).tz_convert(calendar.zone).tz_localize(None)
        frame = pd.DataFrame(
            {
                "open": moments(calendar.open),
                "close": moments(calendar.close),
                "half_day": calendar.early[chosen].copy(),
            },
            index=dates.rename("session"),
        )
        frame.attrs[ATTRS_KEY] = Provenance(exchange=calendar.name, zone=calendar.zone.key)
        return frame


def _calendar_named(exchange: str, now_us: int) -> TradingCalendar:
    from exchange_calendars.errors import CalendarError

    if not isinstance(exchange, str):
        raise RequestError(f"exchange={exchange!r} is not an exchange", cure='write "XNYS"')
    try:
        return calendar_for(exchange.strip().upper(), now_us)
    except (CalendarError, ValueError) as error:
        raise RequestError(
            f"there is no calendar of exchange {exchange!r}: {error}",
            cure="give an ISO 10383 market code such as XNYS",
        ) from None


def _check(since: int, until: int, calendar: TradingCalendar) -> None:
    """Refuse what would be answered with nothing, or with less than there is."""
    if since >= until:
        raise InvalidRangeError("end is not after start", cure="end is exclusive")
    first, last = from_micros(calendar.first), from_micros(calendar.horizon)
    if since < calendar.first - DAY * 7 or until > calendar.horizon:
        raise InvalidRangeError(
            f"the sessions of {calendar.name} are known from {first:%Y-%m-%d} to {last:%Y-%m-%d}",
            cure="ask for a range within",
        )
