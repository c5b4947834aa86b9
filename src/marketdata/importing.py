"""Bars of the user's own into the store, through the same quality gates as a broker's.

Rows come in batches, sorted or not, and wait by symbol until there are enough of them; then they
are gated and committed, many symbols in one transaction. So memory is bounded, an interrupted
load leaves whole commits, and loading the same rows again changes nothing. What is asked for and
found empty is never inferred: bars are stored, and only what the user states as covered is covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from marketdata import planning
from marketdata.clock import Deadline, from_micros
from marketdata.corporate_actions import splits_of
from marketdata.errors import (
    DataQualityError,
    DataUnavailableError,
    InvalidSymbolError,
)
from marketdata.files.parsing import Rows
from marketdata.import_report import EXAMPLES, ImportReport, Kept
from marketdata.protocols import Commit
from marketdata.quality import NO_TIMESTAMP, GateReport, gate
from marketdata.spans import Span
from marketdata.types import (
    VOLUME,
    Bars,
    Floats,
    Int64s,
    SeriesKey,
    Split,
    Timeframe,
    canonical_symbol,
)
from marketdata.unsplitting import count_moved, doubt_divided, to_traded

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

Basis = Literal["raw", "split"]
Label = Literal["open", "close"]

WAITING_ROWS: Final = 250_000
"""Rows in memory before they are stored: 72 bytes each, and three times that while it is done."""
COMMIT_BARS: Final = 100_000
"""Bars of one transaction; one symbol is never cut."""
COVERED_AT_ONCE: Final = 1_000
"""Series of one transaction that records coverage."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What the user says of the rows; none of it can be read off them."""

    provider: str
    feed: str
    timeframe: Timeframe
    basis: Basis
    """``raw``: as traded; ``split``: divided for later splits, which is undone."""
    label: Label = "open"
    """Which end of a bar its time names."""
    covers: Span | None = None
    """The time for which these are all the bars there are, of every symbol among them."""
    splits: Mapping[str, Sequence[Split]] | None = None
    """All splits of the symbols up to `adjusted_on`; None asks the configured broker."""
    adjusted_on: int | None = None
    """When prices were divided, microseconds UTC: later splits are not in them. None is now."""

    def key(self, symbol: str) -> SeriesKey:
        return SeriesKey(self.provider, self.feed, symbol, self.timeframe)


class Importer:
    """Takes batches of rows and stores what passes.

    Parameters
    ----------
    dry_run : bool
        Do everything but store.
    progress : callable, optional
        Called with the report so far after each batch.
    """

    def __init__(
        self,
        runtime: Runtime,
        statement: Statement,
        *,
        dry_run: bool = False,
        progress: Callable[[ImportReport], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._statement = statement
        self._dry_run = dry_run
        self._progress = progress
        self._calendar = runtime.calendar()
        self._now_us = runtime.clock.now_us()
        self._waiting: dict[str, list[_Part]] = {}
        self._waiting_rows = 0
        self._rounds = 0
        self._names: dict[str, str | None] = {}
        self.report = ImportReport()

    def add(self, rows: Rows) -> None:
        """Take a batch of rows, and store what waits if that is much by now.

        Raises
        ------
        DataUnavailableError, BrokerError
            The prices are split-adjusted and the splits cannot be had; nothing more is stored.
        StoreError
            PostgreSQL failed; what was committed stays, and the same rows can be loaded again.
        """
        self._take(rows)
        if self._waiting_rows >= WAITING_ROWS:
            self._flush()
        if self._progress is not None:
            self._progress(self.report)

    def leave_out(self, count: int, examples: Sequence[str]) -> None:
        """Count rows that were none."""
        self.report.rows += count
        self.report.reject("malformed", count)
        for text in examples:
            self.report.show("malformed", text)

    def finish(self) -> ImportReport:
        """Store the rest, then the coverage stated; raises as `add`."""
        self._flush()
        self._cover()
        return self.report

    # ------------------------------------------------------------------------------ collecting

    def _take(self, rows: Rows) -> None:
        """Put each row to its symbol's."""
        report = self.report
        report.rows += len(rows)
        order = np.argsort(rows.symbol, kind="stable")
        places, starts = np.unique(rows.symbol[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        for place, low, high in zip(places.tolist(), starts.tolist(), ends, strict=True):
            at = order[low:high]
            written = rows.symbols[place] if place >= 0 else None
            symbol = self._symbol(written)
            if symbol is None:
                report.reject("symbol", len(at))
                report.show("symbol", f"{_row(rows, int(at[0]))}: {written!r} is no symbol")
                continue
            part = _Part(
                self._labels(rows.timestamp[at]), rows.values[:, at], rows, rows.first_row + at
            )
            self._waiting.setdefault(symbol, []).append(part)
            self._waiting_rows += len(at)

    def _symbol(self, written: str | None) -> str | None:
        if written is None:
            return None
        if written not in self._names:
            try:
                self._names[written] = canonical_symbol(written)
            except InvalidSymbolError:
                self._names[written] = None
        return self._names[written]

    def _labels(self, timestamp: Int64s) -> Int64s:
        """Return the labels by which bars are kept: their opens."""
        if self._statement.label == "open":
            return timestamp
        known = timestamp != NO_TIMESTAMP
        if self._statement.timeframe.intraday:
            opens = np.where(known, timestamp - self._statement.timeframe.step, NO_TIMESTAMP)
            return np.asarray(opens, np.int64)
        session = self._calendar.session_index(np.where(known, timestamp - 1, 0))
        known &= session >= 0
        return np.where(known, self._calendar.midnight[session], NO_TIMESTAMP)

    # --------------------------------------------------------------------------------- storing

    def _flush(self) -> None:
        """Gate what waits, and store it."""
        waiting, self._waiting, self._waiting_rows = self._waiting, {}, 0
        if not waiting:
            return
        gated = {symbol: self._gated(symbol, parts) for symbol, parts in waiting.items()}
        raw = self._to_raw({s: bars for s, bars in gated.items() if len(bars)})
        # A row that comes later, in a later round, replaces an earlier one, as in one round; the
        # first replaces what was fetched before, also where the clock stands still.
        self._rounds += 1
        observed = self._now_us + 1000 * self._rounds
        for group in _groups(raw):
            self._store({s: self._commit(s, raw[s], observed) for s in group})
        for symbol, bars in raw.items():
            if symbol not in self.report.failed:
                self._count(symbol, bars)

    def _gated(self, symbol: str, parts: Sequence[_Part]) -> Bars:
        bars = Bars(
            np.concatenate([p.timestamp for p in parts]),
            np.concatenate([p.values for p in parts], axis=1),
        )
        found = self._gate(bars)
        for reason, count in found.rejected.items():
            self.report.reject(reason, count)
        self.report.flagged += found.flagged
        self.report.cleared += found.cleared
        if found.rejected:
            self._show_rejected(symbol, bars, found, parts)
        self.report.symbols.setdefault(symbol, Kept())
        return found.bars

    def _gate(self, bars: Bars) -> GateReport:
        whole = Span(self._calendar.first, self._calendar.horizon)
        return gate(
            bars,
            span=whole,
            timeframe=self._statement.timeframe,
            calendar=self._calendar,
            now_us=self._now_us,
        )

    def _show_rejected(
        self, symbol: str, bars: Bars, found: GateReport, parts: Sequence[_Part]
    ) -> None:
        """Note the first rows of each reason, as long as there are none of it yet."""
        wanted = {r for r in found.rejected if len(self.report.examples.get(r, ())) < EXAMPLES}
        if not wanted:
            return
        kept = np.isin(bars.timestamp, found.bars.timestamp)
        if "duplicate" in wanted:
            _, last = np.unique(bars.timestamp[::-1], return_index=True)
            repeats = np.setdiff1d(np.flatnonzero(kept), len(bars) - 1 - last)[:EXAMPLES]
            self._show("duplicate", symbol, bars, repeats, parts)
        for at in np.flatnonzero(~kept).tolist():
            one = self._gate(bars.take(np.array([at])))
            reason = next(iter(one.rejected), "duplicate")
            if reason in wanted:
                self._show(reason, symbol, bars, np.array([at]), parts)
                wanted -= {reason} if len(self.report.examples[reason]) == EXAMPLES else set()
            if not wanted - {"duplicate"}:
                return

    def _show(
        self, reason: str, symbol: str, bars: Bars, places: Int64s, parts: Sequence[_Part]
    ) -> None:
        ends = np.cumsum([len(p.timestamp) for p in parts])
        for at in places.tolist():
            which = int(np.searchsorted(ends, at, side="right"))
            part = parts[which]
            number = int(part.number[at - (int(ends[which]) - len(part.timestamp))])
            stamp = int(bars.timestamp[at])
            time = "no time" if stamp == NO_TIMESTAMP else _iso(stamp)
            cells = " ".join(f"{v:g}" for v in bars.values[: VOLUME + 1, at])
            self.report.show(reason, f"{part.rows.source} row {number}: {symbol} {time} {cells}")

    def _commit(self, symbol: str, bars: Bars, observed: int) -> Commit:
        settled = planning.settling(self._calendar, self._statement.timeframe, self._now_us)
        nothing = int(bars.timestamp[0])
        return Commit(
            key=self._statement.key(symbol),
            bars=bars,
            covered=Span(nothing, nothing),
            observed_us=observed,
            settled_until=settled.settled_until,
            final_until=settled.final_until,
        )

    def _store(self, commits: Mapping[str, Commit]) -> None:
        """Commit several symbols; where one of them cannot be stored, the others."""
        if self._dry_run:
            return
        store, cache = self._runtime.store, self._runtime.cache
        try:
            store.commit(list(commits.values()), before_commit=cache.raise_floor)
        except DataQualityError as error:
            if len(commits) == 1:
                self.report.failed[next(iter(commits))] = str(error)
                return
            for symbol, commit in commits.items():
                self._store({symbol: commit})
            return
        self.report.stored += sum(len(c.bars) for c in commits.values())

    def _count(self, symbol: str, bars: Bars) -> None:
        found = self.report.symbols[symbol]
        first, last = int(bars.timestamp[0]), int(bars.timestamp[-1])
        found.first = min(found.first, first) if found.bars else first
        found.last = max(found.last, last) if found.bars else last
        found.bars += len(bars)
        self.report.kept += len(bars)

    # ---------------------------------------------------------------------------------- splits

    def _to_raw(self, series: Mapping[str, Bars]) -> dict[str, Bars]:
        """Return prices as traded; a symbol whose prices contradict its splits fails."""
        if self._statement.basis == "raw" or not series:
            return dict(series)
        splits = self._splits(series)
        raw: dict[str, Bars] = {}
        for symbol, bars in series.items():
            if symbol in self.report.failed:
                continue
            doubt = doubt_divided(bars, splits[symbol])
            if doubt:
                self.report.failed[symbol] = doubt
                continue
            raw[symbol] = to_traded(bars, splits[symbol])
            self.report.unsplit += count_moved(bars, raw[symbol])
        return raw

    def _splits(self, series: Mapping[str, Bars]) -> dict[str, list[Split]]:
        """Return each symbol's splits from its first bar until the prices were divided."""
        stated = self._statement.splits
        until = self._statement.adjusted_on or self._now_us
        first = min(int(bars.timestamp[0]) for bars in series.values())
        known: Mapping[str, Sequence[Split]]
        if stated is not None:
            known = stated
        else:
            deadline = Deadline(self._runtime.settings.timeout)
            known = self._known_splits(list(series), first, deadline)
        return {s: [x for x in known.get(s, ()) if x.ex_date <= until] for s in series}

    def _known_splits(
        self, symbols: list[str], first: int, deadline: Deadline
    ) -> Mapping[str, Sequence[Split]]:
        runtime = self._runtime
        try:
            told = runtime.actions.checked(runtime.provider, symbols, first, deadline)
        except DataUnavailableError as error:
            raise DataUnavailableError(
                f"split-adjusted prices need the splits since {_iso(first)[:10]}: {error.message}",
                cure="give them: --splits FILE, CSV with symbol,ex_date,new,old; or raw prices",
            ) from error
        return {symbol: splits_of(actions) for symbol, actions in told.items()}

    # -------------------------------------------------------------------------------- coverage

    def _cover(self) -> None:
        """Record what the user states, up to what has closed by now."""
        covers, timeframe = self._statement.covers, self._statement.timeframe
        if covers is None:
            return
        caps = self._runtime.broker.capabilities(self._runtime.source.feed)
        edge = planning.frontier(self._calendar, timeframe, caps, self._now_us)
        delay = caps.settle_delay if timeframe.intraday else caps.daily_settle_delay
        span = planning.recordable(covers, self._calendar, timeframe, edge, self._now_us - delay)
        settled = planning.settling(self._calendar, timeframe, self._now_us)
        # A symbol all of whose rows were rejected is misread rather than quiet.
        kept = [s for s, found in self.report.symbols.items() if found.bars]
        symbols = [s for s in kept if s not in self.report.failed]
        if span.empty:
            return
        for low in range(0, len(symbols), COVERED_AT_ONCE):
            commits = [
                Commit(
                    key=self._statement.key(symbol),
                    bars=Bars.empty(),
                    covered=span,
                    observed_us=self._now_us,
                    settled_until=settled.settled_until,
                    final_until=settled.final_until,
                )
                for symbol in symbols[low : low + COVERED_AT_ONCE]
            ]
            if not self._dry_run:
                self._runtime.store.commit(commits, before_commit=self._runtime.cache.raise_floor)
            self.report.covered += len(commits)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one symbol and batch."""

    timestamp: Int64s
    values: Floats
    rows: Rows
    number: Int64s
    """For each its number in the source."""


def _groups(series: Mapping[str, Bars]) -> Iterator[list[str]]:
    """Cut symbols into transactions of about `COMMIT_BARS`."""
    group: list[str] = []
    bars = 0
    for symbol in sorted(series):
        group.append(symbol)
        bars += len(series[symbol])
        if bars >= COMMIT_BARS:
            yield group
            group, bars = [], 0
    if group:
        yield group


def _row(rows: Rows, at: int) -> str:
    return f"{rows.source} row {rows.first_row + at}".strip()


def _iso(micros: int) -> str:
    try:
        return from_micros(micros).isoformat()
    except OverflowError:
        return str(micros)
