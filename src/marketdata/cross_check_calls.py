"""``cross_check``: two brokers' bars of one span, held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from marketdata import caching
from marketdata.agreement import Agreement, compare, tolerances_of
from marketdata.arguments import Symbols, check_choice, deadline_of, symbol_list
from marketdata.clock import from_micros
from marketdata.connected import Connected
from marketdata.errors import DataUnavailableError, RequestError
from marketdata.frames import ATTRS_KEY, Provenance
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, Window, resolve_window
from marketdata.types import COLUMNS, DAY, Bars, Session, Timeframe

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.clock import Deadline
    from marketdata.links import Link
    from marketdata.wiring import Runtime

_DAILY, _INTRADAY = "6mo", "5d"


class CrossCheckCalls(Connected):
    """The call that compares brokers."""

    def cross_check(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        brokers: Sequence[str] = ("alpaca", "yahoo"),
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        fields: Sequence[str] | None = None,
        tolerance: float | Mapping[str, float] | None = None,
        session: Session = "regular",
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Compare two brokers' raw bars of the same span, and report by symbol and field.

        Both are read as `get_bars` reads: what is missing is fetched, and kept under the broker's
        own key. Bars too new for one of the two are left out.

        Parameters
        ----------
        symbols : str or collection of str
        timeframe : str
            As for `get_bars`.
        brokers : two names
            As ``MARKETDATA_BROKER`` has them; they need not be named there.
        start, end, period : optional
            As for `get_bars`; six months of daily bars, or five sessions, without them.
        fields : sequence of str, optional
            Which columns to compare: ``open high low close volume`` by default. Yahoo has no
            ``vwap`` and ``trade_count``.
        tolerance : float or mapping of str to float, optional
            Largest relative difference, ``|a - b| / max(|a|, |b|)``, that counts as equal: for all
            fields, or by field. By default 0.001 for prices and 0.1 for volume and trade count:
            volumes differ by nature, because brokers count other trades.
        session : {"regular", "extended"}
            Which hours of intraday bars to compare.
        timeout : float, optional
            Seconds the call may take in all.

        Returns
        -------
        DataFrame
            One row a symbol and field (a MultiIndex of these). ``compared``: bars in which both
            have a value. ``equal``: those within ``tolerance``. ``largest``: the largest relative
            difference, NaN where nothing was compared. ``at``: the bar it is in (UTC), NaT where
            nothing differs; ``first`` and ``second``: the values there. ``only_first``,
            ``only_second``: bars that one of them lacks. ``agrees``: whether all compared values
            are equal and no bar is lacking.

        Raises
        ------
        RequestError
            The call cannot be answered as written; a retry does not help.
        UnknownSymbolError
            Neither broker knows these symbols.
        ConfigurationError
            There is no such broker, or its keys are missing; a retry does not help.
        MarketDataError
            One of them failed; a retry helps where the error is transient.
        """
        import pandas as pd

        found, facts = self._compared(
            symbols,
            timeframe,
            brokers=brokers,
            start=start,
            end=end,
            period=period,
            fields=fields,
            tolerance=tolerance,
            session=session,
            timeout=timeout,
        )
        index = pd.MultiIndex.from_tuples(
            [(each.symbol, each.field) for each in found], names=["symbol", "field"]
        )
        stamps = np.array(
            [np.iinfo(np.int64).min if e.at is None else e.at for e in found], np.int64
        ).view("M8[us]")
        frame = pd.DataFrame(
            {
                "compared": [e.compared for e in found],
                "equal": [e.equal for e in found],
                "tolerance": [e.tolerance for e in found],
                "largest": [e.largest for e in found],
                "at": pd.DatetimeIndex(stamps, tz="UTC"),
                "first": [e.values[0] for e in found],
                "second": [e.values[1] for e in found],
                "only_first": [e.only_first for e in found],
                "only_second": [e.only_second for e in found],
                "agrees": [e.agrees for e in found],
            },
            index=index,
        )
        frame.attrs[ATTRS_KEY] = facts
        return frame

    def _compared(
        self,
        symbols: Symbols,
        timeframe: str,
        *,
        brokers: Sequence[str],
        start: Moment | None,
        end: Moment | None,
        period: str | None,
        fields: Sequence[str] | None,
        tolerance: float | Mapping[str, float] | None,
        session: str,
        timeout: float | None,
    ) -> tuple[list[Agreement], Provenance]:
        """Read both brokers' bars and compare them."""
        names, _ = symbol_list(symbols)
        parsed = Timeframe.parse(timeframe)
        check_choice("session", session, ("regular", "extended"))
        chosen = _checked(fields, tolerance)
        if isinstance(brokers, str) or len(brokers) != 2 or brokers[0] == brokers[1]:
            raise RequestError(
                f"brokers={brokers!r} are not two brokers", cure='give ("alpaca", "yahoo")'
            )
        deadline = deadline_of(timeout, self._settings.timeout)
        now_us = self._clock.now_us()
        if start is None and period is None:
            period = _INTRADAY if parsed.intraday else _DAILY
        window = resolve_window(self._calendar(), now_us, start=start, end=end, period=period)
        runtime = self._runtime
        links = [runtime.link_named(name) for name in brokers]
        queries = [
            BarsQuery(
                link.provider,
                link.feed,
                names,
                parsed,
                window,
                cast(Session, session),
                self._settings.max_lookback * DAY,
            )
            for link in links
        ]
        bars = _read(runtime, links, queries, deadline)
        last = min(
            _newest_end(link, query, now_us) for link, query in zip(links, queries, strict=True)
        )
        found = []
        for symbol in names:
            first, second = (
                each[symbol].take(each[symbol].timestamp < last) if symbol in each else Bars.empty()
                for each in bars
            )
            found += compare(symbol, first, second, chosen)
        return found, _facts(links, queries[0], last)


def _checked(
    fields: Sequence[str] | None, tolerance: float | Mapping[str, float] | None
) -> dict[str, float]:
    if isinstance(fields, str):
        fields = [fields]
    named = [*(fields or ()), *(tolerance if isinstance(tolerance, Mapping) else ())]
    for name in named:
        check_choice("field", name, COLUMNS)
    chosen = tolerances_of(fields, tolerance)
    if not all(value >= 0 for value in chosen.values()):
        raise RequestError(
            f"tolerance={tolerance!r} is below 0", cure="give a share, such as 0.001"
        )
    return chosen


def _read(
    runtime: Runtime, links: Sequence[Link], queries: Sequence[BarsQuery], deadline: Deadline
) -> list[dict[str, Bars]]:
    """Return each broker's bars by symbol; a symbol that it does not know is absent."""
    answers = []
    for link, query in zip(links, queries, strict=True):
        answer = link.reader.read(query, deadline)
        runtime.statistics.count(answer)
        answers.append(answer)
    unknown = set(answers[0].unknown).intersection(answers[1].unknown)
    if unknown:
        raise runtime.unknown(sorted(unknown), deadline, links=links)
    return [{symbol: found.bars for symbol, found in a.series.items()} for a in answers]


def _newest_end(link: Link, query: BarsQuery, now_us: int) -> int:
    """Return up to where this broker's bars of the query are closed now."""
    caps = link.broker.capabilities(query.feed)
    ways = caps.bases.get(query.timeframe)
    if not ways:
        raise DataUnavailableError(f"{link.provider} has no {query.timeframe} bars")
    until = BarsQuery(
        query.provider,
        query.feed,
        query.symbols,
        query.timeframe,
        Window(None, query.window.end, None),
    )
    return caching.newest_end(until, ways[0].base, caps, link.calendar(), now_us)


def _facts(links: Sequence[Link], query: BarsQuery, last: int) -> Provenance:
    first, second = links
    facts: dict[str, str | int | float | bool] = {
        "first": f"{first.provider}/{first.feed}",
        "second": f"{second.provider}/{second.feed}",
        "timeframe": query.timeframe.value,
        "adjustment": "raw",
        "session": query.session,
        "end": from_micros(last).isoformat(),
        "simulated": first.source.simulated or second.source.simulated,
    }
    if query.window.start is not None:
        facts["start"] = from_micros(query.window.start).isoformat()
    return Provenance(facts)
