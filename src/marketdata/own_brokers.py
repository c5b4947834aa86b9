"""Brokers of other packages, found by their entry points in the group ``marketdata.brokers``.

An entry names a `sources.Kind`, or a callable (a class will do) that takes the
`sources.Surroundings` of a client and returns a `protocols.Broker`::

    [project.entry-points."marketdata.brokers"]
    files = "my_package.broker:FilesBroker"

The entry's name is what ``MARKETDATA_BROKER`` says, and the provider under which its bars are kept.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from marketdata.errors import ConfigurationError
from marketdata.protocols import Broker

GROUP: Final = "marketdata.brokers"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


def is_name(text: str) -> bool:
    """Return whether `text` may name a broker: lower-case letters, digits and underscores."""
    return _NAME.fullmatch(text) is not None


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of the group by name. Nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load(name: str) -> object:
    """Import what the entry point `name` refers to.

    Raises
    ------
    ConfigurationError
        There is none of this name, or importing it fails; a retry does not help.
    """
    entry = installed().get(name)
    if entry is None:
        raise ConfigurationError(f"no broker is called {name!r}")
    try:
        return entry.load()
    except Exception as error:
        raise ConfigurationError(
            f"the broker {name!r} ({entry.value}) cannot be imported: "
            f"{type(error).__name__}: {error}",
            cure="repair or reinstall the package that it belongs to, or choose another broker",
        ) from error


_MEMBERS: Final = tuple(sorted(name for name in vars(Broker) if not name.startswith("_")))


def lacking(broker: object) -> list[str]:
    """Return the members of the `Broker` port that `broker` does not have."""
    properties = {name for name in _MEMBERS if isinstance(vars(Broker)[name], property)}
    return [
        name
        for name in _MEMBERS
        if not hasattr(broker, name)
        or (name not in properties and not callable(getattr(broker, name)))
    ]
