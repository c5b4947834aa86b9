"""``revisions`` and ``bar_states``: how bars came to be what they are, and how settled they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from marketdata.arguments import Configured, Symbols, check_feed, symbol_list
from marketdata.bar_history import STATES, TrailEntries, observed_us, state_of
from marketdata.clock import from_micros
from marketdata.connected import Connected
from marketdata.frames import ATTRS_KEY, Provenance
from marketdata.origin import shortened
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.ranges import Moment, resolve_window
from marketdata.spans import Span, intersect, subtract
from marketdata.types import COLUMNS, REVISION_STAGE, Floats, Int64s, SeriesKey, Stage, Timeframe

if TYPE_CHECKING:
    import pandas as pd


class RevisionCalls(Connected):
    """The calls about the past of stored bars; none of them asks a broker."""

    def revisions(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        feed: str | None = None,
        tz: str | Configured | None = Configured.TZ,
    ) -> pd.DataFrame:
        """Return every change of stored bars to other values, from the trail.

        Parameters
        ----------
        symbols : str or collection of str
            A renamed instrument's changes are found under its present name.
        timeframe : str
            Of the stored bars. What is derived from minutes or days changes with these, and their
            changes are returned.
        start, end : optional
            Of bars labelled in ``[start, end)``, as for `get_bars`; by default of all.
        feed : str, optional
            A feed of the broker; the configured one by default.
        tz : str, optional
            Zone of all times: an IANA name or ``"exchange"``; UTC by default.

        Returns
        -------
        DataFrame
            One row a change, by symbol, bar and moment of the change. Columns: ``symbol``,
            ``timestamp`` (the bar's label); ``state_from``, ``state_to`` (``closed``, ``revised``,
            ``final``; ``verified`` is a change of a final bar); ``observed_from``,
            ``observed_to`` (when the two were observed; NaT where the first is not known); for
            each of the bar's columns its value before and after, such as ``close_from`` and
            ``close_to``, NaN where there was no bar; ``withdrawn``: whether the change took the
            bar away. ``frame.attrs["marketdata"]`` names the symbols whose trail is not complete.

        Raises
        ------
        RequestError
            The call cannot be answered as written; a retry does not help.
        StoreError
            PostgreSQL failed; a retry helps where it is transient.
        """
        import pandas as pd

        names, _ = symbol_list(symbols)
        keys, zone = self._asked(names, timeframe, start, end, feed, tz)
        tables: list[dict[str, Any]] = []
        untrailed: list[str] = []
        for symbol, requests in keys.items():
            for request in requests:
                trail = self._runtime.store.trail([request])[request.key]
                tables.append(_changes(symbol, trail.entries))
                if trail.untrailed_until is not None:
                    until = from_micros(trail.untrailed_until).isoformat()
                    untrailed.append(f"{symbol} until {until}")
        joined: dict[str, Any] = {
            name: np.concatenate([table[name] for table in tables]) for name in tables[0]
        }
        for name in _TIMES:
            stamps = pd.DatetimeIndex(joined[name].view("M8[us]"), tz="UTC")
            joined[name] = stamps.tz_convert(zone)
        words = ("symbol", "state_from", "state_to")
        frame = pd.DataFrame(joined).astype(dict.fromkeys(words, "str"))
        frame.attrs[ATTRS_KEY] = Provenance(
            provider=self._runtime.provider,
            feed=next(iter(keys.values()))[0].key.feed,
            symbols=shortened(names),
            timeframe=next(iter(keys.values()))[0].key.timeframe.value,
            simulated=self._runtime.simulated,
            changes=len(frame),
            untrailed=shortened(untrailed),
        )
        return frame

    def bar_states(
        self,
        symbols: Symbols,
        timeframe: str = "1day",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        feed: str | None = None,
        tz: str | Configured | None = Configured.TZ,
    ) -> pd.DataFrame:
        """Return how settled stored bars are now.

        Parameters
        ----------
        symbols, timeframe, start, end, feed, tz
            As for `revisions`.

        Returns
        -------
        DataFrame
            One row a stretch of time that is covered, by symbol and time. Columns: ``symbol``,
            ``start``, ``end``; ``state``: ``closed`` (observed when the bars closed; they may
            still be corrected), ``revised`` (observed again after the provider's early
            corrections) or ``final`` (observed when the correction period was over);
            ``sealed``: whether the bars are in chunks. A bar that is forming is never stored.

        Raises
        ------
        MarketDataError
            As for `revisions`.
        """
        import pandas as pd

        names, _ = symbol_list(symbols)
        keys, zone = self._asked(names, timeframe, start, end, feed, tz)
        rows: list[tuple[str, int, int, str, bool]] = []
        for symbol, requests in keys.items():
            for request in requests:
                state = self._runtime.store.states([request.key])[request.key]
                rows += [(symbol, *each) for each in _stretches(state, request.span)]
        columns = ("symbol", "start", "end", "state", "sealed")
        frame = pd.DataFrame(sorted(rows), columns=list(columns))
        frame = frame.astype({"symbol": "str", "state": "str", "sealed": "bool"})
        for name in ("start", "end"):
            stamps = pd.DatetimeIndex(frame[name].to_numpy(np.int64).view("M8[us]"), tz="UTC")
            frame[name] = stamps.tz_convert(zone)
        return frame

    def _asked(
        self,
        names: tuple[str, ...],
        timeframe: str,
        start: Moment | None,
        end: Moment | None,
        feed: str | None,
        tz: str | Configured | None,
    ) -> tuple[dict[str, list[ReadRequest]], str]:
        """Return by symbol what is to be read of which stored series, and the zone to answer in."""
        parsed = Timeframe.parse(timeframe)
        check_feed(feed)
        calendar = self._calendar()
        window = resolve_window(
            calendar,
            self._clock.now_us(),
            start=from_micros(calendar.first) if start is None else start,
            end=end,
        )
        zone = self._zone(tz, Timeframe.MIN_1)
        assert zone is not None, "refused for minutes"
        runtime = self._runtime
        named = runtime.feed_named(feed)
        base = runtime.broker.capabilities(named).bases[parsed][0].base
        assert window.start is not None
        span = Span(window.start, window.end)
        found = {}
        for symbol in names:
            found[symbol] = [
                ReadRequest(SeriesKey(runtime.provider, named, piece.symbol, base), part)
                for piece in runtime.identities.lineage(runtime.provider, symbol)
                if not (part := piece.span.clip(span)).empty
            ] or [ReadRequest(SeriesKey(runtime.provider, named, symbol, base), Span(0, 0))]
        return found, zone


_TIMES = ("timestamp", "observed_from", "observed_to")
_UNKNOWN = np.iinfo(np.int64).min
"""NaT as microseconds."""


def _changes(symbol: str, entries: TrailEntries) -> dict[str, Any]:
    """Return the columns of the changes of one series; times in microseconds."""
    before, after = entries.old_stage, entries.new_revision // REVISION_STAGE
    observed = observed_us(entries.old_revision)
    columns: dict[str, Any] = {
        "symbol": np.full(len(entries), symbol, object),
        "timestamp": entries.timestamp,
        "state_from": _words(before, None),
        "state_to": _words(after, before),
        "observed_from": np.where(observed > 0, observed, _UNKNOWN),
        "observed_to": observed_us(entries.new_revision),
    }
    old: Floats = np.where(entries.old_absent, np.nan, entries.old_values)
    new: Floats = np.where(entries.new_absent, np.nan, entries.new_values)
    for place, name in enumerate(COLUMNS):
        columns[f"{name}_from"] = old[place]
        columns[f"{name}_to"] = new[place]
    columns["withdrawn"] = entries.new_absent
    return columns


def _words(stages: Int64s, before: Int64s | None) -> Any:
    earlier = [None] * len(stages) if before is None else before.tolist()
    words = [state_of(stage, known) for stage, known in zip(stages.tolist(), earlier, strict=True)]
    return np.array(words, object)


def _stretches(state: SeriesState, span: Span) -> list[tuple[int, int, str, bool]]:
    """Return the covered stretches of a series inside `span`, with state and form."""
    covered = intersect(state.coverage, [span])
    settled = subtract(covered, state.unsettled)
    final = intersect(covered, state.final)
    by_state = {
        Stage.CLOSED: subtract(intersect(covered, state.unsettled), final),
        Stage.REVISED: subtract(settled, final),
        Stage.FINAL: final,
    }
    found = []
    for stage, spans in by_state.items():
        for form, parts in (
            (True, intersect(spans, state.sealed)),
            (False, subtract(spans, state.sealed)),
        ):
            found += [(part.start, part.end, STATES[stage], form) for part in parts]
    return found
