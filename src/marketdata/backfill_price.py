"""What a backfill costs, and by when nightly runs of given limits will have done it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final

from marketdata.backfill_plan import Chunk
from marketdata.calendars import TradingCalendar
from marketdata.clock import to_micros
from marketdata.errors import RequestError

BARS_A_SECOND: Final = 150_000
"""Bars that two cores fetch and store in a second, where the broker lets them."""
ROW_BYTES: Final = 190
"""Bytes of a bar kept as a row, index included."""
SEALED_BYTES: Final = 17
"""Bytes of a bar in a sealed chunk, index included."""


@dataclass(frozen=True, slots=True)
class Price:
    """What chunks cost at most: every series is reckoned to trade in every minute."""

    chunks: int
    symbols: int
    calls: int
    bars: int
    bytes: int
    minutes: float
    """At the rate that the budget leaves to background work, and the pace of two cores."""

    def plus(self, other: Price) -> Price:
        """Return what both cost together, for different symbols."""
        return Price(
            self.chunks + other.chunks,
            self.symbols + other.symbols,
            self.calls + other.calls,
            self.bars + other.bars,
            self.bytes + other.bytes,
            self.minutes + other.minutes,
        )


@dataclass(frozen=True, slots=True)
class Nightly:
    """The limits of one nightly run."""

    max_symbols: int
    """Symbols whose intraday bars are filled; 0 is all."""
    max_calls: int | None
    minutes: float
    """From the start to the end of the run."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """When nightly runs will have filled everything."""

    nights: int
    finished: date | None
    """The exchange's date of the morning on which the last run ends; None where nothing is left."""
    brought_forward_by: str
    """The option that shortens it most; empty where one night is enough."""


NOTHING: Final = Price(0, 0, 0, 0, 0, 0.0)
DONE: Final = Forecast(0, None, "")


# ---------------------------------------------------------------------------------------- price


def price(found: Sequence[Chunk], calls_a_minute: int) -> Price:
    """Return what `found` costs at `calls_a_minute`."""
    calls, bars = sum(c.calls for c in found), sum(c.bars for c in found)
    return Price(
        chunks=len(found),
        symbols=len({key.symbol for c in found for key in c.fetch.keys}),
        calls=calls,
        bars=bars,
        bytes=sum(c.bars * (SEALED_BYTES if c.fetch.sealed else ROW_BYTES) for c in found),
        minutes=max(calls / max(calls_a_minute, 1), bars / BARS_A_SECOND / 60),
    )


def forecast(
    whole: Price, intraday_symbols: int, nightly: Nightly, first_morning: date
) -> Forecast:
    """Return when nightly runs will have filled what costs `whole`.

    Parameters
    ----------
    intraday_symbols : int
        Symbols whose intraday bars are missing, which is what a night's limit counts.
    first_morning : date
        On which the first of these runs ends.
    """
    if not whole.chunks:
        return DONE
    nights = {
        "--until (a longer night) or a plan with more requests a minute": whole.minutes
        / max(nightly.minutes, 1e-9),
        "--max-symbols": intraday_symbols / nightly.max_symbols if nightly.max_symbols else 0,
        "--max-calls": whole.calls / nightly.max_calls if nightly.max_calls else 0,
    }
    binding = max(nights, key=lambda name: nights[name])
    count = max(1, -int(-nights[binding] // 1))
    return Forecast(count, first_morning + timedelta(days=count - 1), binding if count > 1 else "")


# ----------------------------------------------------------------------------------- wall clock


def parse_wall_time(text: str) -> time:
    """Return the time of day that ``HH:MM`` names.

    Raises
    ------
    RequestError
        Not such a time; a retry does not help.
    """
    if re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", text):
        hour, minute = map(int, text.split(":"))
        return time(hour, minute)
    raise RequestError(f"{text!r} is not a time of day", cure="write HH:MM, such as 06:00")


def next_wall_time(text: str, calendar: TradingCalendar, now_us: int) -> int:
    """Return the next instant after now at which clocks in the exchange's zone show `text`.

    Of an hour that a change of clocks repeats the first pass counts; one that it skips is taken an
    hour later.

    Raises
    ------
    RequestError
        Not ``HH:MM``; a retry does not help.
    """
    moment = parse_wall_time(text)
    today = calendar.today(now_us)
    days = (today + timedelta(days=n) for n in range(3))
    instants = (to_micros(datetime.combine(day, moment, tzinfo=calendar.zone)) for day in days)
    return next(at for at in instants if at > now_us)
