"""``get_indicators`` and ``indicators``: indicators of bars, from the tier that has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
)
from marketdata.bar_answers import Missing
from marketdata.indicator_answers import Found, IndicatorAnswers, Wanted, columns_of
from marketdata.origin import provenance_of
from marketdata.ranges import Moment
from marketdata.types import COLUMNS, Adjustment, Bars, Session, Timeframe

if TYPE_CHECKING:
    import pandas as pd

Specification = str | Mapping[str, Any]
Specifications = None | str | Mapping[str, Any] | Sequence[Specification]


class IndicatorCalls(IndicatorAnswers):
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
        named = columns_of(chosen)
        beside = tuple(n for n, name in enumerate(COLUMNS) if name not in named) if bars else ()
        columns = (*(COLUMNS[n] for n in beside), *named)
        if field is not None:
            check_choice("field", field, columns)
        zone = self._zone(tz, Timeframe.parse(timeframe))
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
        wanted = Wanted(chosen, beside, include_forming, missing)
        found = self._indicators_of(request, wanted, deadline)
        frame = self._table(request, found, columns, field, zone)
        runtime = self._runtime
        frame.attrs[frames.ATTRS_KEY] = provenance_of(
            request,
            found.answer,
            action_version=_joined_version(found.versions),
            delayed=runtime.chain.delayed(request.query, found.answer),
            forming=found.forming,
            simulated=runtime.chain.simulated(found.answer),
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

    # -------------------------------------------------------------------------------- shape

    def _table(
        self,
        request: Request,
        found: Found,
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


@lru_cache(maxsize=64)
def _index_of(columns: tuple[str, ...]) -> pd.Index[str]:
    import pandas as pd

    return pd.Index(columns)


def _joined_version(versions: Mapping[str, int]) -> str:
    """Return a word for the actions of all symbols; of one symbol that of `applied`."""
    if len(versions) == 1:
        (number,) = versions.values()
        return f"{number:012x}" if number else "0"
    if not any(versions.values()):
        return "0"
    parts = "|".join(f"{symbol}:{versions[symbol]}" for symbol in sorted(versions))
    return hashlib.blake2b(parts.encode(), digest_size=6).hexdigest()
