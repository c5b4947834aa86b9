"""One place for a test's faults: proxies before the servers of one set of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from marketdata.testing.proxy import FlakyProxy
from marketdata.testing.troubles import Plan

_SERVERS: Final = {
    "postgresql": ("database_url",),
    "redis": ("redis_url",),
    "broker": ("alpaca_url", "alpaca_trading_url", "yahoo_url"),
}


class Lab:
    """Proxies between a client and its servers.

    Attributes
    ----------
    postgresql, redis, broker : FlakyProxy or None
        The way to each server, where the settings name one.
    settings : dict
        The settings given, by way of the proxies.
    """

    def __init__(self, settings: Mapping[str, Any], proxies: Mapping[str, FlakyProxy]) -> None:
        self.settings = dict(settings)
        self.proxies = dict(proxies)
        self.postgresql = proxies.get("postgresql")
        self.redis = proxies.get("redis")
        self.broker = proxies.get("broker")

    def calm(self) -> None:
        """End every trouble: scripts forgotten, everything carried and accepted again."""
        for proxy in self.proxies.values():
            proxy.script.clear()
            proxy.accept()
            proxy.thaw()


@contextmanager
def lab(settings: Mapping[str, Any], plans: Mapping[str, Plan] | None = None) -> Iterator[Lab]:
    """Put a proxy before each server that `settings` name, and yield the `Lab`.

    Parameters
    ----------
    settings : mapping
        As for `marketdata.connect`: ``database_url``, ``redis_url``, ``alpaca_url``,
        ``alpaca_trading_url``, ``yahoo_url``; the last three must be one server, or absent.
    plans : mapping, optional
        What each is to do, by ``postgresql``, ``redis`` and ``broker``; by default nothing, until
        a test adds to a proxy's ``script`` or calls its methods.

    Examples
    --------
    >>> with lab({"database_url": ..., "redis_url": ...}) as made:  # doctest: +SKIP
    ...     data = marketdata.connect(**made.settings)
    ...     made.redis.freeze()
    ...     data.get_bars("AAPL", "1min")                          # slower, and right
    """
    with ExitStack() as closing:
        proxies: dict[str, FlakyProxy] = {}
        chosen = dict(settings)
        for server, names in _SERVERS.items():
            given = {str(settings[name]) for name in names if settings.get(name)}
            if len(given) > 1:
                raise ValueError(f"{', '.join(names)} name more than one server")
            if not given:
                continue
            plan = (plans or {}).get(server)
            proxy = proxies[server] = closing.enter_context(FlakyProxy(given.pop(), plan))
            chosen |= {name: proxy.url for name in names if settings.get(name)}
        yield Lab(chosen, proxies)
