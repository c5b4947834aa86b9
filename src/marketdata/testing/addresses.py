"""Where servers are, and how the same address looks by way of a proxy."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

_PORTS: Final = {"redis": 6379, "http": 80}


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server's socket: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def connect(self) -> socket.socket:
        """Return a connection to the server; OSError where there is none."""
        if self.path:
            end = socket.socket(socket.AF_UNIX)
            try:
                end.connect(self.path)
            except OSError:
                end.close()
                raise
        else:
            end = socket.create_connection((self.host, self.port), timeout=5)
        end.setblocking(False)
        return end


def upstream_of(url: str) -> Upstream:
    """Return the server that a ``postgresql``, ``redis``, ``unix`` or ``http`` URL names.

    Raises
    ------
    ValueError
        Another scheme, or TLS from the first byte: nothing could be told apart inside it.
    """
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        known = conninfo_to_dict(url)
        host = str(known.get("host") or known.get("hostaddr") or "127.0.0.1")
        port = int(known.get("port") or 5432)
        if host.startswith("/"):
            return Upstream(path=f"{host}/.s.PGSQL.{port}")
        return Upstream(host, port)
    if parts.scheme == "unix":
        return Upstream(path=parts.path)
    if parts.scheme not in _PORTS:
        raise ValueError(f"no proxy for {parts.scheme}:// addresses")
    return Upstream(parts.hostname or "127.0.0.1", parts.port or _PORTS[parts.scheme])


def through(url: str, port: int) -> str:
    """Return the address of the same server by way of a proxy on ``127.0.0.1:port``."""
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return _postgresql_through(url, port)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    if parts.scheme == "unix":
        options = dict(parse_qsl(parts.query))
        database = options.pop("db", "0")
        return urlunsplit(
            ("redis", f"{login}127.0.0.1:{port}", f"/{database}", urlencode(options), "")
        )
    return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{port}"))


def _postgresql_through(url: str, port: int) -> str:
    known = {k: str(v) for k, v in conninfo_to_dict(url).items() if v is not None}
    for name in ("host", "hostaddr", "port"):
        known.pop(name, None)
    user, password = known.pop("user", ""), known.pop("password", "")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    database = quote(known.pop("dbname", ""), safe="")
    query = urlencode(known)
    return urlunsplit(
        ("postgresql", f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}",
         f"/{database}", query, "")
    )  # fmt: skip
