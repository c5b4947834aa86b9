"""``subscribe`` and ``unsubscribe``: which symbols the daemon keeps fresh."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marketdata.arguments import Symbols, deadline_of, every_symbol
from marketdata.clock import from_micros
from marketdata.connected import Connected
from marketdata.corporate_actions import ActionKind
from marketdata.types import Timeframe
from marketdata.warning_types import LIBRARY, EndedSymbolWarning

if TYPE_CHECKING:
    from marketdata.clock import Deadline
    from marketdata.subscriptions import Subscription
    from marketdata.wiring import Runtime


class SubscriptionCalls(Connected):
    """The calls that say what is wanted."""

    def subscribe(
        self,
        symbols: Symbols,
        timeframe: str = "1min",
        *,
        owner: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Subscription:
        """Have the daemon keep these bars fresh, from now until this client ends.

        What is wanted is a lease of 15 minutes, which a thread of this process renews. `close`
        ends it; a process that exits or is killed renews nothing, and its leases run out. So does
        the fetching; bars stay. To subscribe for good: ``marketdata subscribe``. Calling it again
        changes nothing but the priority.

        Parameters
        ----------
        symbols : str or collection of str
            Nothing is subscribed if one of them cannot be.
        timeframe : str
            Of the bars that will be read; where they derive from minutes or days, those are kept.
        owner : str, optional
            Whose subscription it is; ``user@host/program`` by default. A symbol is kept fresh as
            long as any owner has a lease on it.
        priority : int
            From -100 to 100: what is higher is fetched first.
        timeout : float, optional
            Seconds the call may take in all (``MARKETDATA_TIMEOUT`` by default).

        Returns
        -------
        Subscription
            ``owner``, ``timeframe``, canonical ``symbols``, ``priority`` and ``lease`` (seconds).

        Raises
        ------
        InvalidSymbolError, InvalidTimeframeError, RequestError
            Names every malformed symbol; a retry does not help.
        UnknownSymbolError
            Names every symbol that the first broker says does not exist, and what to do about those
            that a later one knows.
        StoreError
            Nothing is subscribed; a retry helps where it is transient.
        """
        from marketdata.subscriptions import owner_of, priority_of

        names, _ = every_symbol(symbols)
        parsed = Timeframe.parse(timeframe)
        owner, priority = owner_of(owner), priority_of(priority)
        deadline = deadline_of(timeout, self._settings.timeout)
        runtime = self._runtime
        refuse_unknown(runtime, names, deadline)
        warn_of_ended(runtime, names)
        return runtime.leases.hold(owner, names, parsed, priority=priority)

    def unsubscribe(
        self,
        symbols: Symbols | None = None,
        timeframe: str | None = None,
        *,
        owner: str | None = None,
    ) -> int:
        """End an owner's subscriptions, whichever client made them, pinned ones too.

        What other owners want stays wanted; stored bars stay. What is not subscribed is no error.

        Parameters
        ----------
        symbols : str or collection of str, optional
            Every symbol by default.
        timeframe : str, optional
            Every timeframe by default.
        owner : str, optional
            ``user@host/program`` by default.

        Returns
        -------
        int
            How many subscriptions, of a symbol at a timeframe, this ended.

        Raises
        ------
        InvalidSymbolError, InvalidTimeframeError, RequestError
            A retry does not help.
        StoreError
            Nothing has ended; a retry helps where it is transient.
        """
        from marketdata.subscriptions import owner_of

        names = None if symbols is None else every_symbol(symbols)[0]
        parsed = None if timeframe is None else Timeframe.parse(timeframe)
        owner = owner_of(owner)
        runtime = self._runtime
        ended = runtime.subscriptions.unsubscribe(owner, names, parsed)
        runtime.leases.drop(owner, names, parsed)
        return len(ended)


def refuse_unknown(runtime: Runtime, symbols: Sequence[str], deadline: Deadline) -> None:
    """Raise `UnknownSymbolError` if the primary broker says that some of these do not exist. What is
    stored of it already exists; where it gives no verdict, nothing is refused."""
    stored = {key.symbol for key in runtime.store.series(symbols) if key[0] == runtime.provider}
    stored.update(runtime.identities.changed(runtime.provider, symbols))
    verdicts = runtime.verdicts.of([s for s in symbols if s not in stored], deadline)
    unknown = [symbol for symbol, known in verdicts.items() if known is False]
    if unknown:
        # A name that was given up is no unknown one: it means what goes on under another name.
        link = runtime.links[0]
        renamed = link.reader.learn(link.provider, link.feed, unknown, deadline)
        unknown = [symbol for symbol in unknown if symbol not in renamed]
    if unknown:
        raise runtime.unknown(unknown, deadline, _elsewhere(runtime, unknown, deadline))


def _elsewhere(runtime: Runtime, unknown: Sequence[str], deadline: Deadline) -> str | None:
    """Return what to do about symbols that only a later broker of the chain knows."""
    for link in runtime.links[1:]:
        verdicts = link.verdicts.of(unknown, deadline)
        known = " ".join(symbol for symbol in unknown if verdicts[symbol])
        if known:
            kind = link.source.kind
            return (
                f"{link.provider} knows {known}, but subscriptions work on the first broker alone: "
                f"get_bars reads it as it is, marketdata backfill {known} --broker {kind} stores it, "
                f"and a daemon with MARKETDATA_BROKER={kind} keeps it fresh"
            )
    return None


def ended_symbols(runtime: Runtime, symbols: Sequence[str]) -> dict[str, str]:
    """Return why and since when nothing trades any more of what these symbols mean; most do."""
    identities, provider = runtime.identities, runtime.provider
    zone, now_us = runtime.calendar().zone, runtime.clock.now_us()
    found = {}
    for symbol, lineage in identities.changed(provider, symbols).items():
        if lineage.end is not None and lineage.end <= now_us:
            day = from_micros(lineage.end).astimezone(zone).date()
            merged = lineage.ended is ActionKind.MERGER
            found[symbol] = f"{'merged' if merged else 'delisted'} on {day}"
    return found


def warn_of_ended(runtime: Runtime, symbols: Sequence[str]) -> None:
    """Warn of symbols of which nothing new can come."""
    ended = ended_symbols(runtime, symbols)
    if ended:
        told = ", ".join(f"{symbol} ({why})" for symbol, why in sorted(ended.items()))
        warnings.warn(
            f"nothing new will come of {told}",
            EndedSymbolWarning,
            skip_file_prefixes=LIBRARY,
        )
