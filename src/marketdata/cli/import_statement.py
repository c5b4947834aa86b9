"""What the options of ``marketdata import`` state: the table's shape, its times, whose bars."""

from __future__ import annotations

import csv
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from marketdata.arguments import check_choice
from marketdata.errors import InvalidRangeError, InvalidSymbolError, RequestError
from marketdata.files.parsing import Times
from marketdata.files.reading import NAMES, Shape
from marketdata.importing import Statement
from marketdata.own_brokers import installed
from marketdata.ranges import read_moment
from marketdata.sources import KINDS, NOBODY, kind_named
from marketdata.spans import Span
from marketdata.types import Split, Timeframe, canonical_symbol

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._:-]{0,62}")


def shape_of(columns: str | None, symbol: str | None, delimiter: str) -> Shape:
    """Read ``--columns``, ``--symbol`` and ``--delimiter``."""
    named: dict[str, str] = {}
    for pair in (columns or "").split(","):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not pair.strip():
            continue
        if ours not in NAMES or not equals or not theirs:
            raise RequestError(
                f"--columns: {pair.strip()!r} is not OURS=THEIRS",
                cure=f"ours are {', '.join(NAMES)}",
            )
        named[ours] = theirs
    if len(delimiter.replace("\\t", "\t")) != 1:
        raise RequestError(f"--delimiter {delimiter!r} is not one character", cure="give one")
    if symbol is not None and "symbol" in named:
        raise InvalidSymbolError("--symbol and a column of symbols", cure="give one of them")
    only = None if symbol is None else canonical_symbol(symbol)
    return Shape(named, only, delimiter.replace("\\t", "\t"))


def times_of(timeframe: Timeframe, tz: str | None, time_format: str | None, dates: bool) -> Times:
    """Read ``--tz``, ``--time-format`` and ``--dates``."""
    if dates and timeframe.intraday:
        raise RequestError(
            f"--dates leaves nothing of the time of {timeframe} bars", cure="leave it out"
        )
    try:
        zone = None if tz is None else ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise RequestError(
            f"--tz {tz} is not a time zone", cure="give an IANA name such as America/New_York"
        ) from None
    return Times(zone, time_format, dates, whole_days=not timeframe.intraday)


def statement_of(
    runtime: Runtime,
    timeframe: str,
    basis: str,
    label: str,
    provider: str,
    feed: str | None,
    as_broker: bool,
    covers: str | None,
    splits: Path | None,
    adjusted_on: str | None,
) -> Statement:
    """Read the options that say what the rows are.

    Raises
    ------
    RequestError
        One of them cannot be right; a retry does not help.
    """
    check_choice("basis", basis, ("raw", "split"))
    check_choice("label", label, ("open", "close"))
    if basis == "raw" and (splits is not None or adjusted_on is not None):
        raise RequestError(
            "raw prices were not divided for any split",
            cure="leave --splits and --adjusted-on out, or state --basis split",
        )
    calendar, now_us = runtime.calendar(), runtime.clock.now_us()
    whose, of = origin(runtime, provider, feed, as_broker=as_broker)
    return Statement(
        whose,
        of,
        Timeframe.parse(timeframe),
        "split" if basis == "split" else "raw",
        "close" if label == "close" else "open",
        None if covers is None else _span(covers, runtime),
        None if splits is None else _read_splits(splits, runtime),
        None if adjusted_on is None else read_moment(adjusted_on, calendar, now_us, "adjusted-on"),
    )


def _span(text: str, runtime: Runtime) -> Span:
    """Read START:END; moments hold colons themselves."""

    calendar, now_us = runtime.calendar(), runtime.clock.now_us()
    for at in [i for i, letter in enumerate(text) if letter == ":"]:
        try:
            start, end = (
                read_moment(part, calendar, now_us, "covers")
                for part in (text[:at], text[at + 1 :])
            )
        except InvalidRangeError:
            continue
        if start >= end:
            raise InvalidRangeError(f"--covers {text} is empty", cure="its end is exclusive")
        return Span(start, end)
    raise InvalidRangeError(
        f"--covers {text} is not START:END",
        cure="write 2024-01-02:2024-07-01; the end is exclusive",
    )


def _read_splits(path: Path, runtime: Runtime) -> dict[str, list[Split]]:
    found: dict[str, list[Split]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                day = runtime.calendar().midnight_of(date.fromisoformat(row["ex_date"].strip()))
                split = Split(day, float(row["new"]), float(row.get("old") or 1))
                if not (0 < split.new < 1e9 and 0 < split.old < 1e9):
                    raise ValueError(f"{split.new:g}:{split.old:g} is no split")
                found.setdefault(canonical_symbol(row["symbol"]), []).append(split)
    except OSError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}", cure="check --splits"
        ) from error
    except (KeyError, ValueError, AttributeError, TypeError, csv.Error) as error:
        raise RequestError(
            f"{path} is no list of splits: {error}", cure="its columns are symbol,ex_date,new,old"
        ) from error
    return found


def origin(
    runtime: Runtime, provider: str, feed: str | None, *, as_broker: bool
) -> tuple[str, str]:
    """Return the provider and the feed to keep bars under.

    Bars of a file never pass for a broker's own by accident: its name is taken only with
    `as_broker`, and then reads of that broker's bars use them.

    Raises
    ------
    RequestError
        Names that cannot be used, or a broker's without `as_broker`; a retry does not help.
    """
    whose = provider.strip().lower()
    of = (feed or whose).strip().lower()
    for name in (whose, of):
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{name!r} cannot name a provider or feed",
                cure="use lower-case letters, digits, dots, dashes and underscores",
            )
    feeds = {k.provider: k.feed for k in runtime.links if k.source.kind != NOBODY}
    brokers = {*KINDS, *installed(), *feeds}
    if whose not in brokers:
        if as_broker:
            raise RequestError(
                f"{whose} is not a broker", cure=f"leave --as-broker out, or name {sorted(brokers)}"
            )
        return whose, of
    if not as_broker:
        raise RequestError(
            f"these bars would pass for {whose}'s own",
            cure="give another --provider; or say --as-broker where that is what they are",
        )
    if whose == runtime.provider:
        return whose, runtime.feed_named(feed)
    default = feeds[whose] if whose in feeds else kind_named(whose).default_feed
    return whose, of if feed else default
