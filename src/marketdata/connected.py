"""What every call of a client stands on: its settings, its clock, and the stack made on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from marketdata.arguments import Configured, zone_of
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock, parse_clock

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.types import Timeframe
    from marketdata.wiring import Runtime


class Connected:
    """A client without its calls: nothing is started before one of them needs it."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        from marketdata.wiring import LazyRuntime

        self._settings = settings
        self._clock = parse_clock(settings.clock) if clock is None else clock
        self._lazy = LazyRuntime(settings, self._clock)

    @property
    def _runtime(self) -> Runtime:
        return self._lazy.get()

    def _calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self._clock.now_us())

    def _zone(self, tz: str | Configured | None, timeframe: Timeframe) -> str | None:
        """Return the zone of an answer's times: the configured one unless a call names another."""
        wanted = self._settings.tz if tz is Configured.TZ else tz
        return zone_of(wanted, timeframe, self._calendar())

    def close(self) -> None:
        """Close connections and leave the embedded servers. The client may be used again."""
        self._lazy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._settings!r})"
