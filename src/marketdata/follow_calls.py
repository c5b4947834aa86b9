"""``follow``: each newly closed bar once, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketdata.arguments import Configured, Symbols, deadline_of
from marketdata.bar_answers import BarAnswers
from marketdata.ranges import Moment
from marketdata.subscription_calls import refuse_unknown
from marketdata.types import Adjustment, Session, Timeframe

if TYPE_CHECKING:
    from marketdata.following import Follower, Waiter


class FollowCalls(BarAnswers):
    """The call that waits for bars."""

    def follow(
        self,
        symbols: Symbols,
        timeframe: str = "1min",
        *,
        start: Moment | None = None,
        adjustment: Adjustment | None = None,
        session: Session = "regular",
        feed: str | None = None,
        tz: str | Configured | None = Configured.TZ,
        timeout: float | None = None,
    ) -> Follower:
        """Wait for bars to close and give each one once, in order: ``for bars in md.follow(...)``.

        A bar is given when it has closed and settled (a minute: 3 seconds after its end). It is
        read as `get_bars` reads, so that it works with a daemon (`marketdata up`) and without: the
        symbols are subscribed while the iterator lives, its notices wake the iterator, and where
        none comes the bars are fetched when they are due. Nights and weekends are slept through.
        Restarts of the daemon, of Redis and of PostgreSQL cost time and no bar. Of several brokers
        the first one alone is followed.

        A frame holds one bar time. Symbols that did not trade are not in it. The bars of a symbol
        always ascend: one that the broker publishes late is given late, and not at all once a
        later bar of its symbol was given; one that is corrected is not given again. `get_bars` has
        both.

        Parameters
        ----------
        symbols : str or collection of str
            As for `get_bars`: a string gives frames with a DatetimeIndex, any other collection
            frames with a MultiIndex (symbol, timestamp).
        timeframe : str
            ``1min 5min 15min 30min 1hour 4hour 1day 1week 1month`` or a usual alias.
        start : str, date, datetime or Timestamp, optional
            Give the bars labelled from here on first (inclusive), then the new ones, without a gap
            or a repeat. To go on after a restart: the last label handled, plus a microsecond. By
            default the first bar given is the first one that closes after the call.
        adjustment, session, feed, tz : optional
            As for `get_bars`.
        timeout : float, optional
            Seconds one read may take (``MARKETDATA_TIMEOUT`` by default), not the waiting.

        Returns
        -------
        Follower
            An iterator of DataFrames like those of `get_bars`, ended by its `close` or by ``with``.
            It never ends by itself.

        Raises
        ------
        RequestError, UnknownSymbolError
            At the call; a retry does not help.
        MarketDataError
            From the iteration, what a retry cannot cure. Transient errors are retried, after a
            pause of up to half a minute.
        """
        from marketdata.following import Follower

        deadline = deadline_of(timeout, self._settings.timeout)
        zone = self._zone(tz, Timeframe.parse(timeframe))
        request = self._request(
            symbols,
            timeframe,
            start=start,
            end=None,
            period=None,
            limit=1 if start is None else None,
            session=session,
            feed=feed,
            adjustment=adjustment,
        )
        refuse_unknown(self._runtime, request.query.symbols, deadline)
        assert deadline.seconds is not None
        return Follower(
            request,
            zone,
            request.query.window.start,
            timeout=deadline.seconds,
            connect=self._lazy.get,
            read=lambda asked, until: self._answer(asked, "raise", until),
            dated=self._dated,
            waiter=self._make_waiter(),
        )

    def _make_waiter(self) -> Waiter:
        from marketdata.following import ClockWaiter

        return ClockWaiter(self._clock)
