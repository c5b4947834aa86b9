"""Indicators of a checked request: what the cache has of them, and the rest computed on bars.

Bars, the history before them and what they are adjusted by come from one broker for each symbol;
where there are several, the next one is asked for what those before it cannot supply. Kept values
are the primary one's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from marketdata.answers import Answer, SeriesAnswer
from marketdata.bar_answers import BarAnswers
from marketdata.clock import Deadline
from marketdata.corporate_actions import splits_of
from marketdata.errors import DataUnavailableError
from marketdata.origin import shortened
from marketdata.queries import BarsQuery
from marketdata.types import Bars, Floats
from marketdata.warning_types import LIBRARY, ShortHistoryWarning

if TYPE_CHECKING:
    from marketdata.answers import Tolerance
    from marketdata.arguments import Request
    from marketdata.indicators import Indicator
    from marketdata.links import Link


@dataclass(slots=True)
class Found:
    """What is being put together for one call, or for the part of it that one broker has."""

    answer: Answer = field(default_factory=Answer)
    tables: dict[str, Bars] = field(default_factory=dict)
    """By symbol the rows asked for: as `Bars`, with the frame's columns for values."""
    versions: dict[str, int] = field(default_factory=dict)
    unstabilised: set[str] = field(default_factory=set)
    forming: bool = False


@dataclass(slots=True)
class Wanted:
    """What is wanted of the bars of a request."""

    chosen: Sequence[Indicator]
    beside: tuple[int, ...]
    """Rows of the bars' own values to put before the indicators."""
    include_forming: bool
    missing: str


@dataclass(slots=True)
class _Way:
    """Through which broker a part of a call goes."""

    link: Link
    deadline: Deadline
    ask: Callable[[Request], Answer]
    """Reads bars, as a call for bars does."""
    primary: bool
    alone: bool
    """Whether there is no other broker to ask: what fails is raised, not returned."""


class IndicatorAnswers(BarAnswers):
    """A client that can compute indicators, without its public calls."""

    def _indicators_of(self, request: Request, wanted: Wanted, deadline: Deadline) -> Found:
        """Return the indicators of each symbol, from the first broker that has its bars."""
        runtime = self._runtime
        links = runtime.links
        if not links[1:]:

            def ask(asked: Request) -> Answer:
                return self._answer(asked, wanted.missing, deadline)

            way = _Way(links[0], deadline, ask, primary=True, alone=True)
            found = self._by_instrument(request, wanted, way)
            if found.unstabilised:
                self._warn_of_history(request.query, found.unstabilised)
            return found

        def work(link: Link, part: Request, until: Deadline, tolerance: Tolerance) -> Found:
            return self._by_instrument(part, wanted, self._way(link, until, tolerance))

        answer, parts = runtime.chain.serve(request, deadline, work)
        runtime.statistics.count(answer)
        if answer.unknown:
            self._tell_unknown(request.query, answer, wanted.missing, deadline, links)
        if len(parts) == 1 and parts[0][1].answer is answer:
            found = parts[0][1]
            if found.unstabilised:
                self._warn_of_history(request.query, found.unstabilised)
            return found
        found = Found(answer)
        for link, part in parts:
            mine = [s for s, series in part.answer.series.items() if answer.series[s] is series]
            short = part.unstabilised.intersection(mine)
            if short:
                self._warn_of_history(replace(request.query, provider=link.provider), short)
            found.tables |= {symbol: part.tables[symbol] for symbol in mine}
            found.versions |= {symbol: part.versions[symbol] for symbol in mine}
            found.unstabilised |= short
            found.forming |= part.forming
        found.tables = {s: found.tables[s] for s in request.query.symbols if s in found.tables}
        return found

    def _way(self, link: Link, deadline: Deadline, tolerance: Tolerance) -> _Way:
        primary = link is self._runtime.links[0]

        def ask(asked: Request) -> Answer:
            with self._shown(asked.query, counted=primary) as shown:
                return self._read(link, asked, deadline, shown, tolerance)

        return _Way(link, deadline, ask, primary, alone=False)

    def _by_instrument(self, request: Request, wanted: Wanted, way: _Way) -> Found:
        """Find what is kept under today's symbols, and return it under those that were asked for."""
        query, identities = request.query, self._runtime.identities
        changed = identities.changed(query.provider, query.symbols, query.as_of_us)
        if not changed or query.as_of_us is not None:
            return self._found(request, wanted, way)
        names = {s: identities.same_as(query.provider, s) for s in query.symbols}
        asked = replace(query, symbols=tuple(dict.fromkeys(names.values())))
        found = self._found(replace(request, query=asked), wanted, way)
        answer = found.answer
        found.tables = _relabelled(found.tables, names)
        found.versions = _relabelled(found.versions, names)
        answer.series = _relabelled(answer.series, names)
        answer.failed = _relabelled(answer.failed, names)
        answer.unknown = [s for s, name in names.items() if name in answer.unknown]
        for symbol, lineage in changed.items():
            if symbol in answer.series:
                series = replace(answer.series[symbol], lineage=identities.text(lineage))
                answer.series[symbol] = series
        found.unstabilised = {s for s, name in names.items() if name in found.unstabilised}
        return found

    def _found(self, request: Request, wanted: Wanted, way: _Way) -> Found:
        """Take what the cache has; read and compute the rest."""
        found = Found()
        query = request.query
        kept = self._runtime.kept_indicators
        served = way.primary and kept.serves(request, columns_of(wanted.chosen))
        if served and not wanted.include_forming:
            self._take_newest(request, wanted, found, way.deadline)
        rest = tuple(s for s in query.symbols if s not in found.tables)
        if found.tables and way.alone:
            self._runtime.statistics.count(found.answer)
        if rest:
            asked = replace(request, query=replace(query, symbols=rest))
            if query.timeframe not in way.link.broker.capabilities(query.feed).bases:
                found.answer = way.ask(asked)  # which says so
            else:
                self._compute(asked, wanted, served, found, way)
        return found

    # ---------------------------------------------------------------------------- from the cache

    def _take_newest(
        self, request: Request, wanted: Wanted, found: Found, deadline: Deadline
    ) -> None:
        """Take the values that the cache holds, with the rows of their bars to put before them."""
        kept, beside = self._runtime.kept_indicators, wanted.beside
        columns = columns_of(wanted.chosen)
        tails = kept.get(request)
        prices = self._newest_bars(request, tuple(tails), deadline) if beside and tails else {}
        limit = request.query.window.limit
        assert limit is not None
        for symbol, tail in tails.items():
            table = kept.selected(tail, columns, limit)
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

    # --------------------------------------------------------------------------------- computed

    def _compute(
        self, request: Request, wanted: Wanted, served: bool, found: Found, way: _Way
    ) -> None:
        """Read bars with their history, compute, and leave the newest values in the cache."""
        from marketdata.indicator_codec import CAPACITY
        from marketdata.indicator_reading import WarmReader, bars_needed
        from marketdata.kept_indicators import KEPT, KEPT_COLUMNS, version_of

        query, chosen, deadline = request.query, wanted.chosen, way.deadline
        kept = self._runtime.kept_indicators
        engine = KEPT if served else tuple(chosen)
        wide = _with_limit(query, CAPACITY) if served else query

        def ask(asked: BarsQuery) -> Answer:
            told = way.ask(replace(request, query=asked))
            if asked != wide and (lacking := _without_history(told)):
                raise lacking
            return told

        needed = bars_needed(engine, query.timeframe, query.session)
        warmed = WarmReader(way.link).read(wide, needed, ask, deadline)
        answer = warmed.answer
        warmed.unstabilised.update(s for s in answer.failed if s in answer.series)
        computed = columns_of(engine)
        leaving = (
            way.primary
            and kept.covers(request)
            and kept.can_leave(query)
            and set(KEPT_COLUMNS) <= set(computed)
            and not warmed.unstabilised
        )
        actions: dict[str, tuple[int, int]] = {}
        if leaving:
            filled = [s for s, a in answer.series.items() if len(a.bars)]
            begins = min((int(answer.series[s].bars.timestamp[0]) for s in filled), default=0)
            actions = kept.known_actions(query, filled, begins, deadline)
        applied = self._adjusted(replace(request, query=wide), answer, deadline, way.link)
        closed = {s: len(a.bars) for s, a in answer.series.items()}
        found.forming = wanted.include_forming and self._append_forming(
            request, answer, applied, deadline, way.link
        )
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
        shown = [computed.index(column) for column in columns_of(chosen)]
        for symbol, series in answer.series.items():
            first = warmed.first[symbol]
            limit = query.window.limit
            if limit is not None:
                series.truncated = series.truncated and closed[symbol] - first < limit
                first = max(first, closed[symbol] - limit)
            rows = values[symbol][shown, first:]
            if wanted.beside:
                rows = _side_by_side(series.bars.values[:, first:], wanted.beside, rows)
            found.tables[symbol] = Bars(series.bars.timestamp[first:], np.ascontiguousarray(rows))
            found.versions[symbol] = version_of(symbol, applied, series.lineage)
            found.answer.series[symbol] = series
        found.answer.trace = answer.trace
        found.answer.unknown = answer.unknown
        found.answer.failed = {
            symbol: error
            for symbol, error in answer.failed.items()
            # Of one that reaches back as far as the rows asked for only history is lacking.
            if symbol not in answer.series or answer.series[symbol].truncated
        }
        found.unstabilised |= warmed.unstabilised

    def _values(self, engine: Sequence[Indicator], answer: Answer) -> dict[str, Floats]:
        from marketdata.indicator_state import computed

        calendar = self._calendar()
        return {s: computed(engine, a.bars, calendar) for s, a in answer.series.items()}

    def _warn_of_history(self, query: BarsQuery, unstabilised: set[str]) -> None:
        warnings.warn(
            f"indicators of {shortened(sorted(unstabilised))} rest on less {query.timeframe} "
            f"history than they need: {query.provider} gives, or the store holds, no more; the "
            "first values may change with the window",
            ShortHistoryWarning,
            skip_file_prefixes=LIBRARY,
        )


def columns_of(indicators: Sequence[Indicator]) -> tuple[str, ...]:
    """Return the columns of some indicators, in their order."""
    return tuple(column for each in indicators for column in each.columns)


def _without_history(answer: Answer) -> DataUnavailableError | None:
    """Return why the broker has none of some symbol in a window widened by history."""
    for symbol, error in answer.failed.items():
        if symbol not in answer.series and isinstance(error, DataUnavailableError):
            return error
    return None


def _relabelled[T](found: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return what was found under today's symbols under those that were asked for."""
    return {symbol: found[name] for symbol, name in names.items() if name in found}


def _side_by_side(bars: Floats, beside: tuple[int, ...], values: Floats) -> Floats:
    """Return the rows `beside` of the bars' values, and then the indicators'."""
    chosen = bars if len(beside) == len(bars) else bars[list(beside)]
    return np.concatenate([chosen, values])


def _with_limit(query: BarsQuery, limit: int) -> BarsQuery:
    return replace(query, window=replace(query.window, limit=limit))
