"""What `get_bars` and `get_indicators` share: a checked request, and its bars through the tiers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Final, Literal, cast

from marketdata.arguments import (
    Request,
    Symbols,
    adjustment_of,
    check_choice,
    check_feed,
    refuse_as_of,
    symbol_list,
)
from marketdata.clock import Deadline
from marketdata.connected import Connected
from marketdata.forming import forming_bar
from marketdata.progress import progress
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, resolve_window
from marketdata.reader import Answer
from marketdata.spans import Span
from marketdata.types import DAY, Bars, Session, Split, Timeframe
from marketdata.warning_types import LIBRARY, MissingSymbolsWarning

Missing = Literal["raise", "skip"]
_LEAVE_OUT: Final = 'correct them, or leave them out with missing="skip"'


class BarAnswers(Connected):
    """A client that can read bars, without its public calls."""

    def _request(
        self,
        symbols: Symbols,
        timeframe: str,
        *,
        start: Moment | None,
        end: Moment | None,
        period: str | None,
        limit: int | None,
        session: str,
        feed: str | None,
        adjustment: str | None = None,
        as_of: object = None,
    ) -> Request:
        """Check everything that can be checked without a server, then start what is needed."""
        names, single = symbol_list(symbols)
        parsed = Timeframe.parse(timeframe)
        chosen = adjustment_of(self._settings.adjustment if adjustment is None else adjustment)
        refuse_as_of(as_of)
        check_choice("session", session, ("regular", "extended"))
        check_feed(feed)
        now_us = self._clock.now_us()
        window = resolve_window(
            self._calendar(), now_us, start=start, end=end, period=period, limit=limit
        )
        runtime = self._runtime
        query = BarsQuery(
            runtime.provider,
            runtime.feed_named(feed),
            names,
            parsed,
            window,
            cast(Session, session),
            self._settings.max_lookback * DAY,
        )
        return Request(query, single, chosen, now_us)

    def _answer(self, request: Request, missing: str, deadline: Deadline) -> Answer:
        """Read, and deal with unknown symbols as asked."""
        query = request.query
        runtime = self._runtime
        label = (
            f"{len(query.symbols)} x {query.timeframe}" if query.symbols[1:] else query.symbols[0]
        )
        with progress(self._settings.progress, label, runtime.expected_bars(query)) as shown:
            answer = runtime.reader.read(query, deadline, shown)
        runtime.statistics.count(answer)
        if answer.unknown and missing == "raise":
            raise runtime.unknown(
                answer.unknown, deadline, _LEAVE_OUT if query.symbols[1:] else None
            )
        if answer.unknown:
            warnings.warn(
                f"left out unknown symbols: {', '.join(answer.unknown)}",
                MissingSymbolsWarning,
                skip_file_prefixes=LIBRARY,
            )
        return answer

    def _append_forming(
        self,
        request: Request,
        answer: Answer,
        splits: Mapping[str, Sequence[Split]],
        deadline: Deadline,
    ) -> bool:
        query = request.query
        if query.window.explicit_end and query.window.end < request.now_us:
            return False
        runtime = self._runtime
        found = forming_bar(
            runtime.broker,
            runtime.calendar(),
            query,
            list(answer.series),
            splits,
            request.now_us,
            deadline,
        )
        for symbol, bar in found.items():
            known = answer.series[symbol]
            known.bars = Bars.concat(
                [known.bars.within(Span(-(2**62), int(bar.timestamp[0]))), bar]
            )
        return bool(found)

    def _dated(self, bars: Bars) -> Bars:
        """Return daily bars labelled by their session's date at 00:00 of no zone."""
        calendar = self._calendar()
        days = calendar.session_index(bars.timestamp)
        local = (calendar.midnight[days] + DAY // 2) // DAY * DAY
        return Bars(local, bars.values)
