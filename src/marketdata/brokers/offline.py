"""The broker that is not there: stored data only, and a gap says how to fill it.

Stands in for ``MARKETDATA_BROKER=none``, and for a database whose recorded provider this process
has no keys or no address for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn

from marketdata.clock import Deadline, from_micros
from marketdata.corporate_actions import CorporateAction
from marketdata.errors import DataUnavailableError
from marketdata.protocols import (
    Asset,
    BarsPage,
    BarsRequest,
    BaseTimeframe,
    Capabilities,
    SymbolVerdict,
)
from marketdata.spans import Span
from marketdata.types import MINUTE, SECOND, Timeframe

_DAILY: Final = (Timeframe.DAY_1, Timeframe.WEEK_1, Timeframe.MONTH_1)


def _bases(timeframe: Timeframe) -> tuple[BaseTimeframe, ...]:
    if timeframe in _DAILY:
        return (BaseTimeframe(Timeframe.DAY_1, None),)
    return (BaseTimeframe(Timeframe.MIN_1, None),)


_CAPABILITIES: Final = Capabilities(
    bases={t: _bases(t) for t in Timeframe},
    max_span=dict.fromkeys(Timeframe),
    settle_delay=3 * SECOND,
    daily_settle_delay=20 * MINUTE,
    feeds=(),
    batch_symbols=500,
    page_rows=10_000,
    latest_feeds=(),
    earliest=-(2**62),
)


class OfflineBroker:
    """Implements the `Broker` port by refusing, with a reason and a cure."""

    def __init__(self, provider: str, feed: str, reason: str, cure: str | None = None) -> None:
        self.provider = provider
        self.default_feed = feed
        self._reason = reason
        self._cure = cure

    def capabilities(self, feed: str) -> Capabilities:
        return _CAPABILITIES

    def pages(self, request: BarsRequest, deadline: Deadline) -> Iterator[BarsPage]:
        symbols = " ".join(request.symbols[:5]) + (" ..." if len(request.symbols) > 5 else "")
        start, end = (from_micros(t) for t in request.span)
        last = from_micros(request.span.end - 1)
        self._refuse(
            f"{symbols} {request.timeframe} from {start.isoformat()} to {end.isoformat()} is not "
            "stored",
            f"fill the gap with: marketdata backfill {symbols} --timeframe {request.timeframe} "
            f"--start {start.date()} --end {last.date() + timedelta(days=1)}",
        )

    def actions(
        self, symbols: Sequence[str], span: Span, deadline: Deadline
    ) -> dict[str, list[CorporateAction]]:
        some = " ".join(symbols[:5]) + (" ..." if len(symbols) > 5 else "")
        self._refuse(
            f"the corporate actions of {some} are not stored",
            f"ask for them once, with a broker: marketdata actions {some} --broker NAME",
        )

    def verdict(self, symbol: str, deadline: Deadline) -> SymbolVerdict:
        return SymbolVerdict(None)

    def symbols(self, deadline: Deadline) -> list[str]:
        return []

    def assets(self, deadline: Deadline) -> list[Asset]:
        return []

    def latest(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        self._refuse(f"the latest {kind} is never stored", None)

    def health(self) -> dict[str, str | int | None]:
        return {}

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _refuse(self, what: str, cure: str | None) -> NoReturn:
        raise DataUnavailableError(f"{what}, and {self._reason}", cure=self._cure or cure)
