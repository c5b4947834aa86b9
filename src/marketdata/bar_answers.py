"""What `get_bars` and `get_indicators` share: a checked request, and its bars through the tiers."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast

from marketdata.answers import Answer
from marketdata.applied import Applied
from marketdata.arguments import (
    Request,
    Symbols,
    adjustment_of,
    check_choice,
    check_feed,
    symbol_list,
)
from marketdata.clock import Deadline
from marketdata.connected import Connected
from marketdata.forming import forming_bar
from marketdata.progress import progress
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, read_as_of, resolve_window
from marketdata.spans import Span
from marketdata.types import DAY, Bars, Session, Timeframe
from marketdata.warning_types import LIBRARY, MissingSymbolsWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from marketdata.answers import Tolerance
    from marketdata.fetching import Progress
    from marketdata.identity import Lineage
    from marketdata.links import Link

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
        as_of: Moment | None = None,
    ) -> Request:
        """Check everything that can be checked without a server, then start what is needed."""
        names, single = symbol_list(symbols)
        parsed = Timeframe.parse(timeframe)
        chosen = adjustment_of(self._settings.adjustment if adjustment is None else adjustment)
        check_choice("session", session, ("regular", "extended"))
        check_feed(feed)
        now_us = self._clock.now_us()
        calendar = self._calendar()
        moment = None if as_of is None else read_as_of(as_of, calendar, now_us)
        window = resolve_window(
            calendar,
            now_us if moment is None else moment,
            start=start,
            end=end,
            period=period,
            limit=limit,
            as_of=moment is not None,
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
            moment,
        )
        return Request(query, single, chosen, now_us)

    def _answer(
        self, request: Request, missing: str, deadline: Deadline, *, chain: bool = False
    ) -> Answer:
        """Read, and deal with unknown symbols as asked.

        Parameters
        ----------
        chain : bool
            Whether the other brokers, if there are any, are asked for what the first cannot
            supply.
        """
        query = request.query
        runtime = self._runtime
        with self._shown(query) as shown:
            if chain and runtime.links[1:]:
                answer = runtime.chain.read(request, deadline, shown, self._read)
            else:
                answer = self._read(runtime.links[0], request, deadline, shown)
        runtime.statistics.count(answer)
        self._tell_unknown(query, answer, missing, deadline, runtime.links if chain else ())
        return answer

    def _shown(
        self, query: BarsQuery, *, counted: bool = True
    ) -> AbstractContextManager[Progress | None]:
        """Show how far a read has come; `counted`: of how many bars, by the primary broker."""
        label = (
            f"{len(query.symbols)} x {query.timeframe}" if query.symbols[1:] else query.symbols[0]
        )
        expected = partial(self._runtime.expected_bars, query) if counted else None
        return progress(self._settings.progress, label, expected)

    def _tell_unknown(
        self,
        query: BarsQuery,
        answer: Answer,
        missing: str,
        deadline: Deadline,
        links: Sequence[Link],
    ) -> None:
        """Raise because of unknown symbols, or warn that they are left out."""
        if answer.unknown and missing == "raise":
            raise self._runtime.unknown(
                answer.unknown, deadline, _LEAVE_OUT if query.symbols[1:] else None, links=links
            )
        if answer.unknown:
            warnings.warn(
                f"left out unknown symbols: {', '.join(answer.unknown)}",
                MissingSymbolsWarning,
                skip_file_prefixes=LIBRARY,
            )

    def _read(
        self,
        link: Link,
        request: Request,
        deadline: Deadline,
        shown: Progress | None,
        tolerance: Tolerance | None = None,
    ) -> Answer:
        """Read from one broker and the tiers before it; `request` is under that broker's key."""
        return link.reader.read(request.query, deadline, shown, tolerance=tolerance)

    def _finished(
        self, request: Request, answer: Answer, deadline: Deadline, include_forming: bool
    ) -> tuple[Applied, bool]:
        """Adjust the closed bars, and append those that are forming; return the actions applied,
        and whether a bar was appended."""

        def finish(
            link: Link, part: Request, found: Answer, until: Deadline
        ) -> tuple[Applied, bool]:
            before = self._lineages(part)
            applied = self._adjusted(part, found, until, link)
            if self._lineages(part) != before:
                # The actions have told of a rename that the read could not ask about.
                found.series |= self._read(link, part, until, None).series
                applied = self._adjusted(part, found, until, link)
            forming = include_forming and self._append_forming(part, found, applied, until, link)
            return applied, forming

        runtime = self._runtime
        if not runtime.links[1:]:
            return finish(runtime.links[0], request, answer, deadline)
        parts = runtime.chain.finish(request, answer, deadline, self._read, finish)
        whole = Applied(request.adjustment)
        for applied, _ in parts:
            whole.add(applied)
        return whole, any(forming for _, forming in parts)

    def _lineages(self, request: Request) -> Mapping[str, Lineage]:
        query = request.query
        if request.adjustment == "raw":
            return {}
        return self._runtime.identities.changed(query.provider, query.symbols, query.as_of_us)

    def _adjusted(
        self, request: Request, answer: Answer, deadline: Deadline, link: Link | None = None
    ) -> Applied:
        """Adjust the closed bars as asked, or warn that raw ones cross a split."""
        adjuster = (link or self._runtime.links[0]).adjuster
        if request.adjustment == "raw":
            adjuster.warn_of_splits(request.query, answer, deadline, request.as_of_us)
        return adjuster.adjust(
            request.query,
            answer,
            request.now_us,
            deadline,
            request.adjustment,
            request.as_of_us,
        )

    def _append_forming(
        self,
        request: Request,
        answer: Answer,
        applied: Applied,
        deadline: Deadline,
        link: Link | None = None,
    ) -> bool:
        query = request.query
        if query.window.explicit_end and query.window.end < request.now_us:
            return False
        runtime = self._runtime
        identities, provider = runtime.identities, query.provider
        # A bar forms under today's symbol, and of what has ended none does.
        names = {
            s: identities.current(provider, s)
            for s in answer.series
            if not identities.is_over(provider, s)
        }
        found = forming_bar(
            (link or runtime.links[0]).broker,
            runtime.calendar(),
            query,
            names,
            applied,
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
