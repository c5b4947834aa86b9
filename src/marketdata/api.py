"""The module functions: the methods of one default `Client`, made on first use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marketdata.client import Client

_lock = threading.Lock()
_client: Client | None = None
_keywords: dict[str, Any] = {}


def default_client() -> Client:
    """Return the client behind the module functions, making it on first use."""
    global _client
    if _client is None:
        with _lock:
            if _client is None:
                from marketdata.client import connect

                _client = connect(**_keywords)
    return _client


def configure(**settings: Any) -> None:
    """Configure the default client; earlier connections are closed.

    Parameters
    ----------
    **settings
        As for `connect`; each call replaces the settings of the one before.

    Raises
    ------
    ConfigurationError
        An unknown or unusable setting; nothing changes.
    """
    global _client, _keywords
    from marketdata.client import connect

    fresh = connect(**settings)
    with _lock:
        old, _client = _client, fresh
        _keywords = dict(settings)
    if old is not None:
        old.close()
