"""Which brokers: one table of the kinds there are, and the choice among them.

What the settings name is taken, in its order; ``auto`` adopts what the database was filled from,
and on an empty database takes the first broker whose keys are set, else Yahoo. A new broker is a new
row of `KINDS`, or an entry point of another package (`own_brokers`): nothing else in the library
asks which broker it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from marketdata.brokers.offline import OfflineBroker
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock
from marketdata.config import VARIABLES, Settings, provider_of
from marketdata.errors import ConfigurationError
from marketdata.own_brokers import installed, lacking, load
from marketdata.protocols import Priority
from marketdata.types import DAY, MINUTE, Timeframe

if TYPE_CHECKING:
    from marketdata.protocols import Broker, RateBudget

SANDBOX: Final = "sandbox"
NOBODY: Final = "none"
KEYLESS: Final = "yahoo"
"""Whom ``auto`` asks on an empty database where no keys are set."""
_SANDBOX_KEY: Final = "sandbox"


@dataclass(frozen=True, slots=True)
class Source:
    """Which provider and feed this process reads and writes."""

    kind: str
    """A name of `KINDS`, or ``none``: which adapter speaks to it."""
    provider: str
    feed: str

    @property
    def simulated(self) -> bool:
        return self.provider == SANDBOX


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a broker is made of."""

    settings: Settings
    source: Source
    clock: Clock
    calendar: Callable[[], TradingCalendar]
    budget: RateBudget | None = None
    """Shared by all processes on the same store; None counts nothing."""
    priority: Priority = Priority.READ
    """Whom the broker's requests are for."""
    on_delay: Callable[[str], None] | None = None
    """Takes the sentence that says recent data is refused."""
    on_notice: Callable[[str], None] | None = None
    """Takes any other sentence worth telling the user once."""
    closing: ExitStack = field(default_factory=ExitStack)
    """Closes what was started for the broker, after the broker."""
    started: dict[str, str] = field(default_factory=dict)
    """Addresses of servers started for an earlier broker of the same surroundings, by kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One broker that ``MARKETDATA_BROKER`` may name."""

    default_feed: str
    make: Callable[[Surroundings], Broker]
    address: str | None
    """Where it is asked by default; None runs in this process."""
    probe: tuple[Timeframe, int]
    """What ``marketdata doctor`` asks for: bars of a timeframe, this many microseconds back."""
    url_field: str | None = None
    """The setting that names another server; its host is then the provider."""
    own_provider: bool = True
    """Whether data from another server is kept under that server's name."""
    key_fields: tuple[str, ...] = ()
    """The settings it cannot do without."""
    feeds: tuple[str, ...] | None = None
    """All the feeds it has, where they are its own; None leaves that to the broker."""

    def url(self, settings: Settings) -> str | None:
        """Return the server that the settings name, if they name one."""
        return None if self.url_field is None else getattr(settings, self.url_field)

    def provider(self, name: str, settings: Settings) -> str:
        """Return under which provider its data is stored."""
        return provider_of(self.url(settings), name) if self.own_provider else name

    def has_keys(self, settings: Settings) -> bool:
        return all(getattr(settings, f) is not None for f in self.key_fields)


def _alpaca(given: Surroundings) -> Broker:
    settings = given.settings
    key, secret = settings.alpaca_key_id, settings.alpaca_secret_key
    return _speaks_alpaca(
        given,
        key.get_secret_value() if key else "",
        secret.get_secret_value() if secret else "",
        (settings.alpaca_url, settings.alpaca_trading_url),
        200,
    )


def _sandbox(given: Surroundings) -> Broker:
    settings = given.settings
    urls: tuple[str | None, str | None] = settings.alpaca_url, settings.alpaca_trading_url
    if settings.alpaca_url is None:
        if SANDBOX not in given.started:
            from marketdata.sandbox import Sandbox

            sandbox = Sandbox(clock=given.clock).start()
            given.closing.callback(sandbox.stop)
            given.started[SANDBOX] = sandbox.url
        urls = given.started[SANDBOX], given.started[SANDBOX]
    # Real keys are never sent to a sandbox.
    return _speaks_alpaca(given, _SANDBOX_KEY, _SANDBOX_KEY, urls, 10_000)


def _speaks_alpaca(
    given: Surroundings, key: str, secret: str, urls: tuple[str | None, str | None], limit: int
) -> Broker:
    from marketdata.brokers.alpaca import AlpacaBroker

    return AlpacaBroker(
        key_id=key,
        secret_key=secret,
        data_url=urls[0],
        trading_url=urls[1],
        provider=given.source.provider,
        feed=given.source.feed,
        clock=given.clock,
        budget=given.budget,
        rate_limit=limit,
        priority=given.priority,
        on_notice=given.on_delay,
    )


def _yahoo(given: Surroundings) -> Broker:
    from marketdata.brokers.yahoo import YahooBroker

    return YahooBroker(
        clock=given.clock,
        calendar=given.calendar,
        base_url=given.settings.yahoo_url,
        provider=given.source.provider,
        budget=given.budget,
        priority=given.priority,
        on_notice=given.on_notice,
    )


KINDS: Final[Mapping[str, Kind]] = {
    "alpaca": Kind(
        default_feed="sip",
        make=_alpaca,
        address="https://data.alpaca.markets",
        probe=(Timeframe.MIN_1, 20 * MINUTE),
        url_field="alpaca_url",
        key_fields=("alpaca_key_id", "alpaca_secret_key"),
    ),
    "yahoo": Kind(
        default_feed="yahoo",
        make=_yahoo,
        address="https://query1.finance.yahoo.com",
        probe=(Timeframe.DAY_1, 7 * DAY),
        url_field="yahoo_url",
        feeds=("yahoo",),
    ),
    SANDBOX: Kind(
        default_feed="sip",
        make=_sandbox,
        address=None,
        probe=(Timeframe.MIN_1, 20 * MINUTE),
        url_field="alpaca_url",
        own_provider=False,
    ),
}
"""Every broker by its name in ``MARKETDATA_BROKER``, beside ``auto`` and ``none``."""


def kind_named(name: str) -> Kind:
    """Return a row of `KINDS`, or the kind that another package's entry point makes.

    Raises
    ------
    ConfigurationError
        There is none of this name, or it cannot be imported; a retry does not help.
    """
    if name in KINDS:
        return KINDS[name]
    if name not in installed():
        known = ", ".join([*KINDS, *sorted(installed())])
        raise ConfigurationError(f"no broker is called {name!r}", cure=f"use one of: {known}")
    found = load(name)
    if isinstance(found, Kind):
        return replace(found, make=lambda given: _checked(name, found.make(given), given.source))
    if not callable(found):
        raise ConfigurationError(
            f"the broker {name!r} is neither a Kind nor callable, but {type(found).__name__}",
            cure="name a class or a function that takes Surroundings and returns a Broker",
        )
    feed = getattr(found, "default_feed", None)
    return Kind(
        default_feed=feed if isinstance(feed, str) else name,
        make=lambda given: _checked(name, found(given), given.source),
        address=None,
        probe=(Timeframe.DAY_1, 7 * DAY),
    )


def _checked(name: str, broker: Any, source: Source) -> Broker:
    """Return the broker of an entry point, if it is one and keeps to its own name.

    Raises
    ------
    ConfigurationError
        It lacks a member of the port, or gives its bars another provider; a retry does not help.
    """
    if absent := lacking(broker):
        raise ConfigurationError(
            f"the broker {name!r} is a {type(broker).__name__} without {', '.join(absent)}",
            cure="see marketdata.protocols.Broker for what a broker must have",
        )
    if broker.provider != source.provider:
        raise ConfigurationError(
            f"the broker {name!r} calls its provider {broker.provider!r}",
            cure=f"its bars are kept under the name of its entry point: use {source.provider!r}",
        )
    return cast("Broker", broker)


def key_variables(kind: Kind) -> str:
    """Return the variables that hold a kind's keys, in words."""
    return " and ".join(VARIABLES[f][0] for f in kind.key_fields)


def check_keys(settings: Settings, names: Sequence[str] | None = None) -> None:
    """Raise `ConfigurationError` where a broker, of those that the settings name, lacks its keys."""
    for name in settings.brokers if names is None else names:
        kind = KINDS.get(name)
        if kind is None or kind.has_keys(settings):
            continue
        needed = key_variables(kind)
        alone = settings.brokers == (name,)
        raise ConfigurationError(
            f"MARKETDATA_BROKER={name} needs keys" if alone else f"the broker {name} needs keys",
            cure=f"set {needed}; or try MARKETDATA_BROKER=sandbox; run: marketdata doctor",
        )


def choose_sources(settings: Settings, held: tuple[str, str] | None) -> tuple[Source, ...]:
    """Return whom to ask, in order: the broker, or each of the brokers, that the settings name.

    ``MARKETDATA_FEED`` names a feed of the first one; the others have their defaults.

    Parameters
    ----------
    held : (provider, feed) or None
        What the database was filled from; None on an empty one.

    Raises
    ------
    ConfigurationError
        The sandbox beside a broker that gives real prices, or two brokers under one key; a retry
        does not help.
    """
    if settings.broker == "auto":
        return (_adopted_source(settings, held) if held else _fresh_source(settings),)
    if settings.broker == NOBODY:
        provider, feed = held or ("alpaca", KINDS["alpaca"].default_feed)
        return (Source(NOBODY, provider, settings.feed or feed),)
    first, *others = settings.brokers
    sources = (
        named_source(first, settings, held, settings.feed),
        *(named_source(name, settings, held) for name in others),
    )
    _check_together(sources)
    return sources


def named_source(
    name: str, settings: Settings, held: tuple[str, str] | None, feed: str | None = None
) -> Source:
    """Return the source of one broker by its name, with its default feed where none is given."""
    kind = kind_named(name)
    provider = kind.provider(name, settings)
    ours = held is not None and held[0] == provider and _may_have(kind, held[1])
    default = held[1] if held and ours else kind.default_feed
    return Source(name, provider, feed or default)


def _may_have(kind: Kind, feed: str) -> bool:
    """Whether a recorded feed may be this broker's: one server can speak as several do."""
    if kind.feeds is not None:
        return feed in kind.feeds
    return not any(feed in (other.feeds or ()) for other in KINDS.values())


def _check_together(sources: Sequence[Source]) -> None:
    if any(s.simulated for s in sources) and any(s.provider == s.kind != SANDBOX for s in sources):
        raise ConfigurationError(
            "simulated prices of the sandbox are never completed with real ones",
            cure="take the sandbox out of MARKETDATA_BROKER, or name it alone",
        )
    keys = [(s.provider, s.feed) for s in sources]
    if len(set(keys)) < len(keys):
        raise ConfigurationError(
            f"two brokers of the chain would keep their bars under {keys[-1][0]}/{keys[-1][1]}",
            cure="name one of them in MARKETDATA_BROKER, or give them servers of their own",
        )


def _fresh_source(settings: Settings) -> Source:
    with_keys = (n for n, kind in KINDS.items() if kind.key_fields and kind.has_keys(settings))
    name = next(with_keys, KEYLESS)
    kind = KINDS[name]
    return Source(name, kind.provider(name, settings), settings.feed or kind.default_feed)


def _adopted_source(settings: Settings, held: tuple[str, str]) -> Source:
    provider, recorded = held
    feed = settings.feed or recorded
    for name, kind in KINDS.items():
        theirs = provider == kind.provider(name, settings) and _may_have(kind, recorded)
        if theirs and kind.has_keys(settings):
            return Source(name, provider, feed)
    if provider in installed():
        return Source(provider, provider, feed)
    return Source(NOBODY, provider, feed)


def make_broker(given: Surroundings) -> Broker:
    """Return the broker of a source; one that refuses everything where nobody can be asked.

    Raises
    ------
    ConfigurationError
        The source's kind is not one of `KINDS`; a retry does not help.
    """
    source = given.source
    if source.kind != NOBODY:
        return kind_named(source.kind).make(given)
    if given.settings.broker == NOBODY:
        return OfflineBroker(source.provider, source.feed, "MARKETDATA_BROKER=none asks no broker")
    return OfflineBroker(
        source.provider,
        source.feed,
        f"this database was filled from {source.provider}, which this process cannot ask",
        cure="set its keys or URL, or choose another broker with MARKETDATA_BROKER; "
        "run: marketdata doctor",
    )
