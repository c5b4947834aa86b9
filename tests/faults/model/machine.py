"""Random steps over one world, each compared with the dictionary."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import marketdata as md
from marketdata import frames, pausing
from marketdata.clock import from_micros, to_micros
from marketdata.queries import BarsQuery
from marketdata.sandbox import Fault
from marketdata.sandbox.universe import listing_of
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, MINUTE, SECOND, Bars, Int64s, SeriesKey, Timeframe
from tests.faults.model.ledger import Ledger, Step, Violation, split_adjusted
from tests.faults.model.world import BARS, CLIENTS, KEPT_DAYS, Traffic, World

STARTS: Final = (
    "2024-03-08T15:30:05-05:00",  # the clocks go forward on Sunday
    "2024-07-03T12:41:02-04:00",  # a half-day, then a holiday
    "2024-11-01T15:58:40-04:00",  # the clocks go back on Sunday
    "2024-11-29T10:03:33-05:00",  # a half-day, and a month's end
    "2024-12-31T16:20:15-05:00",  # a year's end
    "2024-05-15T09:32:04-04:00",
    "2024-05-17T21:05:00-04:00",  # a Friday night
)
RESETTLED: Final = 20
"""Covered bars that a read may ask for again beside its gaps."""
_NUMBERS = itertools.count(1)

TIMEFRAMES: Final = ("1min", "1min", "1min", "5min", "30min", "1hour", "4hour", "1day", "1week")
FAULTS: Final = (
    "status", "cut", "bars_null", "html", "reset", "json", "gzip", "empty_token",
)  # fmt: skip
OUTSIDE: Final = (
    pausing.STORE_READ, pausing.COMMITTED, pausing.PAGE_KEPT, pausing.FLIGHT_CLAIMED,
    pausing.BEFORE_LANDING, pausing.LANDED, pausing.SEAL_STEP_DONE, pausing.CYCLE_BEFORE_BLOCKS,
    pausing.CYCLE_BEFORE_INDICATORS, pausing.CYCLE_BEFORE_NOTICE,
)  # fmt: skip
"""Points at which no transaction is open."""
WRITING: Final = (
    pausing.BARS_WRITTEN, pausing.COVERAGE_WRITTEN, pausing.FLOOR_RAISED, pausing.COMMITTED,
)  # fmt: skip
READING: Final = (pausing.SNAPSHOT_TAKEN, pausing.STORE_READ)
MEANWHILE: Final = ("seal", "unseal", "retain", "backfill", "flush", "wait", "cycle", "read")
INSIDE: Final = (
    pausing.BARS_WRITTEN, pausing.COVERAGE_WRITTEN, pausing.FLOOR_RAISED, pausing.SEAL_READ,
    pausing.SEAL_CHUNKS_WRITTEN, pausing.SEAL_ROWS_DELETED,
)  # fmt: skip


class Crash(RuntimeError):  # noqa: N818
    """Stands for the end of a process at a pause point."""


@dataclass(frozen=True)
class Question:
    """What a read asks, relative to the time at which it is asked."""

    symbols: tuple[int, ...]
    single: bool
    timeframe: str
    session: str = "regular"
    feed: str = "sip"
    limit: int | None = None
    back: int | None = None
    """Minutes from its start to now."""
    length: int | None = None
    """Minutes from its start to its end."""
    days: bool = False
    """Whether start and end are dates."""


@st.composite
def questions(draw: st.DrawFn) -> Question:
    if draw(st.integers(0, 9)) < 3:
        return Question((draw(st.integers(0, 3)),), True, "1min", limit=500)
    symbols = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
    timeframe = draw(st.sampled_from(TIMEFRAMES))
    limit = back = length = None
    if draw(st.integers(0, 9)) < 4:
        most = {"1hour": 60, "4hour": 12, "30min": 60, "5min": 200, "1week": 30}.get(timeframe, 500)
        limit = min(most, draw(st.sampled_from((1, 7, 60, 500))))
    if limit is None or draw(st.integers(0, 9)) < 3:
        reach = draw(st.sampled_from((90, 900, 3000, 9000, 14000)))
        back = draw(st.integers(1, reach * (20 if timeframe in ("1day", "1week") else 1)))
        if draw(st.booleans()):
            length = draw(st.integers(1, max(2, back + 30)))
    feed = draw(st.sampled_from(("sip", "sip", "sip", "iex")))
    if feed == "iex":  # the last symbol has so few trades there that it would be walked for years
        symbols = [n for n in symbols if n < 3] or [0]
    return Question(
        tuple(symbols),
        len(symbols) == 1 and draw(st.booleans()),
        timeframe,
        draw(st.sampled_from(("regular", "regular", "extended"))),
        feed,
        limit,
        back,
        length,
        draw(st.integers(0, 4)) == 0,
    )


@dataclass
class Tally:
    """What a run did, over all examples."""

    counts: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    """The steps of the example under way."""
    ends: float = float("inf")
    """When to stop, on `time.monotonic`."""
    error: Exception | None = None
    """What went wrong first. Nothing is tried after that: the same steps may not fail again."""


CLIENT = st.integers(0, CLIENTS - 1)


class Machine(RuleBasedStateMachine):
    """One example: four symbols of their own, from one of the starts."""

    def __init__(self, world: World, tally: Tally) -> None:
        super().__init__()
        self.world = world
        self.tally = tally
        if tally.error is not None:
            raise TimeIsUp
        tally.log.clear()
        tally.counts["examples"] += 1
        self.redis_down = False
        self.must_flush = False
        self.step = Step()

    # ---------------------------------------------------------------------------- beginning

    @initialize(
        start=st.sampled_from(STARTS),
        days=st.integers(1, 8),
        late=st.integers(-3, 5),
        ratio=st.sampled_from((2.0, 3.0, 0.1)),
    )
    def begin(self, start: str, days: int = 1, late: int = 0, ratio: float = 2.0) -> None:
        world = self.world
        self.symbols = fresh_symbols()
        world.market.edits.clear()
        world.empty()
        world.clock.set(datetime.fromisoformat(start))
        world.forget()
        self.ledger = Ledger(world.market, world.now, world.provider)
        self.limit = world.now + 40 * DAY
        self.actions_asked: dict[str, int] = {}
        first = from_micros(world.now).date() + timedelta(days=days)
        session = self.ledger.calendar.next_open(self.ledger.calendar.midnight_of(first), "daily")
        ex_date = self.ledger.calendar.today(session)
        announced = ex_date + timedelta(days=late)
        world.market.inner.add_split(self.symbols[0], ex_date, ratio, announced=announced)
        self.split = session, ratio, self.ledger.calendar.midnight_of(announced)
        self.note(
            f"begin at {start} with {self.symbols}; the first splits {ratio} for 1 on {ex_date}, "
            f"announced on {announced}"
        )

    def note(self, text: str) -> None:
        self.tally.log.append(text)
        self.tally.counts["steps"] += 1

    # ------------------------------------------------------------------------------ settling

    def settled(self, keys: Sequence[SeriesKey] = (), *, middle: bool = False) -> Traffic:
        """Hold the store against the dictionary after what has been going on."""
        world, step = self.world, self.step
        traffic = world.heard()
        step.answered += traffic.pages
        self.actions_asked |= traffic.actions
        step.now = world.now
        certain, step.certain = step.certain, step.certain and not middle
        wanted = list(dict.fromkeys([*self.ledger.touched(step), *keys]))
        for key, (state, bars) in world.stored(wanted).items():
            self.ledger.settle(step, key, state, bars)
        step.certain = certain
        if not middle:
            self.step = Step()
        return traffic

    def all_keys(self) -> list[SeriesKey]:
        return list(self.ledger.books)

    # --------------------------------------------------------------------------------- reads

    def asked(self, question: Question) -> dict[str, Any]:
        """Return the arguments of `get_bars`."""
        now = from_micros(self.world.now)
        names = [self.symbols[n] for n in question.symbols]
        found: dict[str, Any] = {
            "symbols": names[0] if question.single else names,
            "timeframe": question.timeframe,
            "session": question.session,
            "feed": question.feed,
        }
        if question.limit is not None:
            found["limit"] = question.limit
        if question.back is not None:
            start = now - timedelta(minutes=question.back)
            end = None if question.length is None else start + timedelta(minutes=question.length)
            if question.days:
                zone = self.ledger.calendar.zone
                found["start"] = start.astimezone(zone).date()
                if end is not None:
                    found["end"] = end.astimezone(zone).date() + timedelta(days=1)
            else:
                found["start"] = start
                if end is not None:
                    found["end"] = end
        return found

    def query(self, arguments: dict[str, Any]) -> BarsQuery:
        client = self.world.clients[0]
        request = client._request(
            arguments["symbols"],
            arguments["timeframe"],
            start=arguments.get("start"),
            end=arguments.get("end"),
            period=None,
            limit=arguments.get("limit"),
            session=arguments["session"],
            feed=arguments["feed"],
        )
        return request.query

    def expected(self, query: BarsQuery, now: int) -> dict[str, Bars]:
        return {s: self.ledger.expected(query, s, now) for s in query.symbols}

    def get(self, who: int, arguments: dict[str, Any]) -> pd.DataFrame:
        self.tally.counts["reads"] += 1
        frame = self.world.clients[who].get_bars(**arguments)
        told = frame.attrs["marketdata"]["tiers"]
        for tier in str(told).split(","):
            self.tally.counts[f"from {tier.split(':')[0]}"] += 1
        return frame

    def compare(
        self, frame: pd.DataFrame, arguments: dict[str, Any], allowed: Sequence[dict[str, Bars]]
    ) -> None:
        """Hold an answer against what may be answered of each symbol."""
        single = isinstance(arguments["symbols"], str)
        found = bars_of(frame, arguments["symbols"])
        shape = frames.single_frame(Bars.empty(), "UTC")
        told = frame.attrs["marketdata"]
        if list(frame.columns) != list(shape.columns) or (frame.dtypes != "float64").any():
            raise Violation(f"{arguments}: not a frame of bars: {frame.dtypes}")
        if single and frame.index.dtype != shape.index.dtype:
            raise Violation(f"{arguments}: not the index of a frame of bars: {frame.index.dtype}")
        limit = arguments.get("limit")
        for symbol, bars in found.items():
            known = [each[symbol] for each in allowed if symbol in each]
            if limit is not None and len(bars) < min(*map(len, known), limit):
                raise Violation(f"{arguments} at {self.world.clock!r}: {len(bars)} bars; {told}")
            problem = differs(bars, known)
            if problem:
                raise Violation(f"{arguments} at {self.world.clock!r}: {symbol}: {problem}; {told}")

    @rule(who=CLIENT, question=questions())
    def read(self, who: int, question: Question) -> None:
        """A read without troubles: the answer, the calls it makes, and what is told before."""
        world, arguments = self.world, self.asked(question)
        self.note(f"client {who} reads {arguments}")
        query = self.query(arguments)
        plan = world.clients[who].explain(**arguments)
        frame = self.get(who, arguments)
        self.check_calls(query, plan.calls)
        self.settled()
        self.compare(frame, arguments, [self.expected(query, world.now)])

    def check_calls(self, query: BarsQuery, planned: int) -> None:
        """What is covered is not asked for, and `explain` says so before."""
        walks = self.world.sandbox.requests.matching(BARS)
        firsts = [r for r in walks if "page_token" not in r.params]
        if query.window.limit is None and bool(firsts) != bool(planned):
            raise Violation(
                f"explain promised {planned} calls for {query}, {len(firsts)} were made"
            )
        for request in firsts:
            p = request.params
            base = Timeframe.MIN_1 if p["timeframe"] == "1Min" else Timeframe.DAY_1
            start, end = (to_micros(datetime.fromisoformat(p[e])) for e in ("start", "end"))
            for symbol in p["symbols"].split(","):
                key = self.ledger.key(symbol, p["feed"], base)
                again = self.ledger.needless(Span(start, end + SECOND), key)
                if again < 0 or again > RESETTLED:
                    raise Violation(f"{p} asks for {again} covered bars of {key} again ({query})")

    @rule(who=CLIENT, question=questions())
    def read_adjusted(self, who: int, question: Question) -> None:
        """Prices divided for splits: for those that the broker has told of when it was asked last,
        twelve hours ago at most; what is stored is as before."""
        if question.timeframe == "1week":  # a week is cut where its basis changes
            question = replace(question, timeframe="1day")
        world, arguments = self.world, self.asked(question)
        self.note(f"client {who} reads {arguments}, adjusted for splits")
        self.tally.counts["adjusted reads"] += 1
        query = self.query(arguments)
        frame = self.get(who, {**arguments, "adjustment": "split"})
        self.settled()
        expected = {}
        for symbol, bars in self.expected(query, world.now).items():
            asked = self.actions_asked.get(symbol, 0)
            if len(bars) and asked < world.now - 12 * HOUR:
                raise Violation(f"{symbol}: adjusted by actions as they were at {asked}")
            ex_date, ratio, announced = self.split
            known = symbol == self.symbols[0] and announced <= asked and ex_date <= world.now
            expected[symbol] = split_adjusted(bars, [(ex_date, ratio)] if known else [])
        for symbol, found in bars_of(frame, arguments["symbols"]).items():
            wanted = expected[symbol]
            if not np.array_equal(found.timestamp, wanted.timestamp) or not np.allclose(
                found.values, wanted.values, rtol=1e-9, atol=0, equal_nan=True
            ):
                raise Violation(
                    f"{arguments}: {symbol} is not adjusted by {self.split}, asked "
                    f"{self.actions_asked.get(symbol)}: {found.values[3, :3]}, {wanted.values[3, :3]}"
                )

    @rule(question=questions(), first=CLIENT)
    def read_everywhere(self, question: Question, first: int) -> None:
        """The same question to every client, one after the other: one answer, no second call."""
        arguments = self.asked(question)
        self.note(f"every client reads {arguments}, client {first} first")
        query = self.query(arguments)
        answers = [self.get((first + n) % CLIENTS, arguments) for n in range(CLIENTS)]
        self.check_calls(query, len(self.world.sandbox.requests.matching(BARS)))
        self.settled()
        expected = [self.expected(query, self.world.now)]
        for frame in answers:
            self.compare(frame, arguments, expected)

    @rule(who=CLIENT, symbol=st.integers(0, 3), back=st.integers(1, 12_000))
    def ask_for_gaps(self, who: int, symbol: int, back: int) -> None:
        """`gaps` and `coverage` say what the dictionary says."""
        self.note(f"client {who} asks for gaps of {symbol}, {back} minutes back")
        world, name = self.world, self.symbols[symbol]
        book = self.ledger.book(self.ledger.key(name, "sip", Timeframe.MIN_1))
        start = world.now - back * MINUTE
        found = world.clients[who].gaps(name, "1min", start=from_micros(start))
        of = book.slots(Span(start, self.ledger.frontier(Timeframe.MIN_1, world.now)))
        missing = book.trades[of] & ~book.covered[of]
        labels = book.labels[of]
        told = np.zeros(len(labels), np.bool_)
        for gap in found:
            told |= (labels >= to_micros(gap.start)) & (labels < to_micros(gap.end))
        wrong = book.trades[of] & (told != missing)
        if wrong.any():
            raise Violation(f"gaps of {name} from {from_micros(start)} are wrong: {found}")

    # ---------------------------------------------------------------------------------- jobs

    @rule(who=CLIENT, days=st.booleans(), count=st.integers(1, 4))
    def cycle(self, who: int, days: bool, count: int) -> None:
        """A cycle without troubles."""
        self.note(f"client {who} runs a cycle for {count} symbols, days {days}")
        report = self.run_job(who, "cycle", count - 1, int(days))
        self.settled()
        if not report.postponed:  # by a process that was killed and whose claims still hold
            self.ledger.check_cycle(self.wanted(count, days=days), self.world.now)

    def wanted(self, count: int, *, days: bool) -> list[SeriesKey]:
        bases = [Timeframe.MIN_1, Timeframe.DAY_1] if days else [Timeframe.MIN_1]
        return [self.ledger.key(s, "sip", base) for base in bases for s in self.symbols[:count]]

    JOBS = st.sampled_from(("seal", "seal", "repin", "unseal", "retain", "backfill", "verify"))

    @rule(who=CLIENT, job=JOBS, symbol=st.integers(0, 3), day=st.integers(0, 8))
    def job(self, who: int, job: str, symbol: int, day: int) -> None:
        """One of the jobs without troubles."""
        self.note(f"client {who} runs {job} ({symbol}, {day})")
        self.step.only_drops = job == "retain"
        self.run_job(who, job, symbol, day)
        self.settled(self.all_keys())

    def run_job(self, who: int, what: str, symbol: int, day: int) -> Any:
        """Let a client do a job, if there is something to do; return its report."""
        arguments = self.job_of(what, symbol, day)
        if arguments is None:
            return None
        report = self.world.job(who, what.replace("repin", "seal"), **arguments)
        self.tally.log.append(f"  {what}: {report}")
        return report

    def job_of(self, what: str, symbol: int, day: int) -> dict[str, Any] | None:
        """Return the arguments of a job; None where there is nothing to do."""
        world, name, calendar = self.world, self.symbols[symbol], self.ledger.calendar
        self.tally.counts[what] += 1
        today = calendar.midnight_of(calendar.today(world.now))
        since = today - day * DAY
        held = [key for key, book in self.ledger.books.items() if book.covered.any()]
        if what == "cycle":
            bases = ("1min", "1day") if day % 3 == 1 else ("1min",)
            return {"symbols": self.symbols[: symbol + 1], "timeframes": bases}
        if what in ("seal", "repin"):
            return {"symbols": self.symbols, "repin": what == "repin"}
        if what == "unseal" and self.ledger.key(name, "sip", Timeframe.MIN_1) in held:
            return {"symbol": name, "start": since, "end": since + 2 * DAY}
        if what == "retain":
            self.step.dropped_before = self.kept_from()
            return {}
        if what == "backfill" and since < world.now - 4 * HOUR:
            return {"symbols": [name], "start": calendar.today(since).isoformat()}
        if what == "verify" and (known := sorted({k.symbol for k in held if k.feed == "sip"})):
            return {"symbols": known}
        return None

    def kept_from(self) -> int:
        calendar = self.ledger.calendar
        return calendar.midnight_of(calendar.today(self.world.now) - timedelta(days=KEPT_DAYS))

    # ---------------------------------------------------------------------------------- time

    @rule(seconds=st.sampled_from((1, 4, 20, 29, 31, 59, 60, 61, 64, 125, 300, 900)))
    def wait(self, seconds: int) -> None:
        self.note(f"{seconds} s pass")
        self.world.set_time(self.world.now + seconds * SECOND)

    @rule(
        event=st.sampled_from(("open", "regular", "close", "extended", "final", "morning")),
        offset=st.integers(-90, 4000),
    )
    def wait_until(self, event: str, offset: int) -> None:
        """To some seconds from the next event of the market."""
        calendar, now = self.ledger.calendar, self.world.now
        times = {
            "open": calendar.extended_open,
            "regular": calendar.open,
            "close": calendar.close,
            "extended": calendar.extended_close,
            "final": calendar.extended_close + HOUR,
            "morning": calendar.midnight + 10 * HOUR,
        }[event] + offset * SECOND
        moment = int(times[int(np.searchsorted(times, now, side="right"))])
        if moment < self.limit:
            self.note(f"wait until {from_micros(moment)}: {event} {offset:+d} s")
            self.world.set_time(moment)

    @rule(days=st.integers(1, 6))
    def days_pass(self, days: int) -> None:
        if self.world.now + days * DAY < self.limit:
            self.note(f"{days} days pass")
            self.world.set_time(self.world.now + days * DAY)

    # ------------------------------------------------------------------------ the market's mind

    @rule(
        symbol=st.integers(0, 3), days=st.booleans(), back=st.integers(0, 400), gone=st.booleans()
    )
    def market_changes(self, symbol: int, days: bool, back: int, gone: bool) -> None:
        """The market corrects or withdraws one of the bars it has told us of."""
        timeframe = Timeframe.DAY_1 if days else Timeframe.MIN_1
        name = self.symbols[symbol]
        book = self.ledger.book(self.ledger.key(name, "sip", timeframe))
        held = np.flatnonzero(book.present)
        if not len(held):
            return
        slot = int(held[max(0, len(held) - 1 - back)])
        close = None if gone and not days else float(np.round(book.values[3, slot] + 0.03, 2))
        self.note(f"the market changes {name} {timeframe} at {book.labels[slot]}: {close}")
        self.world.set_time(self.world.now + SECOND)
        self.world.market.edit(name, timeframe, int(book.labels[slot]), close)
        self.world.set_time(self.world.now + SECOND)

    # ------------------------------------------------------------------------------- troubles

    @rule(
        what=st.sampled_from(
            ("flush", "damage", "terminate", "restart", "Redis goes", "Redis comes back")
        ),
        who=CLIENT,
    )
    def trouble(self, what: str, who: int) -> None:
        self.note(f"{what} {who}")
        self.tally.counts[what] += 1
        world = self.world
        if what == "flush":
            world.flush_redis()
        elif what == "damage":
            world.damage_blocks()
        elif what == "terminate":
            world.terminate()
        elif what == "restart":
            self.restart(who)
        elif what == "Redis goes":
            self.redis_down = True
            world.redis_proxy.refuse()
            world.redis_proxy.cut()
        elif self.redis_down:
            self.revive_redis()

    def restart(self, who: int) -> None:
        # A process that ends owing floors to Redis leaves blocks that only their age ends.
        self.must_flush |= self.redis_down
        self.world.restart(who)

    def revive_redis(self) -> None:
        world = self.world
        world.redis_proxy.accept()
        if self.must_flush:
            world.flush_redis()
        self.redis_down = self.must_flush = False
        for who in range(CLIENTS):
            cache = world.runtime(who).cache
            ends = time.monotonic() + 10
            while not cache._recover():
                assert time.monotonic() < ends, "Redis is back and a client does not notice"
                time.sleep(0.005)

    @rule(
        who=CLIENT,
        question=questions(),
        kind=st.sampled_from(FAULTS),
        nth=st.integers(1, 3),
        times=st.sampled_from((1, 1, 3, None)),
        page=st.sampled_from((None, 40, 300)),
    )
    def read_with_a_bad_broker(
        self, who: int, question: Question, kind: Any, nth: int, times: int | None, page: int | None
    ) -> None:
        """A read that may fail; what it leaves is honest, and the next one is right."""
        arguments = self.asked(question)
        self.note(f"client {who} reads {arguments}: {kind} {nth} {times}, pages of {page}")
        faults = self.world.sandbox.faults
        faults.add(Fault(kind, match=BARS, nth=nth, times=times))
        if page is not None:
            faults.add(Fault("short_page", match=BARS, times=None, limit=page))
        self.tally.counts["broker faults"] += 1
        self.read_or_fail(who, arguments, faults.clear)

    def read_or_fail(
        self, who: int, arguments: dict[str, Any], relieve: Callable[[], object]
    ) -> None:
        query = self.query(arguments)
        before = self.allowed(query)
        frame = None
        try:
            frame = self.get(who, arguments)
        except (md.BrokerError, md.StoreUnavailableError) as error:
            self.tally.counts["errors"] += 1
            self.step.certain = False
            if not (isinstance(error, md.BrokerResponseError) or error.transient):
                raise
        except Crash:
            self.step.certain = False
            self.restart(who)
        finally:
            relieve()
        self.settled(self.all_keys() if frame is None else ())
        if frame is None:
            time.sleep(0.025)  # the breaker may have opened
            self.note(f"client {who} asks again")
            frame = self.get(who, arguments)
            self.settled()
        self.compare(frame, arguments, [*before, self.expected(query, self.world.now)])

    def allowed(self, query: BarsQuery, now: int | None = None) -> list[dict[str, Bars]]:
        """Return what the dictionary answers now, where it has all that is needed."""
        try:
            return [self.expected(query, self.world.now if now is None else now)]
        except Violation:
            return []

    def answerable(self, query: BarsQuery) -> dict[str, Bars]:
        """Return what the dictionary answers now of those symbols of which it has all."""
        found: dict[str, Bars] = {}
        for symbol in query.symbols:
            with suppress(Violation):
                found[symbol] = self.ledger.expected(query, symbol, self.world.now)
        return found

    @rule(
        who=CLIENT,
        what=st.sampled_from(("read", "read", "cycle", "seal", "unseal", "retain", "backfill")),
        question=questions(),
        point=st.sampled_from(WRITING * 3 + INSIDE + OUTSIDE),
        nth=st.sampled_from((1, 1, 2)),
        how=st.sampled_from(("crash", "crash", "terminate", "flush")),
        symbol=st.integers(0, 3),
        day=st.integers(0, 8),
    )
    def trouble_at_a_point(
        self, who: int, what: str, question: Question, point: str, nth: int, how: str,
        symbol: int, day: int,
    ) -> None:  # fmt: skip
        """Something ends, or is lost, in the middle of an operation."""
        if day % 2:
            self.to_fresh_bars()
        self.note(f"client {who} does {what} ({question}, {symbol}, {day}): {how} at {point} {nth}")
        self.tally.counts[f"{how} at a point"] += 1

        def crash() -> None:
            raise Crash(point)

        action = {
            "crash": crash,
            "terminate": self.world.terminate,
            "flush": self.world.flush_redis,
        }
        failed = False
        with self.world.armed(point, nth, action[how]):
            try:
                if what == "read":
                    self.read_or_fail(who, self.asked(question), lambda: pausing.disarm(point))
                    return
                self.run_job(who, what, symbol, day)
            except (Crash, md.MarketDataError, AssertionError):
                failed = True
                self.step.certain = False
        if failed and how == "crash":
            self.restart(who)
        self.settled(self.all_keys())
        self.look_again(who, symbol)

    @rule(
        who=CLIENT,
        what=st.sampled_from(("read", "cycle")),
        point=st.sampled_from(WRITING),
        killed=st.booleans(),
        symbol=st.integers(0, 3),
        nth=st.sampled_from((1, 1, 2)),
    )
    def cut_off_while_writing(
        self, who: int, what: str, point: str, killed: bool, symbol: int, nth: int
    ) -> None:
        """Fresh bars are coming in when it ends."""
        self.to_fresh_bars()
        newest = Question(tuple(range(symbol + 1)), single=False, timeframe="1min", limit=500)
        if killed:
            self.killed(what, newest, point, nth, symbol, 0)
        else:
            self.trouble_at_a_point(who, what, newest, point, nth, "crash", symbol, 0)

    def look_again(self, who: int, symbol: int) -> None:
        """Read the newest bars after a trouble: what is served fast must be stored."""
        arguments = {
            "symbols": self.symbols[: symbol + 1], "timeframe": "1min", "session": "extended",
            "feed": "sip", "limit": 1,
        }  # fmt: skip
        query = self.query(arguments)
        frame = self.get((who + 1) % CLIENTS, arguments)
        self.settled()
        self.compare(frame, arguments, [self.expected(query, self.world.now)])

    @rule(
        what=st.sampled_from(("read", "cycle", "cycle", "seal", "unseal", "backfill", "verify")),
        question=questions(),
        point=st.sampled_from(WRITING * 3 + INSIDE + OUTSIDE),
        nth=st.sampled_from((1, 1, 2)),
        symbol=st.integers(0, 3),
        day=st.integers(0, 8),
    )
    def killed(
        self, what: str, question: Question, point: str, nth: int, symbol: int, day: int
    ) -> None:
        """A process of its own is killed in the middle of an operation, by SIGKILL."""
        if day % 2:
            self.to_fresh_bars()
        arguments = self.asked(question) if what == "read" else self.job_of(what, symbol, day)
        self.note(f"a process does {what} {arguments}: killed at {point} {nth}")
        if arguments is None:
            return
        for end in {"start", "end"} & arguments.keys() if what == "read" else ():
            if not isinstance(arguments[end], datetime):
                del arguments[end]
                arguments["limit"] = 7
        ended = self.world.elsewhere(f"{point}=kill:{nth}", what, **arguments)
        self.tally.counts["killed" if ended == -9 else "not killed"] += 1
        assert ended in (0, -9), ended
        self.step.certain = ended == 0
        # Floors that it owed to a Redis that was away are lost with it.
        self.must_flush |= self.redis_down
        self.settled(self.all_keys())
        self.look_again(day, symbol)

    @rule(
        who=CLIENT,
        other=st.integers(1, CLIENTS - 1),
        outer=st.sampled_from(("read", "read", "read", "cycle", "seal", "unseal")),
        question=questions(),
        point=st.sampled_from(READING * 3 + OUTSIDE),
        nth=st.sampled_from((1, 1, 2)),
        inner=st.lists(st.sampled_from(MEANWHILE), min_size=1, max_size=3),
        again=questions(),
        symbol=st.integers(0, 3),
        day=st.integers(0, 8),
    )
    def interleaved(
        self, who: int, other: int, outer: str, question: Question, point: str, nth: int,
        inner: list[str], again: Question, symbol: int, day: int,
    ) -> None:  # fmt: skip
        """Another client does something while an operation stands at a pause point."""
        other = (who + other) % CLIENTS
        # Whoever holds a flight there must not be waited for.
        claimed = outer == "cycle" or point != pausing.STORE_READ
        if claimed:  # a backfill does not wait
            inner = ["backfill" if each == "cycle" else each for each in inner]
        self.note(
            f"client {who} does {outer} ({question}, {symbol}, {day}); at {point} {nth} client "
            f"{other} does {inner} ({again})"
        )
        self.tally.counts["interleaved"] += 1
        arguments = self.asked(question)
        query, called = self.query(arguments), self.world.now
        allowed: list[dict[str, Bars]] = []

        def meanwhile() -> None:
            if outer == "read":  # of which nothing else is under way
                self.settled(self.all_keys(), middle=True)
                allowed.extend(self.allowed(query))
            for each in inner:
                if each == "flush":
                    self.world.flush_redis()
                elif each == "wait":
                    self.world.set_time(self.world.now + 61 * SECOND)
                elif each != "read":
                    self.run_job(other, each, symbol, day)
                elif not claimed:
                    self.get(other, self.asked(again))

        with self.world.armed(point, nth, meanwhile):
            frame = None
            if outer == "read":
                allowed.extend(self.allowed(query))
                frame = self.get(who, arguments)
            else:
                self.run_job(who, outer, symbol, day)
        self.settled(self.all_keys())
        if frame is not None:
            # What has been dropped since can still be in the answer.
            now = self.allowed(query, called) if allowed else [self.expected(query, called)]
            self.compare(frame, arguments, [*allowed, *now])

    @rule(
        who=CLIENT,
        other=st.integers(1, CLIENTS - 1),
        symbol=st.integers(0, 3),
        back=st.integers(1, 60),
        seconds=st.sampled_from((1, 31, 61)),
        nth=st.sampled_from((1, 1, 2)),
        page=st.sampled_from((None, None, 20)),
    )
    def overtaken(
        self, who: int, other: int, symbol: int, back: int, seconds: int, nth: int, page: int | None
    ) -> None:
        """An answer stays on its way while somebody else asks later and is answered first."""
        world = self.world
        other = (who + other) % CLIENTS
        self.to_fresh_bars()
        self.note(
            f"client {who} reads {back} min of {symbol}; overtaken by {other} after {seconds} s"
        )
        self.tally.counts["overtaken"] += 1
        faults = world.sandbox.faults
        late = faults.add(Fault("late", match=BARS, nth=nth))
        if page is not None:
            faults.add(Fault("short_page", match=BARS, times=None, limit=page))
        called = world.now
        arguments = {
            "symbols": self.symbols[symbol], "timeframe": "1min", "session": "extended",
            "feed": "sip", "start": from_micros(called - back * MINUTE),
        }  # fmt: skip
        query = self.query(arguments)
        found: list[Any] = []

        def reading() -> None:
            try:
                found.append(self.get(who, arguments))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=reading)
        thread.start()
        while thread.is_alive() and not self.underway():
            time.sleep(0.001)
        if thread.is_alive():
            world.set_time(called + seconds * SECOND)
            day = self.ledger.calendar.today(called - back * MINUTE).isoformat()
            world.job(other, "backfill", symbols=[self.symbols[symbol]], start=day)
        late.release()
        thread.join(30)
        faults.clear()
        if isinstance(found[0], Exception):
            raise found[0]
        self.settled()
        self.compare(found[0], arguments, [self.expected(query, called)])

    def to_fresh_bars(self) -> None:
        """Move to a moment at which some bars are younger than the market's own corrections."""
        calendar, now = self.ledger.calendar, self.world.now
        moment = now - now % MINUTE + 2 * MINUTE + 10 * SECOND
        if not calendar.is_open(moment):
            moment = calendar.next_open(now) + 30 * MINUTE + 10 * SECOND
        if moment < self.limit:
            self.world.set_time(moment)

    def underway(self) -> bool:
        """Whether an answer has been made and is held back."""
        return any(r.fault == "late" and r.status for r in self.world.sandbox.requests)

    @rule(asked=st.lists(questions(), min_size=2, max_size=5), job=st.sampled_from(("", "seal", "unseal", "retain", "cycle", "flush")))  # fmt: skip
    def crowd(self, asked: list[Question], job: str) -> None:
        """Several clients at once, and perhaps a job beside them."""
        arguments = [self.asked(question) for question in asked]
        self.note(f"a crowd reads {arguments} beside {job or 'nothing'}")
        self.tally.counts["crowds"] += 1
        queries = [self.query(each) for each in arguments]
        # By symbol: one that lacks nothing may be read as it is while another is being fetched.
        before = [self.answerable(query) for query in queries]
        snapshots = {
            (s, feed): self.snapshot(s, feed)
            for s in self.symbols
            for feed in {query.feed for query in queries if job == "cycle"}
        }
        found: dict[int, Any] = {}

        def reading(at: int) -> None:
            try:
                found[at] = self.get(at % CLIENTS, arguments[at])
            except Exception as error:
                found[at] = error

        def working() -> None:
            try:
                if job == "flush":
                    self.world.flush_redis()
                elif job == "cycle":
                    self.run_job(2, job, 3, 0)
                elif job:
                    self.run_job(2, job, 0, 3)
            except Exception as error:
                found[-1] = error

        tasks = [threading.Thread(target=reading, args=(at,)) for at in range(len(asked))]
        tasks.append(threading.Thread(target=working))
        for task in tasks:
            task.start()
        for task in tasks:
            task.join(60)
        for each in found.values():
            if isinstance(each, Exception):
                raise each
        # The frames are of a snapshot each, and a retention may have dropped what they show since.
        self.settled(self.all_keys())
        for at, query in enumerate(queries):
            if job == "cycle":
                self.compare_midway(found[at], arguments[at], query, snapshots)
                continue
            after = self.allowed(query)
            whole = len(before[at]) == len(query.symbols)
            if not after and not whole and job != "retain":
                after = [self.expected(query, self.world.now)]
            if after or whole:
                self.compare(found[at], arguments[at], [before[at], *after])

    def snapshot(self, symbol: str, feed: str) -> tuple[Bars, Int64s]:
        """Return the minutes that the dictionary has of a series, and the labels it covers."""
        book = self.ledger.book(self.ledger.key(symbol, feed, Timeframe.MIN_1))
        return book.bars(slice(0, len(book.labels))), book.labels[book.covered].copy()

    def compare_midway(
        self,
        frame: pd.DataFrame,
        arguments: dict[str, Any],
        query: BarsQuery,
        before: dict[tuple[str, str], tuple[Bars, Int64s]],
    ) -> None:
        """Hold minutes read beside a cycle against what was there before and after it: pages are
        committed one by one, so that each bar may be of either."""
        if query.timeframe is not Timeframe.MIN_1:
            return
        for symbol, bars in bars_of(frame, arguments["symbols"]).items():
            old, covered = before[symbol, query.feed]
            new, _ = self.snapshot(symbol, query.feed)
            for label, column in zip(bars.timestamp.tolist(), bars.values.T.tolist(), strict=True):
                if column not in (_at(old, label), _at(new, label)):
                    raise Violation(f"{arguments}: {symbol} {label} is {column}")
            if not len(bars):
                continue
            first = max(int(bars.timestamp[0]), query.window.start or 0)
            last = min(query.window.end, self.ledger.frontier(Timeframe.MIN_1, self.world.now))
            sure = np.setdiff1d(new.timestamp, np.setdiff1d(covered, old.timestamp))
            sure = sure[(sure >= first) & (sure < last)]
            if query.session == "regular":
                sure = sure[self.ledger.calendar.mask(sure, "regular")]
            absent = np.setdiff1d(sure, bars.timestamp)
            if len(absent):
                raise Violation(f"{arguments}: {symbol} lacks {absent.tolist()}")

    # ---------------------------------------------------------------------------- always

    @invariant()
    def stays_within_time(self) -> None:
        """A run that is to end at some time ends after a step."""
        if time.monotonic() > self.tally.ends:
            raise TimeIsUp

    def teardown(self) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, HypothesisException):
            self.tally.error = self.tally.error or error
        if self.redis_down:
            self.revive_redis()
        self.world.sandbox.faults.clear()


def fresh_symbols() -> list[str]:
    """Return three busy symbols and one that rests for minutes, which no example has had yet."""
    busy: list[str] = []
    sparse: list[str] = []
    while len(busy) < 3 or not sparse:
        name = f"S{next(_NUMBERS) % 100_000:05d}"
        listing = listing_of(name)
        assert listing is not None
        if listing.splits or listing.listed.year > 2020:
            continue
        if listing.volume > 800_000:
            busy.append(name)
        elif listing.volume < 80_000:
            sparse.append(name)
    return [*busy[:3], sparse[0]]


class TimeIsUp(BaseException):
    """Ends a run; not a failure."""


def bars_of(frame: pd.DataFrame, symbols: str | Sequence[str]) -> dict[str, Bars]:
    """Return the bars of a frame by symbol."""
    if isinstance(symbols, str):
        return {symbols: _bars(frame, frame.index)}
    names = frame.index.get_level_values(0)
    return {
        symbol: _bars(part := frame[names == symbol], part.index.get_level_values(1))
        for symbol in symbols
    }


def _bars(frame: pd.DataFrame, index: Any) -> Bars:
    stamps = np.asarray(index.tz_convert("UTC").asi8, np.int64)
    return Bars(stamps, np.ascontiguousarray(frame.to_numpy(np.float64).T))


def differs(found: Bars, allowed: Sequence[Bars]) -> str:
    """Return what is wrong with an answer, or an empty string: each of its bars must be as in one
    of the allowed answers, and each that all of them have must be there."""
    if any(_alike(found, each) for each in allowed):
        return ""
    if len(found) > 1 and not (np.diff(found.timestamp) > 0).all():
        return "not in order, or not unique"
    for label, column in zip(found.timestamp.tolist(), found.values.T.tolist(), strict=True):
        known = [_at(each, label) for each in allowed]
        if column not in known:
            return f"{from_micros(label)} is {column}, should be one of {known}"
    common = set.intersection(*(set(each.timestamp.tolist()) for each in allowed))
    absent = sorted(common - set(found.timestamp.tolist()))
    if len(allowed) > 1 and absent:
        # Of the last N, those before the first may have made room.
        first = int(found.timestamp[0]) if len(found) else 0
        absent = [label for label in absent if label > first]
    if absent:
        return f"{len(absent)} bars are absent, first {from_micros(absent[0])}"
    return ""


def _alike(one: Bars, other: Bars) -> bool:
    return np.array_equal(one.timestamp, other.timestamp) and np.array_equal(
        one.values, other.values, equal_nan=True
    )


def _at(bars: Bars, label: int) -> list[float] | None:
    at = int(np.searchsorted(bars.timestamp, label))
    if at == len(bars) or bars.timestamp[at] != label:
        return None
    found: list[float] = bars.values[:, at].tolist()
    return found
