"""Several brokers in order: the next one is asked only for what those before it cannot supply.

A symbol goes on to the next broker as a whole: for the whole window, under that broker's own key,
so that its answer comes from one provider. It goes on where a broker does not know it, may not or
cannot give it (not entitled, too old, no such timeframe), or fails. A read that the first broker's
coverage answers asks nobody, and what a call itself gets wrong is never passed on.

Time: a broker leaves a third of what remains, half a minute at most, to those after it. Where a
later one has everything stored, the one before gets a second; where it has just been found down,
none.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from marketdata.answers import Answer, Tolerance
from marketdata.arguments import Request
from marketdata.clock import Deadline
from marketdata.errors import (
    MarketDataError,
)
from marketdata.fetching import Progress
from marketdata.links import Link
from marketdata.origin import shortened
from marketdata.queries import BarsQuery
from marketdata.refusals import (
    CANNOT_SUPPLY,
    Health,
    Reasons,
    blamed_by,
    kind_of,
    says_it_is_down,
    together,
    told_by,
)
from marketdata.warning_types import LIBRARY, FallbackWarning

log = logging.getLogger("marketdata.chain")

RESERVED_SHARE: Final = 1 / 3
RESERVED_MOST: Final = 30.0
"""Seconds of a call that a broker leaves to those after it, at most."""
PATIENCE: Final = 1.0
"""Seconds that a broker gets where another has everything stored, or where it was just down."""

Read = Callable[[Link, Request, Deadline, Progress | None, Tolerance | None], Answer]


class Made(Protocol):
    """What work through one link comes to."""

    answer: Answer
    """What it rests on, as of a tolerant read."""


class Chain:
    """Asks the links of a runtime one after the other.

    Parameters
    ----------
    links : sequence of Link
        The primary one first.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = tuple(links)
        self._health = {link: Health() for link in self.links}
        self._warned: set[tuple[str, ...]] = set()

    def __repr__(self) -> str:
        return f"Chain({', '.join(link.provider for link in self.links)})"

    # -------------------------------------------------------------------------------- bars

    def read(
        self, request: Request, deadline: Deadline, progress: Progress | None, read: Read
    ) -> Answer:
        """Return the closed bars of `request`, each symbol from the first broker that has them.

        Parameters
        ----------
        read : callable
            Reads a request, which is under the link's key, through one link.

        Raises
        ------
        BrokerError, DataUnavailableError, DataQualityError
            No broker can supply some symbol: of the first one's class, transient where any of
            them is, with what each one said.
        StoreError
            PostgreSQL failed.
        """
        return self._read_from(0, request, deadline, progress, read, {})

    def _read_from(
        self,
        start: int,
        request: Request,
        deadline: Deadline,
        progress: Progress | None,
        read: Read,
        why: Reasons,
    ) -> Answer:
        whole = Answer()
        rest = request.query.symbols
        for place, link in enumerate(self.links[start:], start):
            asked = self._under(place, request, rest)
            answer = self._ask(place, asked, deadline, progress, read)
            if place == 0 and not answer.failed and not answer.unknown:
                return answer  # what nearly every read comes to
            self._health[link].note(asked.query, answer)
            for symbol in rest:
                if symbol in answer.failed:
                    why.setdefault(symbol, []).append((link, answer.failed[symbol]))
                elif symbol in answer.unknown:
                    why.setdefault(symbol, []).append((link, None))
            self._take(whole, link, place, answer)
            rest = tuple(s for s in rest if s in answer.failed or s in answer.unknown)
            if not rest:
                break
        whole.series = {s: whole.series[s] for s in request.query.symbols if s in whole.series}
        self._conclude(whole, why, [s for s in rest if s not in whole.series])
        self._warn(whole, why)
        return whole

    def finish[T](
        self,
        request: Request,
        answer: Answer,
        deadline: Deadline,
        read: Read,
        work: Callable[[Link, Request, Answer, Deadline], T],
    ) -> list[T]:
        """Have `work` complete, for each link, the part of `answer` that is its own: adjust it, add
        the bar that is forming. Where that fails for a symbol, it goes on to the next link whole.

        Parameters
        ----------
        work : callable
            Takes a link, a request under its key, and the link's part of the answer, which it may
            change.

        Raises
        ------
        MarketDataError
            As `read`.
        """
        done: list[T] = []
        why: Reasons = {}
        for place, link in enumerate(self.links):
            mine = tuple(s for s in request.query.symbols if self._serves(place, answer, s))
            if not mine:
                continue
            lost = self._work(place, request, answer, mine, deadline, work, done)
            if not lost:
                continue
            for symbol, error in lost.items():
                why.setdefault(symbol, []).append((link, error))
            rest = replace(request, query=replace(request.query, symbols=tuple(lost)))
            more = self._read_from(place + 1, rest, deadline, None, read, why)
            if more.unknown:
                raise together(more.unknown, why)
            answer.series |= more.series
            answer.served_by |= more.served_by
            answer.trace.add(more.trace)
            answer.trace.unverified |= more.trace.unverified
        return done

    def serve[M: Made](
        self,
        request: Request,
        deadline: Deadline,
        work: Callable[[Link, Request, Deadline, Tolerance], M],
    ) -> tuple[Answer, list[tuple[Link, M]]]:
        """Have `work` make of each symbol what is wanted, whole through the first link that can:
        its bars, the history before them, and what is computed from both.

        Parameters
        ----------
        work : callable
            Takes a link, a request under its key, until when it may take, and the tolerance to
            read with. Symbols that the `answer` of what it returns names as failed or unknown go
            on to the next link; where it raises, each symbol is tried by itself.

        Returns
        -------
        answer : Answer
            Of all links.
        made : list of (Link, M)
            What `work` returned. A series that is not in `answer` was superseded.

        Raises
        ------
        MarketDataError
            As `read`.
        """
        whole = Answer()
        why: Reasons = {}
        parts: list[tuple[Link, M]] = []
        rest = request.query.symbols
        for place, link in enumerate(self.links):
            lost: dict[str, MarketDataError | None] = {}
            made = self._make(place, self._under(place, request, rest), deadline, work, lost)
            parts += [(link, each) for each in made]
            if place == 0 and not lost and len(made) == 1:
                return made[0].answer, parts
            for each in made:
                self._take(whole, link, place, each.answer)
            for symbol, error in lost.items():
                why.setdefault(symbol, []).append((link, error))
            rest = tuple(s for s in rest if s in lost)
            if not rest:
                break
        whole.series = {s: whole.series[s] for s in request.query.symbols if s in whole.series}
        self._conclude(whole, why, [s for s in rest if s not in whole.series])
        self._warn(whole, why)
        return whole, parts

    def _make[M: Made](
        self,
        place: int,
        request: Request,
        deadline: Deadline,
        work: Callable[[Link, Request, Deadline, Tolerance], M],
        lost: dict[str, MarketDataError | None],
    ) -> list[M]:
        """Do the work of one link; note in `lost` the symbols it fails for. Where it fails for all
        together, once more without those that the error names, or one symbol after the other."""
        link, symbols = self.links[place], request.query.symbols
        last = place == len(self.links) - 1
        until = deadline if last else Deadline(_own_time(deadline))
        try:
            made = work(link, request, until, _Asking(self, place, request.query, deadline))
        except CANNOT_SUPPLY as error:
            if not symbols[1:] or says_it_is_down(error):
                lost |= dict.fromkeys(symbols, error)
                return []
            blamed = blamed_by(error, symbols)
            lost |= dict.fromkeys(blamed, error)
        else:
            answer = made.answer
            if answer.failed or answer.unknown:
                lost |= {**answer.failed, **dict.fromkeys(answer.unknown)}
            if answer.failed or answer.trace.pages:
                self._health[link].note(request.query, answer)
            return [made]
        rest = tuple(s for s in symbols if s not in blamed)
        return [
            each
            for group in ([rest] if blamed else [(s,) for s in rest])
            for each in self._make(place, self._under(place, request, group), deadline, work, lost)
        ]

    def _serves(self, place: int, answer: Answer, symbol: str) -> bool:
        if symbol not in answer.series:
            return False
        served = answer.served_by.get(symbol)
        link = self.links[place]
        return place == 0 if served is None else served == (link.provider, link.feed) and place > 0

    def _work[T](
        self,
        place: int,
        request: Request,
        answer: Answer,
        symbols: tuple[str, ...],
        deadline: Deadline,
        work: Callable[[Link, Request, Answer, Deadline], T],
        done: list[T],
    ) -> dict[str, MarketDataError]:
        """Do the work of one link; return the symbols it fails for. Where it fails for all together,
        once more without those that the error names, or one symbol after the other."""
        last = place == len(self.links) - 1
        until = deadline if last else Deadline(_own_time(deadline))
        part = Answer({s: replace(answer.series[s]) for s in symbols}, answer.trace)
        try:
            done.append(work(self.links[place], self._under(place, request, symbols), part, until))
        except CANNOT_SUPPLY as error:
            if last:
                raise
            if not symbols[1:] or says_it_is_down(error):
                return dict.fromkeys(symbols, error)
            failure, blamed = error, blamed_by(error, symbols)
        else:
            answer.series |= part.series
            return {}
        lost: dict[str, MarketDataError] = dict.fromkeys(blamed, failure)
        rest = tuple(s for s in symbols if s not in lost)
        for group in [rest] if lost else [(s,) for s in rest]:
            lost |= self._work(place, request, answer, group, until, work, done)
        return lost

    def _under(self, place: int, request: Request, symbols: tuple[str, ...]) -> Request:
        """Return `request` for some symbols, under the key of a link."""
        if not place and symbols == request.query.symbols:
            return request
        query = replace(request.query, symbols=symbols)
        if place:
            link = self.links[place]
            query = replace(query, provider=link.provider, feed=link.feed)
        return replace(request, query=query)

    def _ask(
        self,
        place: int,
        request: Request,
        deadline: Deadline,
        progress: Progress | None,
        read: Read,
    ) -> Answer:
        asking = _Asking(self, place, request.query, deadline)
        try:
            return read(self.links[place], request, deadline, progress, asking)
        except CANNOT_SUPPLY as error:
            # Not by the symbol: whoever reads through the link could not tell.
            return Answer(failed=dict.fromkeys(request.query.symbols, error))

    def _take(self, whole: Answer, link: Link, place: int, answer: Answer) -> None:
        """Put what one link has answered into the whole answer."""
        whole.trace.add(answer.trace)
        whole.trace.unverified |= answer.trace.unverified
        for symbol, found in answer.series.items():
            held = whole.series.get(symbol)
            if held is not None and len(held.bars) >= len(found.bars):
                continue  # both reach less far back than asked, and the earlier link has as much
            whole.series[symbol] = found
            if place:
                whole.served_by[symbol] = (link.provider, link.feed)

    def _conclude(self, whole: Answer, why: Reasons, lost: Sequence[str]) -> None:
        """Raise for symbols that nobody can supply; those that nobody knows are unknown."""
        failed = [s for s in lost if any(error is not None for _, error in why[s])]
        if failed:
            raise together(failed, why)
        whole.unknown = sorted(lost)

    # ------------------------------------------------------------------------------ latest

    def latest(
        self, kind: str, symbols: Sequence[str], single: bool, feed: str, deadline: Deadline
    ) -> object:
        """Return what `LatestReader.get` does, each symbol from the first broker that has it.

        Raises
        ------
        BrokerError, DataUnavailableError
            As `read`; a symbol of a list that the brokers answer without is no error.
        """
        found: dict[str, Mapping[str, Any]] = {}
        why: Reasons = {}
        answered = False
        rest = list(symbols)
        for place, link in enumerate(self.links):
            last = place == len(self.links) - 1
            until = deadline if last else Deadline(self._share(link, deadline))
            try:
                more = link.latest.find(kind, rest, feed if place == 0 else link.feed, until)
            except CANNOT_SUPPLY as error:
                lost: dict[str, MarketDataError] = dict.fromkeys(rest, error)
            else:
                answered = True
                lost = {s: link.latest.none_of(kind, s) for s in rest if s not in more}
                found |= more
                self._warn_of(link, {s: why[s] for s in more if s in why})
            for symbol, reason in lost.items():
                why.setdefault(symbol, []).append((link, reason))
            rest = list(lost)
            if not rest:
                break
        if rest and (single or not answered):
            raise together(rest, why)
        return self.links[0].latest.shaped(kind, symbols, single, found)

    def _share(self, link: Link, deadline: Deadline) -> float:
        own = _own_time(deadline)
        return own if self.known_down(link) is None else min(own, PATIENCE)

    # --------------------------------------------------------------------------- provenance

    def serving(self, answer: Answer) -> list[Link]:
        """Return the links that have answered for some symbol; the primary one where none had to."""
        if not answer.served_by:
            return [self.links[0]]
        return [
            link
            for place, link in enumerate(self.links)
            if any(self._serves(place, answer, symbol) for symbol in answer.series)
        ]

    def delayed(self, query: BarsQuery, answer: Answer) -> bool:
        """Whether a broker that answered refuses this key the most recent data."""
        if not answer.served_by:
            return self.links[0].delayed(query.feed)
        return any(
            link.delayed(query.feed if link is self.links[0] else link.feed)
            for link in self.serving(answer)
        )

    def simulated(self, answer: Answer) -> bool:
        """Whether some of the answer is simulated."""
        if not answer.served_by:
            return self.links[0].source.simulated
        return any(link.source.simulated for link in self.serving(answer))

    # ------------------------------------------------------------------------------ health

    def known_down(self, link: Link) -> MarketDataError | None:
        """Return the error of a link that gave no answer a moment ago."""
        return self._health[link].known_down()

    def refused(
        self, link: Link, query: BarsQuery, symbols: Sequence[str]
    ) -> dict[str, MarketDataError]:
        """Return those of `symbols` whose window the link has refused a moment ago."""
        return self._health[link].refusals(query, symbols)

    def stored_later(self, place: int, query: BarsQuery, symbols: Sequence[str]) -> set[str]:
        """Return those of `symbols` that a later link has stored for the whole window."""
        found: set[str] = set()
        for link in self.links[place + 1 :]:
            rest = [s for s in symbols if s not in found]
            if rest:
                theirs = replace(query, provider=link.provider, feed=link.feed)
                found.update(link.reader.covered(theirs, rest))
        return found

    # ----------------------------------------------------------------------------- warning

    def _warn(self, whole: Answer, why: Reasons) -> None:
        """Warn once for each reason that another broker than the primary one answers."""
        if not whole.served_by:
            return
        for link in self.links[1:]:
            own = (link.provider, link.feed)
            served = [s for s, by in whole.served_by.items() if by == own]
            self._warn_of(link, {s: why[s] for s in served})

    def _warn_of(self, link: Link, why: Reasons) -> None:
        groups: dict[tuple[str, ...], list[str]] = {}
        for symbol, reasons in why.items():
            told = [f"{other.provider} {kind_of(error)}" for other, error in reasons]
            groups.setdefault((link.provider, *told), []).append(symbol)
        for group, symbols in groups.items():
            if group in self._warned:
                continue
            self._warned.add(group)
            texts = "; ".join(told_by(other, error) for other, error in why[symbols[0]])
            warnings.warn(
                f"{shortened(symbols)} from {link.provider}, whole and under its own key: {texts}",
                FallbackWarning,
                skip_file_prefixes=LIBRARY,
            )


class _Asking:
    """How long one link may be asked, in one read."""

    def __init__(self, chain: Chain, place: int, query: BarsQuery, deadline: Deadline) -> None:
        self._chain = chain
        self._place = place
        self._query = query
        self._deadline = deadline
        self._until: Deadline | None = None

    def before_fetch(
        self, symbols: Sequence[str]
    ) -> tuple[Deadline, Mapping[str, MarketDataError]]:
        chain, place = self._chain, self._place
        if place == len(chain.links) - 1:
            return self._deadline, {}
        link = chain.links[place]
        refused = chain.refused(link, self._query, symbols)
        if refused or self._until is not None:
            return self._until or self._deadline, refused
        down = chain.known_down(link)
        stored = chain.stored_later(place, self._query, symbols)
        if down is not None and stored:
            return self._deadline, dict.fromkeys(sorted(stored), down)
        own = _own_time(self._deadline)
        if down is not None or stored.issuperset(symbols):
            own = min(own, PATIENCE)
        self._until = Deadline(own)
        return self._until, {}


def _own_time(deadline: Deadline) -> float:
    """Return the seconds that a broker may take, so that time is left for the next one."""
    remaining = min(deadline.remaining(), threading.TIMEOUT_MAX)
    return remaining - min(remaining * RESERVED_SHARE, RESERVED_MOST)
