"""Where the demo plays: a home of its own, a sandbox as broker, and a clock that stands still."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import FixedClock, SystemClock, from_micros
from marketdata.errors import InvalidSymbolError, RequestError
from marketdata.spans import Span
from marketdata.types import HOUR, MINUTE, SECOND, canonical_symbol

if TYPE_CHECKING:
    from marketdata.client import Client
    from marketdata.config import Settings
    from marketdata.sandbox import MarketSource, Sandbox
    from marketdata.wiring import Runtime

SYMBOLS: Final = ("AAPL", "MSFT", "NVDA")
_FAMILIAR: Final = (*SYMBOLS, "AMZN", "GOOGL", "SPY", "QQQ", "IBM", "KO")
_UNREAD: Final = 12
_EVER: Final = Span(-(2**62), 2**62)


@dataclass(frozen=True)
class Script:
    """What is read: the series, the moment, and whether the prices are real."""

    symbols: tuple[str, ...]
    base: str
    """The timeframe that is fetched: ``1min``, or ``1day`` where the files have no minutes."""
    wider: str
    """A period that reaches further back than the last 500 bars."""
    derived: str
    """A timeframe made of the stored one."""
    moment: datetime
    """Market time, in the exchange's zone; inside a session, so that the hour of day is no matter."""
    files: tuple[Path, ...] = ()
    first_day: date = date(1970, 1, 1)
    """Of the files."""
    unread: tuple[str, ...] = ()
    """More symbols of the files."""


@dataclass(frozen=True)
class Stage:
    """The running parts of the demo."""

    script: Script
    home: Path
    sandbox: Sandbox
    client: Client
    redis_url: str
    versions: dict[str, str | None]
    clock: FixedClock
    """Market time of the sandbox and of every client; moved on by hand."""
    settings: Settings

    @property
    def market(self) -> str:
        """What kind of prices these are, for the corner of a table."""
        return "real prices" if self.script.files else "SIMULATED prices"

    def daemon(self) -> Runtime:
        """Return a stack of its own on the same servers, as a daemon has; the caller closes it."""
        from marketdata.wiring import Runtime

        return Runtime(self.settings, self.clock)


def write_script(
    symbols: Sequence[str], files: Sequence[Path], basis: str
) -> tuple[Script, MarketSource]:
    """Return what to read and the market that has it.

    Raises
    ------
    ConfigurationError, RequestError
        The files cannot be read, or lack a symbol asked for.
    """
    if basis not in ("raw", "split"):
        raise RequestError(f"--basis {basis} is not known", cure="use raw or split")
    if not files:
        from marketdata.sandbox import GeneratedMarket

        calendar = calendar_for(EXCHANGE, SystemClock().now_us())
        chosen = tuple(canonical_symbol(s) for s in symbols) or SYMBOLS
        market = GeneratedMarket()
        _require(chosen, market)
        return Script(chosen, "1min", "5d", "5min", _recent_afternoon(calendar)), market
    from marketdata.sandbox.files import FileMarket

    source: Any = FileMarket(files, basis=basis)  # type: ignore[arg-type]
    names = [canonical_symbol(s) for s in symbols] or _familiar(source)
    _require(names, source)
    minutes = any(len(b) for s in names for b in source.minutes(s, _EVER, "sip"))
    # Half an hour before the last minute of the files, or an hour and a half after their last day.
    moment = source.last_moment + (-29 * MINUTE + 30 * SECOND if minutes else 18 * HOUR)
    series = ("1min", "5d", "5min") if minutes else ("1day", "max", "1week")
    zone = calendar_for(EXCHANGE, SystemClock().now_us()).zone
    local = from_micros(moment).astimezone(zone)
    unread = tuple(s for s in _familiar(source, None) if s not in names)[:_UNREAD]
    first = min(
        int(bars.timestamp[0])
        for s in names
        for bars in (*source.minutes(s, _EVER, "sip"), source.days(s, _EVER, "sip"))
        if len(bars)
    )
    first_day = from_micros(first).astimezone(zone).date()
    return Script(tuple(names), *series, local, tuple(files), first_day, unread), source


def _recent_afternoon(calendar: TradingCalendar) -> datetime:
    """Return half past three on the exchange, on the last session of full length that is over."""
    now = SystemClock().now_us()
    session = calendar.session_at(now)
    while True:
        hours = calendar.session_span(session, "regular")
        if hours.end <= now and hours.end - hours.start > 6 * HOUR:
            moment = from_micros(hours.end).astimezone(calendar.zone)
            return moment - timedelta(minutes=29, seconds=30)
        session -= 1


def _familiar(source: MarketSource, most: int | None = 3) -> list[str]:
    """Return symbols of the files: first those everybody knows, then those with the most bars."""
    counts = {}
    for asset in source.assets():
        try:
            if canonical_symbol(asset.symbol) == asset.symbol:
                counts[asset.symbol] = sum(
                    len(b) for b in source.minutes(asset.symbol, _EVER, "sip")
                )
        except InvalidSymbolError:
            continue
    ranked = sorted(counts, key=lambda s: (s not in _FAMILIAR, -counts[s], s))
    return ranked[:most]


def _require(symbols: Sequence[str], source: MarketSource) -> None:
    unknown = [s for s in symbols if source.asset(s) is None]
    if unknown or not symbols:
        known = " ".join(a.symbol for a in list(source.assets())[:12])
        raise RequestError(
            f"this market has no {', '.join(unknown) or 'symbols'}", cure=f"it has {known} ..."
        )


@contextmanager
def open_stage(script: Script, market: MarketSource, keep: bool) -> Iterator[Stage]:
    """Start everything; at the end stop everything, and delete the home unless it is kept.

    Nothing of the user's settings is read: neither their servers nor their keys are touched.
    """
    from marketdata import embedded
    from marketdata.client import Client
    from marketdata.sandbox import Sandbox

    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="marketdata-demo-"))
        if os.geteuid() == 0:
            home.chmod(0o711)  # root's PostgreSQL runs as somebody else, who has to pass through
        stack.callback(_leave, home, keep)
        clock = FixedClock(script.moment)
        sandbox = stack.enter_context(Sandbox(market, clock=clock))
        lease = stack.enter_context(embedded.acquire(home))
        settings = _settings(script, home, sandbox.url)
        client = stack.enter_context(Client(settings, clock=clock))
        # Loads the drivers, so that what is measured later is reading.
        client.get_bars(_one_other(script, market), "1day", limit=1)
        versions = {s.name: s.version for s in embedded.status(home).servers}
        yield Stage(
            script, home, sandbox, client, lease.servers.redis_url, versions, clock, settings
        )


def _one_other(script: Script, market: MarketSource) -> str:
    """Return a symbol that the demo does not read, where there is one."""
    served = script.unread if script.files else [a.symbol for a in market.assets()]
    return next((s for s in served if s not in script.symbols), script.symbols[0])


def _settings(script: Script, home: Path, url: str) -> Settings:
    from pydantic import SecretStr

    from marketdata.config import Settings

    # Real prices go under the host they come from; only generated ones are called simulated.
    real = bool(script.files)
    return Settings.model_validate(
        {
            "home": home,
            "broker": "alpaca" if real else "sandbox",
            "alpaca_key_id": SecretStr("demo") if real else None,
            "alpaca_secret_key": SecretStr("demo") if real else None,
            "alpaca_url": url,
            "alpaca_trading_url": url,
            "clock": script.moment.isoformat(),
            "progress": "off",
        }
    )


def _leave(home: Path, keep: bool) -> None:
    from marketdata import embedded

    if keep:
        embedded.down(home)
    else:
        embedded.erase(home)
        shutil.rmtree(home, ignore_errors=True)
