"""``get_latest_*`` and ``get_snapshots``: what the broker has now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast, overload

from marketdata.arguments import Symbols, check_feed, deadline_of, symbol_list
from marketdata.connected import Connected
from marketdata.errors import DataUnavailableError

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.clock import Deadline
    from marketdata.latest import Bar, Quote, Trade


class LatestCalls(Connected):
    """The calls for the newest trade, quote, bar or snapshot; nothing of it is stored."""

    @overload
    def get_latest_bar(  # type: ignore[overload-overlap]  # a string is a collection of strings
        self, symbols: str, *, feed: str | None = None, timeout: float | None = None
    ) -> Bar: ...
    @overload
    def get_latest_bar(
        self, symbols: Collection[str], *, feed: str | None = None, timeout: float | None = None
    ) -> pd.DataFrame: ...
    def get_latest_bar(
        self, symbols: Symbols, *, feed: str | None = None, timeout: float | None = None
    ) -> Bar | pd.DataFrame:
        """Return the newest minute bar, which may still be forming; kept for a second.

        Parameters
        ----------
        symbols : str or collection of str
            One symbol gives a `Bar`, any other collection a DataFrame with a row a symbol.
        feed : str, optional
            A feed of the broker, ``delayed_sip`` among them at Alpaca; the configured one by
            default.
        timeout : float, optional
            Seconds the call may take in all.
        """
        return cast("Bar | pd.DataFrame", self._latest("bar", symbols, feed, timeout))

    @overload
    def get_latest_trade(  # type: ignore[overload-overlap]  # a string is a collection of strings
        self, symbols: str, *, feed: str | None = None, timeout: float | None = None
    ) -> Trade: ...
    @overload
    def get_latest_trade(
        self, symbols: Collection[str], *, feed: str | None = None, timeout: float | None = None
    ) -> pd.DataFrame: ...
    def get_latest_trade(
        self, symbols: Symbols, *, feed: str | None = None, timeout: float | None = None
    ) -> Trade | pd.DataFrame:
        """Return the newest trade; kept for a second.

        Parameters
        ----------
        symbols : str or collection of str
            One symbol gives a `Trade`, any other collection a DataFrame with a row a symbol.
        feed : str, optional
            A feed of the broker, ``delayed_sip`` among them at Alpaca; the configured one by
            default.
        timeout : float, optional
            Seconds the call may take in all.

        Raises
        ------
        DataUnavailableError
            The broker has no trades (Yahoo); a retry does not help.
        """
        return cast("Trade | pd.DataFrame", self._latest("trade", symbols, feed, timeout))

    @overload
    def get_latest_quote(  # type: ignore[overload-overlap]  # a string is a collection of strings
        self, symbols: str, *, feed: str | None = None, timeout: float | None = None
    ) -> Quote: ...
    @overload
    def get_latest_quote(
        self, symbols: Collection[str], *, feed: str | None = None, timeout: float | None = None
    ) -> pd.DataFrame: ...
    def get_latest_quote(
        self, symbols: Symbols, *, feed: str | None = None, timeout: float | None = None
    ) -> Quote | pd.DataFrame:
        """Return the newest quote; kept for a second.

        Parameters
        ----------
        symbols : str or collection of str
            One symbol gives a `Quote`, any other collection a DataFrame with a row a symbol.
        feed : str, optional
            A feed of the broker, ``delayed_sip`` among them at Alpaca; the configured one by
            default.
        timeout : float, optional
            Seconds the call may take in all.

        Raises
        ------
        DataUnavailableError
            The broker has no quotes (Yahoo); a retry does not help.
        """
        return cast("Quote | pd.DataFrame", self._latest("quote", symbols, feed, timeout))

    def get_snapshots(
        self, symbols: Symbols, *, feed: str | None = None, timeout: float | None = None
    ) -> pd.DataFrame:
        """Return latest trade, quote, minute bar, daily bar and previous daily bar by symbol.

        Parameters
        ----------
        symbols : str or collection of str
        feed, timeout : optional
            As for `get_latest_trade`.

        Returns
        -------
        DataFrame
            Index ``symbol``; columns such as ``trade_price quote_bid_price daily_close``; NaN
            where the broker gave none.
        """
        names, _ = symbol_list(symbols)
        return cast("pd.DataFrame", self._latest("snapshot", names, feed, timeout))

    def _latest(
        self, kind: str, symbols: Symbols, feed: str | None, timeout: float | None
    ) -> object:
        names, single = symbol_list(symbols)
        check_feed(feed)
        deadline = deadline_of(timeout, self._settings.timeout)
        runtime = self._runtime
        named = runtime.feed_named(feed, latest=True)
        try:
            found = self._latest_today(kind, names, single, named, deadline)
        except DataUnavailableError:
            if not (single and self._renamed(names, named, deadline)):
                raise
            return self._latest_today(kind, names, single, named, deadline)
        if not single and self._renamed(_without(found), named, deadline):
            return self._latest_today(kind, names, single, named, deadline)
        return found

    def _latest_today(
        self, kind: str, names: tuple[str, ...], single: bool, feed: str, deadline: Deadline
    ) -> object:
        """Ask under today's symbols; answer under those that were asked for."""
        runtime = self._runtime
        today = [runtime.identities.current(runtime.provider, name) for name in names]
        get = runtime.chain.latest if runtime.links[1:] else runtime.latest.get
        found = get(kind, list(dict.fromkeys(today)), single, feed, deadline)
        if today == list(names):
            return found
        from marketdata.latest import relabelled

        return relabelled(found, names, today)

    def _renamed(self, names: Sequence[str], feed: str, deadline: Deadline) -> bool:
        """Ask what has become of symbols of which there is nothing; return whether any of them
        trades under another name, which was not known before."""
        runtime = self._runtime
        if not names:
            return False
        before = runtime.identities.today(runtime.provider, names)
        link = runtime.links[0]
        link.reader.learn(link.provider, feed, names, deadline)
        return runtime.identities.today(runtime.provider, names) != before


def _without(found: object) -> list[str]:
    """Return the symbols of an answer of which there is nothing."""
    frame = cast("pd.DataFrame", found)
    stamps = frame[[c for c in frame.columns if c.endswith("timestamp")]]
    return [str(symbol) for symbol in frame.index[stamps.isna().all(axis=1)]]
