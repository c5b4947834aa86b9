"""Which addresses and keys trade with play money only. Pure.

The check says what is allowed, not what is forbidden: Alpaca's paper trading host, and this
machine. An address is taken apart, and requests go to one put together again from the parts that
were checked, so that nobody reads the original differently.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from algorithms.errors import RealMoneyError

PAPER_HOST: Final = "paper-api.alpaca.markets"
PAPER_URL: Final = f"https://{PAPER_HOST}"
_PLAIN: Final = re.compile(r"[!-~]+")
"""Printable ASCII: no blanks, no line ends, no letters that look like others."""
_FORBIDDEN: Final = frozenset('\\^`{|}<>"%@?#')


def paper_address(url: str) -> str:
    """Return the address of a paper trading API in its plainest form.

    Parameters
    ----------
    url : str
        ``https://paper-api.alpaca.markets``, or ``http://`` or ``https://`` and 127.0.0.0/8, ::1
        or localhost, with or without a port. No path.

    Raises
    ------
    RealMoneyError
        Anything else. Nothing was sent.
    """
    parts = _parts(url)
    if parts is None:
        raise _refused(url, "it is not the plain address of a paper trading API")
    scheme, host, port = parts
    if host == PAPER_HOST:
        if scheme != "https" or port not in (None, 443):
            raise _refused(url, "the paper trading API is asked by HTTPS on its own port")
        return PAPER_URL
    if _is_this_machine(host):
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}" + ("" if port is None else f":{port}")
    raise _refused(url, "only Alpaca's paper trading API and this machine are")


def _parts(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of a URL without anything else; None if there is more."""
    if not isinstance(url, str) or not _PLAIN.fullmatch(url) or _FORBIDDEN & set(url):
        return None
    try:
        found = urlsplit(url)
        host, port = found.hostname, found.port
    except ValueError:
        return None
    if found.scheme not in ("http", "https") or not host or found.path not in ("", "/"):
        return None
    return found.scheme, host.lower(), port


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback and not host.startswith("::ffff")
    except ValueError:
        return False


def check_key(url: str, key_id: str) -> None:
    """Refuse keys of an account with real money.

    Alpaca's paper keys begin with PK, those of live accounts with AK. This machine's sandbox takes
    any that are not of a live account.

    Parameters
    ----------
    url : str
        As `paper_address` returns it.

    Raises
    ------
    RealMoneyError
        Not a paper key. Nothing was sent, and the error does not repeat the key.
    """
    begins = key_id[:2].upper()
    if begins == "AK" or (url == PAPER_URL and begins != "PK"):
        raise RealMoneyError(
            "this is not a key of an Alpaca paper account",
            cure="make keys in the paper account's own dashboard: their ids begin with PK",
        )


def _refused(url: object, why: str) -> RealMoneyError:
    shown = str(url)
    if "@" in shown:  # whatever precedes it may be a password
        shown = "..." + shown.rpartition("@")[2]
    return RealMoneyError(
        f"{shown[:100]!r} is not asked to trade: {why}",
        cure=f"leave the address out, which means {PAPER_URL}",
    )
