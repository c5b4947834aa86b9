"""``coverage`` and ``gaps``: what is stored and what is not."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, overload

from marketdata import explaining
from marketdata.arguments import Symbols, check_feed, symbol_list
from marketdata.connected import Connected
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, Window, resolve_window
from marketdata.spans import Span
from marketdata.types import Interval, Timeframe

if TYPE_CHECKING:
    import pandas as pd


class KnownCalls(Connected):
    """The calls about what is stored; none of them asks a broker."""

    @overload
    def coverage(  # type: ignore[overload-overlap]  # a string is a collection of strings
        self, symbols: str, timeframe: str = "1day", *, feed: str | None = None
    ) -> list[Interval]: ...
    @overload
    def coverage(
        self, symbols: Collection[str], timeframe: str = "1day", *, feed: str | None = None
    ) -> pd.DataFrame: ...
    def coverage(
        self, symbols: Symbols, timeframe: str = "1day", *, feed: str | None = None
    ) -> list[Interval] | pd.DataFrame:
        """Return what is stored completely, without any broker call.

        Parameters
        ----------
        symbols : str or collection of str
        timeframe : str
            Of the bars that a read would ask for: those derived from minutes or days are covered
            where these are.
        feed : str, optional
            A feed of the broker; the configured one by default.

        Returns
        -------
        list of Interval
            For one symbol: half-open, UTC, closed hours included, sorted.
        DataFrame
            For a collection: one row an interval, columns ``symbol start end``.
        """
        names, single = symbol_list(symbols)
        parsed = Timeframe.parse(timeframe)
        check_feed(feed)
        runtime = self._runtime
        query = self._everything(names, parsed, runtime.feed_named(feed))
        found = explaining.coverage(runtime, query)
        return _intervals(found[names[0]]) if single else explaining.spans_frame(found)

    def _everything(self, names: tuple[str, ...], timeframe: Timeframe, feed: str) -> BarsQuery:
        window = Window(None, self._clock.now_us(), None)
        return BarsQuery(self._runtime.provider, feed, names, timeframe, window, "extended")

    @overload
    def gaps(  # type: ignore[overload-overlap]  # a string is a collection of strings
        self,
        symbols: str,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        feed: str | None = None,
    ) -> list[Interval]: ...
    @overload
    def gaps(
        self,
        symbols: Collection[str],
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        feed: str | None = None,
    ) -> pd.DataFrame: ...
    def gaps(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        feed: str | None = None,
    ) -> list[Interval] | pd.DataFrame:
        """Return what of ``[start, end)`` is not stored, in trading time; no broker call.

        A quiet minute inside coverage is no gap. Without `start` or `period`: two years.

        Parameters
        ----------
        symbols : str or collection of str
        timeframe : str
            Of the bars that a read would ask for; where they are derived, the gaps are those of
            the minutes or days they are made of.
        start, end, period : optional
            As for `get_bars`.
        feed : str, optional
            A feed of the broker; the configured one by default.

        Returns
        -------
        list of Interval
            For one symbol; empty where everything closed by now is stored. Both what was never
            asked and what the broker no longer gives.
        DataFrame
            For a collection: one row a gap, columns ``symbol start end state``. The state is
            ``never asked`` (a read fetches it) or ``unavailable`` (older than the broker gives
            this timeframe; a read raises `DataUnavailableError`).
        """
        names, single = symbol_list(symbols)
        parsed = Timeframe.parse(timeframe)
        check_feed(feed)
        now_us = self._clock.now_us()
        window = resolve_window(
            self._calendar(),
            now_us,
            start=start,
            end=end,
            period=period if start is not None or period is not None else "2y",
        )
        runtime = self._runtime
        named = runtime.feed_named(feed)
        query = BarsQuery(runtime.provider, named, names, parsed, window, "extended")
        found = explaining.gaps(runtime, query, now_us)
        if single:
            return _intervals(sorted(s for spans in found[names[0]].values() for s in spans))
        return explaining.gaps_frame(found)


def _intervals(spans: list[Span]) -> list[Interval]:
    return [Interval.of(span) for span in spans]
