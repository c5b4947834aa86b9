"""The client: checks what was asked, reads through the tiers, shapes the answer.

`api` holds the same methods as module functions on a default client.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from marketdata import explaining, frames
from marketdata.adjusting import action_version
from marketdata.arguments import (
    Configured,
    Request,
    Symbols,
    adjustment_of,
    check_choice,
    check_feed,
    deadline_of,
    refuse_as_of,
    symbol_list,
    zone_of,
)
from marketdata.clock import Deadline
from marketdata.errors import (
    MarketDataError,
    UnknownSymbolError,
    UnsupportedRequestError,
)
from marketdata.forming import forming_bar
from marketdata.known_calls import KnownCalls
from marketdata.latest_calls import LatestCalls
from marketdata.origin import print_provenance, provenance_of
from marketdata.progress import progress
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, resolve_window
from marketdata.reader import Answer
from marketdata.spans import Span
from marketdata.types import (
    COLUMNS,
    DAY,
    Adjustment,
    Bars,
    Session,
    Split,
    Timeframe,
)
from marketdata.warning_types import LIBRARY, MissingSymbolsWarning

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.explaining import Plan

log = logging.getLogger("marketdata")

Missing = Literal["raise", "skip"]
_SHOWN: Final = 8


class Client(KnownCalls, LatestCalls):
    """One configured way to the tiers. Thread-safe and fork-safe; servers are started on first use.

    Parameters
    ----------
    settings : Settings
        See `connect`, which reads them.
    clock : Clock, optional
        Market time; by default the clock that the settings name.
    """

    # ---------------------------------------------------------------------------------- bars

    def get_bars(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        limit: int | None = None,
        adjustment: Adjustment | None = None,
        session: Session = "regular",
        feed: str | None = None,
        field: str | None = None,
        missing: Missing = "raise",
        include_forming: bool = False,
        tz: str | Configured | None = Configured.TZ,
        as_of: Moment | None = None,
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Return bars: from Redis, else PostgreSQL, else the broker, keeping what was fetched.

        Parameters
        ----------
        symbols : str or collection of str
            One symbol gives a frame with a DatetimeIndex; any other collection, even of one, a
            MultiIndex (symbol, timestamp). ``BRK.B``, ``BRK-B`` and ``BRK/B`` are the same.
        timeframe : str
            ``1min 5min 15min 30min 1hour 4hour 1day 1week 1month`` or a usual alias.
        start, end : str, date, datetime or Timestamp, optional
            Bars labelled (by their open) in ``[start, end)``. ISO dates and `datetime.date` are
            midnight in the exchange's zone; ``"today"``, ``"now"``, ``"-5d"`` count from now;
            datetimes must carry a zone. `end` defaults to now.
        period : str, optional
            Instead of `start`: ``5d`` (sessions), ``1mo 6mo 1y 2y ytd max``, back from `end`.
        limit : int, optional
            The last N closed bars of each symbol, inside the window if there is one. Without any
            of `start`, `period` and `limit`: the last 500.
        adjustment : {"raw", "split", "dividend", "all"}, optional
            Prices as traded (``raw``, the default unless ``MARKETDATA_ADJUSTMENT`` says otherwise)
            or divided for later splits. ``dividend`` and ``all`` are not served yet.
        session : {"regular", "extended"}
            Which hours of intraday bars to return; both are stored.
        feed : str, optional
            A feed of the broker (``sip``, ``iex``); the configured one by default.
        field : str, optional
            One of the columns: return a matrix timestamp x symbol, NaN where no bar is.
        missing : {"raise", "skip"}
            What to do about unknown symbols: raise, naming all of them, or leave them out with
            one warning.
        include_forming : bool
            Append the bar that is still forming, fetched live and never stored.
        tz : str, optional
            Zone of the index: an IANA name, ``"exchange"``, or None for naive session dates
            (daily and coarser). Default UTC (``MARKETDATA_TZ``).
        as_of : optional
            Not served yet.
        timeout : float, optional
            Seconds the call may take in all (``MARKETDATA_TIMEOUT``, 300 by default).

        Returns
        -------
        DataFrame
            Index: bar open, ``datetime64[us]`` in `tz`, unique and ascending (daily: exchange
            midnight of the session; week and month: that of their first session). Columns:
            ``open high low close volume vwap trade_count``, float64, NaN where the source has
            none, also when empty. A bar is there only where trades were. The frame owns its
            memory; ``frame.attrs["marketdata"]`` says where it came from.

        Raises
        ------
        RequestError
            The call cannot be answered as written (a retry does not help).
        UnknownSymbolError
            The broker's assets endpoint does not know these symbols.
        DataUnavailableError
            Not entitled, too old, or not stored while offline.
        BrokerError, StoreError
            A tier failed; the transient ones (`error.transient`) are worth a retry, which goes on
            where this call stopped.
        """
        deadline = deadline_of(timeout, self._settings.timeout)
        check_choice("missing", missing, ("raise", "skip"))
        if field is not None:
            check_choice("field", field, COLUMNS)
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
        runtime = self._runtime
        answer = self._answer(request, missing, deadline)
        splits: Mapping[str, Sequence[Split]] = {}
        if request.adjustment == "raw":
            runtime.adjuster.warn_of_splits(request.query, answer, deadline)
        else:
            splits = runtime.adjuster.adjust(request.query, answer, request.now_us, deadline)
        forming = include_forming and self._append_forming(request, answer, splits, deadline)
        frame = self._shape(request, answer, field, zone)
        frame.attrs[frames.ATTRS_KEY] = provenance_of(
            request,
            answer,
            action_version=action_version(splits),
            delayed=runtime.delayed(request.query.feed),
            forming=forming,
            simulated=runtime.simulated,
        )
        return frame

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
            raise self._unknown(answer.unknown, len(query.symbols), deadline)
        if answer.unknown:
            warnings.warn(
                f"left out unknown symbols: {', '.join(answer.unknown)}",
                MissingSymbolsWarning,
                skip_file_prefixes=LIBRARY,
            )
        return answer

    def _unknown(self, names: list[str], asked: int, deadline: Deadline) -> UnknownSymbolError:
        runtime = self._runtime
        stored = runtime.known_symbols()
        hints = []
        for name in names[:_SHOWN]:
            nearest = runtime.verdicts.nearest(name, stored, deadline)
            hints.append(f"{name} (did you mean {' or '.join(nearest)}?)" if nearest else name)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return UnknownSymbolError(
            f"{runtime.provider} does not know {', '.join(hints)}{more}",
            cure='correct them, or leave them out with missing="skip"' if asked > 1 else None,
            symbols=names,
        )

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

    # --------------------------------------------------------------------------------- shape

    def _shape(
        self, request: Request, answer: Answer, field: str | None, zone: str | None
    ) -> pd.DataFrame:
        series = {s: a.bars for s, a in answer.series.items()}
        if zone is None:
            series = {s: self._dated(b) for s, b in series.items()}
        if field is not None:
            order = [s for s in request.query.symbols if s in series]
            return frames.field_matrix(series, order, field, zone)
        if not request.single:
            return frames.multi_frame(series, zone)
        bars = series.get(request.query.symbols[0])
        return frames.single_frame(Bars.empty() if bars is None else bars, zone)

    def _dated(self, bars: Bars) -> Bars:
        """Return daily bars labelled by their session's date at 00:00 of no zone."""
        calendar = self._calendar()
        days = calendar.session_index(bars.timestamp)
        local = (calendar.midnight[days] + DAY // 2) // DAY * DAY
        return Bars(local, bars.values)

    # ---------------------------------------------------------------------- what is known

    def explain(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        limit: int | None = None,
        session: Session = "regular",
        feed: str | None = None,
    ) -> Plan:
        """Return what `get_bars` with the same parameters would do; fetches nothing.

        Parameters
        ----------
        symbols, timeframe, start, end, period, limit, session, feed
            As for `get_bars`.

        Returns
        -------
        Plan
            Spans by tier, and the broker calls, bars and seconds they would cost.
        """
        request = self._request(
            symbols,
            timeframe,
            start=start,
            end=end,
            period=period,
            limit=limit,
            session=session,
            feed=feed,
        )
        return explaining.explain(self._runtime, request.query, request.now_us)

    def stats(self) -> dict[str, int]:
        """Return what this client did in this process so far. Starts nothing.

        Returns
        -------
        dict
            ``reads``: calls of `get_bars`. ``series_from_redis``, ``series_from_postgres``,
            ``series_from_broker``: symbols by the lowest tier that had to be asked.
            ``broker_pages``, ``bars_fetched``, ``bars_flagged``: what those calls fetched;
            ``bars_rejected_<reason>``: bars they did not keep. ``redis_hits``, ``redis_misses``,
            ``redis_stale``, ``redis_damaged``: cached blocks; ``redis_errors``: failed Redis
            calls. ``broker_requests``: HTTP requests sent to the broker, of any kind.
        """
        from marketdata.wiring import stats_of_nothing

        running = self._lazy.running
        return stats_of_nothing() if running is None else running.stats()

    def provenance(self, frame: pd.DataFrame) -> None:
        """Print where `frame` came from, one fact a line.

        Parameters
        ----------
        frame : DataFrame
            From `get_bars`; the facts themselves are in ``frame.attrs["marketdata"]``.
        """
        print_provenance(frame)

    def plot(self, frame: pd.DataFrame, **options: Any) -> Any:
        """Return a candlestick figure of `frame`; needs the extra ``[plot]``.

        Parameters
        ----------
        frame : DataFrame
            From `get_bars`.
        **options
            ``path`` writes one HTML page; all of them: see `marketdata.plotting.plot`.

        Raises
        ------
        MissingDependencyError
            plotly is not installed.
        """
        from marketdata.plotting import plot

        return plot(frame, **options)

    # ------------------------------------------------------------------------- not served yet

    def get_indicators(self, *_: object, **__: object) -> pd.DataFrame:
        """Not served yet: raises `UnsupportedRequestError`."""
        raise _not_yet("get_indicators", "compute them from get_bars() for now")

    def follow(self, *_: object, **__: object) -> Any:
        """Not served yet: raises `UnsupportedRequestError`."""
        raise _not_yet("follow", "call get_bars(..., limit=1) in a loop for now")

    def subscribe(self, *_: object, **__: object) -> None:
        """Not served yet: raises `UnsupportedRequestError`."""
        raise _not_yet("subscribe", "get_bars() keeps what it fetches without a subscription")

    def unsubscribe(self, *_: object, **__: object) -> None:
        """Not served yet: raises `UnsupportedRequestError`."""
        raise _not_yet("unsubscribe", "there are no subscriptions yet")

    def indicators(self) -> Any:
        """Not served yet: raises `UnsupportedRequestError`."""
        raise _not_yet("indicators", "compute them from get_bars() for now")


def connect(**settings: Any) -> Client:
    """Return a client of its own, configured by keywords over environment, ``.env`` and file.

    Parameters
    ----------
    **settings
        Any setting by its lower-case name without prefix: ``broker="yahoo"``,
        ``database_url=...``, ``timeout=10``.

    Raises
    ------
    ConfigurationError
        An unknown or unusable setting; a retry does not help.
    """
    from marketdata.config import Settings

    return Client(Settings.load(**settings))


def _not_yet(what: str, instead: str) -> MarketDataError:
    return UnsupportedRequestError(f"{what}() is not part of this release", cure=instead)
