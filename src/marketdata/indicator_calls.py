"""``get_indicators`` and ``indicators``: indicators of bars, from the tier that has them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from marketdata import frames
from marketdata.arguments import (
    Configured,
    Request,
    Symbols,
    check_choice,
    check_forming,
    deadline_of,
    zone_of,
)
from marketdata.bar_answers import BarAnswers, Missing
from marketdata.clock import Deadline
from marketdata.corporate_actions import splits_of
from marketdata.origin import provenance_of, shortened
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment
from marketdata.reader import Answer, SeriesAnswer
from marketdata.types import COLUMNS, Adjustment, Bars, Floats, Session, Timeframe
from marketdata.warning_types import LIBRARY, ShortHistoryWarning

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.indicator_reading import Warmed
    from marketdata.indicators import Indicator

Specification = str | Mapping[str, Any]
Specifications = None | str | Mapping[str, Any] | Sequence[Specification]


@dataclass(slots=True)
class _Found:
    """What is being put together for one call."""

    answer: Answer = field(default_factory=Answer)
    tables: dict[str, Bars] = field(default_factory=dict)
    """By symbol the rows asked for: as `Bars`, with the frame's columns for values."""
    versions: dict[str, int] = field(default_factory=dict)
    unstabilised: set[str] = field(default_factory=set)
    forming: bool = False


class IndicatorCalls(BarAnswers):
    """The calls for indicators."""

    def get_indicators(
        self,
        symbols: Symbols,
        indicators: Specifications = None,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        limit: int | None = None,
        adjustment: Adjustment = "split",
        session: Session = "regular",
        feed: str | None = None,
        field: str | None = None,
        missing: Missing = "raise",
        include_forming: bool = False,
        tz: str | Configured | None = Configured.TZ,
        as_of: Moment | None = None,
        timeout: float | None = None,
        bars: bool = False,
    ) -> pd.DataFrame:
        """Return indicators of closed bars, computed on the bars that `get_bars` would return.

        The history that an indicator needs before the first row is read by itself, so that a
        value does not depend on the window it is asked in: two calls that share a bar agree
        within 1e-9 relative. The newest values of the default set come from Redis while they are
        current.

        Parameters
        ----------
        symbols : str or collection of str
            As for `get_bars`.
        indicators : str, mapping or sequence of these, optional
            Names such as ``"rsi_14"``, ``"macd_12_26_9"``, ``"bbands_20_2"``, pandas-ta's
            spelling (``"BBU_20_2.0"``), or ``{"bbands": {"length": 20, "std": 2.5}}``. Without
            it the default set: RSI (14, 9), SMA (10, 20, 50, 200), EMA (10, 20, 50), MACD
            (12, 26, 9) and Bollinger bands (20, 2). `indicators()` lists what there is.
        timeframe : str
            Of the bars; as for `get_bars`.
        start, end, period, limit
            Which rows, as for `get_bars`: the last 500 where nothing is given.
        adjustment : {"split", "raw", "dividend", "all"}
            Of the bars the values are computed on, as for `get_bars`; prices divided for later
            splits by default, which is what is kept in Redis.
        session : {"regular", "extended"}
            Which hours of intraday bars the values are computed on.
        feed : str, optional
            As for `get_bars`.
        field : str, optional
            One of the columns: return a matrix timestamp x symbol, NaN where no bar is.
        missing : {"raise", "skip"}
            What to do about unknown symbols.
        include_forming : bool
            Append the values with the bar that is still forming.
        tz, as_of, timeout : optional
            As for `get_bars`.
        bars : bool
            Put the columns of the bars before those of the indicators. No name is there twice: the
            indicator ``vwap`` takes the place of the bars' own column of that name.

        Returns
        -------
        DataFrame
            Index as from `get_bars`. Columns in the order asked, float64: the name of each
            indicator, or the name with ``_signal``, ``_hist``, ``_upper``, ``_middle``,
            ``_lower`` where it has several values. NaN only where the series itself is too young;
            a provider that reaches no further back (Yahoo's minutes: 30 days) may leave values
            unstabilised, which ``frame.attrs["marketdata"]`` and one warning say.

        Raises
        ------
        RequestError
            The call cannot be answered as written; an unknown indicator is named with the nearest
            ones. A retry does not help.
        MarketDataError
            As for `get_bars`.
        """
        from marketdata.indicators import resolve

        deadline = deadline_of(timeout, self._settings.timeout)
        check_choice("missing", missing, ("raise", "skip"))
        check_forming(include_forming, as_of)
        chosen = resolve(indicators)
        named = _columns(chosen)
        beside = tuple(n for n, name in enumerate(COLUMNS) if name not in named) if bars else ()
        columns = (*(COLUMNS[n] for n in beside), *named)
        if field is not None:
            check_choice("field", field, columns)
        zone = zone_of(
            self._settings.tz if tz is Configured.TZ else tz,
            Timeframe.parse(timeframe),
            self._calendar(),
        )
        request = self._request(
            symbols,
            timeframe,
            start=start,
            end=end,
            period=period,
            limit=limit,
            adjustment=adjustment,
            session=session,
            feed=feed,
            as_of=as_of,
        )
        found = self._by_instrument(request, chosen, beside, include_forming, missing, deadline)
        frame = self._table(request, found, columns, field, zone)
        runtime = self._runtime
        frame.attrs[frames.ATTRS_KEY] = provenance_of(
            request,
            found.answer,
            action_version=_joined_version(found.versions),
            delayed=runtime.delayed(request.query.feed),
            forming=found.forming,
            simulated=runtime.simulated,
            indicators=[each.name for each in chosen],
            unstabilised=bool(found.unstabilised),
        )
        return frame

    def indicators(self, *, pandas_ta: bool = True) -> pd.DataFrame:
        """Return the catalogue of indicators. Starts nothing.

        Parameters
        ----------
        pandas_ta : bool
            Whether to list pandas-ta's indicators after our own; importing it takes a second.

        Returns
        -------
        DataFrame
            One row an indicator: its name, an example, output columns, parameters with their
            defaults, look-back, formula and public source; see `marketdata.indicators.listing`.
        """
        from marketdata.indicators import listing

        return listing(pandas_ta=pandas_ta)

    # -------------------------------------------------------------------------------- tiers

    def _by_instrument(
        self,
        request: Request,
        chosen: Sequence[Indicator],
        beside: tuple[int, ...],
        include_forming: bool,
        missing: str,
        deadline: Deadline,
    ) -> _Found:
        """Find what is kept under today's symbols, and return it under those that were asked for."""
        query, identities = request.query, self._runtime.identities
        changed = identities.changed(query.provider, query.symbols, query.as_of_us)
        if not changed or query.as_of_us is not None:
            return self._found(request, chosen, beside, include_forming, missing, deadline)
        names = {s: identities.same_as(query.provider, s) for s in query.symbols}
        asked = replace(query, symbols=tuple(dict.fromkeys(names.values())))
        found = self._found(
            replace(request, query=asked), chosen, beside, include_forming, missing, deadline
        )
        found.tables = _relabelled(found.tables, names)
        found.versions = _relabelled(found.versions, names)
        found.answer.series = _relabelled(found.answer.series, names)
        for symbol, lineage in changed.items():
            if symbol in found.answer.series:
                series = replace(found.answer.series[symbol], lineage=identities.text(lineage))
                found.answer.series[symbol] = series
        found.unstabilised = {s for s, name in names.items() if name in found.unstabilised}
        return found

    def _found(
        self,
        request: Request,
        chosen: Sequence[Indicator],
        beside: tuple[int, ...],
        include_forming: bool,
        missing: str,
        deadline: Deadline,
    ) -> _Found:
        """Take what the cache has; read and compute the rest."""
        found = _Found()
        kept = self._runtime.kept_indicators
        served = kept.serves(request, _columns(chosen))
        if served and not include_forming:
            self._take_newest(request, chosen, beside, found, deadline)
        query = request.query
        rest = tuple(s for s in query.symbols if s not in found.tables)
        if len(found.tables):
            self._runtime.statistics.count(found.answer)
        if rest:
            asked = replace(request, query=replace(query, symbols=rest))
            self._compute(asked, chosen, served, beside, include_forming, missing, found, deadline)
        return found

    def _take_newest(
        self,
        request: Request,
        chosen: Sequence[Indicator],
        beside: tuple[int, ...],
        found: _Found,
        deadline: Deadline,
    ) -> None:
        """Take the values that the cache holds, with the rows `beside` of their bars."""
        kept = self._runtime.kept_indicators
        tails = kept.get(request)
        prices = self._newest_bars(request, tuple(tails), deadline) if beside and tails else {}
        limit = request.query.window.limit
        assert limit is not None
        for symbol, tail in tails.items():
            table = kept.selected(tail, _columns(chosen), limit)
            if beside:
                bars = prices[symbol]
                if not np.array_equal(bars.timestamp, table.timestamp):
                    continue  # a bar has closed since, or was corrected
                table = Bars(table.timestamp, _side_by_side(bars.values, beside, table.values))
            found.tables[symbol] = table
            found.versions[symbol] = tail.action_version
            found.answer.series[symbol] = SeriesAnswer(
                Bars.empty(), "redis", tail.revision, tail.fetched_us
            )

    def _newest_bars(
        self, request: Request, symbols: tuple[str, ...], deadline: Deadline
    ) -> dict[str, Bars]:
        runtime = self._runtime
        query = replace(request.query, symbols=symbols)
        answer = runtime.reader.read(query, deadline)
        runtime.adjuster.adjust(query, answer, request.now_us, deadline, request.adjustment)
        return {s: answer.series[s].bars if s in answer.series else Bars.empty() for s in symbols}

    def _compute(
        self,
        request: Request,
        chosen: Sequence[Indicator],
        served: bool,
        beside: tuple[int, ...],
        include_forming: bool,
        missing: str,
        found: _Found,
        deadline: Deadline,
    ) -> None:
        """Read bars with their history, compute, and leave the newest values in the cache."""
        from marketdata.indicator_codec import CAPACITY
        from marketdata.indicator_reading import WarmReader, bars_needed
        from marketdata.kept_indicators import KEPT, KEPT_COLUMNS, version_of

        runtime, query = self._runtime, request.query
        kept = runtime.kept_indicators
        engine = KEPT if served else tuple(chosen)
        wide = _with_limit(query, CAPACITY) if served else query
        warmed = WarmReader(runtime).read(
            wide,
            bars_needed(engine, query.timeframe, query.session),
            lambda asked: self._answer(replace(request, query=asked), missing, deadline),
            deadline,
        )
        answer = warmed.answer
        computed = _columns(engine)
        leaving = (
            kept.covers(request)
            and kept.can_leave(query)
            and set(KEPT_COLUMNS) <= set(computed)
            and not warmed.unstabilised
        )
        actions: dict[str, tuple[int, int]] = {}
        if leaving:
            filled = [s for s, a in answer.series.items() if len(a.bars)]
            begins = min((int(answer.series[s].bars.timestamp[0]) for s in filled), default=0)
            actions = kept.known_actions(query, filled, begins, deadline)
        applied = self._adjusted(replace(request, query=wide), answer, deadline)
        closed = {s: len(a.bars) for s, a in answer.series.items()}
        found.forming = include_forming and self._append_forming(request, answer, applied, deadline)
        values = self._values(engine, answer)
        if leaving:
            places = [computed.index(column) for column in KEPT_COLUMNS]
            kept.leave(
                request,
                {s: (a, warmed.first[s]) for s, a in answer.series.items()},
                {s: v[places] for s, v in values.items()},
                {s: splits_of(told) for s, told in applied.in_effect.items()},
                actions,
            )
        shown = [computed.index(column) for column in _columns(chosen)]
        for symbol, series in answer.series.items():
            first = warmed.first[symbol]
            limit = query.window.limit
            if limit is not None:
                series.truncated = series.truncated and closed[symbol] - first < limit
                first = max(first, closed[symbol] - limit)
            rows = values[symbol][shown, first:]
            if beside:
                rows = _side_by_side(series.bars.values[:, first:], beside, rows)
            found.tables[symbol] = Bars(series.bars.timestamp[first:], np.ascontiguousarray(rows))
            found.versions[symbol] = version_of(symbol, applied, series.lineage)
            found.answer.series[symbol] = series
        found.answer.trace = answer.trace
        found.answer.unknown = answer.unknown
        found.unstabilised |= warmed.unstabilised
        self._warn_of_history(query, warmed)

    def _values(self, engine: Sequence[Indicator], answer: Answer) -> dict[str, Floats]:
        from marketdata.indicator_state import computed

        calendar = self._calendar()
        return {s: computed(engine, a.bars, calendar) for s, a in answer.series.items()}

    def _warn_of_history(self, query: BarsQuery, warmed: Warmed) -> None:
        if not warmed.unstabilised:
            return
        warnings.warn(
            f"indicators of {shortened(sorted(warmed.unstabilised))} rest on less {query.timeframe} "
            f"history than they need: {query.provider} gives, or the store holds, no more; the "
            "first values may change with the window",
            ShortHistoryWarning,
            skip_file_prefixes=LIBRARY,
        )

    # -------------------------------------------------------------------------------- shape

    def _table(
        self,
        request: Request,
        found: _Found,
        columns: Sequence[str],
        field: str | None,
        zone: str | None,
    ) -> pd.DataFrame:
        tables = found.tables
        if zone is None:
            tables = {s: self._dated(b) for s, b in tables.items()}
        if field is not None:
            order = [s for s in request.query.symbols if s in tables]
            return frames.field_matrix(tables, order, field, zone, columns)
        index = _index_of(tuple(columns))
        if not request.single:
            return frames.multi_frame(tables, zone, index)
        table = tables.get(request.query.symbols[0])
        if table is None:
            table = Bars(np.empty(0, np.int64), np.empty((len(columns), 0)))
        return frames.single_frame(table, zone, index)


def _relabelled[T](found: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return what was found under today's symbols under those that were asked for."""
    return {symbol: found[name] for symbol, name in names.items() if name in found}


@lru_cache(maxsize=64)
def _index_of(columns: tuple[str, ...]) -> pd.Index[str]:
    import pandas as pd

    return pd.Index(columns)


def _columns(indicators: Sequence[Indicator]) -> tuple[str, ...]:
    return tuple(column for each in indicators for column in each.columns)


def _side_by_side(bars: Floats, beside: tuple[int, ...], values: Floats) -> Floats:
    """Return the rows `beside` of the bars' values, and then the indicators'."""
    chosen = bars if len(beside) == len(bars) else bars[list(beside)]
    return np.concatenate([chosen, values])


def _with_limit(query: BarsQuery, limit: int) -> BarsQuery:
    return replace(query, window=replace(query.window, limit=limit))


def _joined_version(versions: Mapping[str, int]) -> str:
    """Return a word for the actions of all symbols; of one symbol that of `adjusting`."""
    if len(versions) == 1:
        (number,) = versions.values()
        return f"{number:012x}" if number else "0"
    if not any(versions.values()):
        return "0"
    parts = "|".join(f"{symbol}:{versions[symbol]}" for symbol in sorted(versions))
    return hashlib.blake2b(parts.encode(), digest_size=6).hexdigest()
