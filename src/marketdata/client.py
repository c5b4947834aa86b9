"""The client: checks what was asked, reads through the tiers, shapes the answer.

`api` holds the same methods as module functions on a default client.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from marketdata import explaining, frames
from marketdata.action_calls import ActionCalls
from marketdata.answers import Answer
from marketdata.applied import action_version
from marketdata.arguments import (
    Configured,
    Request,
    Symbols,
    check_choice,
    check_forming,
    deadline_of,
)
from marketdata.bar_answers import Missing
from marketdata.cross_check_calls import CrossCheckCalls
from marketdata.database_calls import DatabaseCalls
from marketdata.follow_calls import FollowCalls
from marketdata.indicator_calls import IndicatorCalls
from marketdata.known_calls import KnownCalls
from marketdata.latest_calls import LatestCalls
from marketdata.origin import print_provenance, provenance_of
from marketdata.plot_calls import PlotCalls
from marketdata.ranges import Moment
from marketdata.revision_calls import RevisionCalls
from marketdata.session_calls import SessionCalls
from marketdata.subscription_calls import SubscriptionCalls
from marketdata.symbol_calls import SymbolCalls
from marketdata.types import (
    COLUMNS,
    Adjustment,
    Bars,
    Session,
    Timeframe,
)

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.explaining import Plan

log = logging.getLogger("marketdata")


class Client(
    ActionCalls,
    IndicatorCalls,
    PlotCalls,
    KnownCalls,
    LatestCalls,
    SubscriptionCalls,
    SymbolCalls,
    FollowCalls,
    CrossCheckCalls,
    RevisionCalls,
    SessionCalls,
    DatabaseCalls,
):
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
            or, at full precision, adjusted for what followed: ``split`` for splits and stock
            dividends (volumes too), ``dividend`` for cash dividends and spin-offs, ``all`` for
            both. The factors are those of CRSP; see `marketdata.adjust`.
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
        as_of : str, date, datetime or Timestamp, optional
            Return what was known at this moment, written as `start` is: bars that had closed by
            then, of each the newest revision observed by then, adjusted for the actions that had
            taken effect and been announced by then. What was first observed later, by a backfill,
            counts as known when it closed; the provenance says how much that is. `limit`,
            `period`, ``"now"`` and ``"today"`` count back from it, and a later `end` is cut.
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
            Not entitled, too old, or not stored while offline; or a price is missing that an
            adjustment is measured by.
        DataQualityError
            The adjustment crosses a corporate action without an unambiguous factor, which is
            named (a retry does not help).
        BrokerError, StoreError
            A tier failed; the transient ones (`error.transient`) are worth a retry, which goes on
            where this call stopped.
        """
        deadline = deadline_of(timeout, self._settings.timeout)
        check_choice("missing", missing, ("raise", "skip"))
        check_forming(include_forming, as_of)
        if field is not None:
            check_choice("field", field, COLUMNS)
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
        runtime = self._runtime
        answer = self._answer(request, missing, deadline, chain=True)
        applied, forming = self._finished(request, answer, deadline, include_forming)
        frame = self._shape(request, answer, field, zone)
        frame.attrs[frames.ATTRS_KEY] = provenance_of(
            request,
            answer,
            action_version=action_version(applied),
            delayed=runtime.chain.delayed(request.query, answer),
            forming=forming,
            simulated=runtime.chain.simulated(answer),
        )
        return frame

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
