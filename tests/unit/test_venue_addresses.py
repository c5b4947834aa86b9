"""Real money is refused, whatever an address pretends to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.errors import RealMoneyError, VenueError
from algorithms.venues.addresses import PAPER_URL, check_key, paper_address
from algorithms.venues.alpaca_paper import AlpacaPaper

ALLOWED = {
    "https://paper-api.alpaca.markets": PAPER_URL,
    "https://paper-api.alpaca.markets/": PAPER_URL,
    "https://paper-api.alpaca.markets:443": PAPER_URL,
    "HTTPS://Paper-API.Alpaca.Markets": PAPER_URL,
    "http://127.0.0.1:8090": "http://127.0.0.1:8090",
    "http://127.0.0.1:8090/": "http://127.0.0.1:8090",
    "http://127.8.9.10": "http://127.8.9.10",
    "http://localhost:1": "http://localhost:1",
    "https://LOCALHOST": "https://localhost",
    "http://[::1]:8090": "http://[::1]:8090",
}

REFUSED = [
    # the live endpoint, plainly and in disguise
    "https://api.alpaca.markets",
    "http://api.alpaca.markets",
    "https://API.ALPACA.MARKETS/",
    "https://Api.Alpaca.Markets:443",
    "https://api.alpaca.markets.",
    "https://api.alpaca.markets:8443/v2",
    "https://paper-api.alpaca.markets@api.alpaca.markets",
    "https://paper-api.alpaca.markets:443@api.alpaca.markets",
    "https://localhost@api.alpaca.markets",
    "https://127.0.0.1:80@api.alpaca.markets",
    "https://user:password@paper-api.alpaca.markets",
    "https://@paper-api.alpaca.markets",
    "https://api.alpaca.markets/https://paper-api.alpaca.markets",
    "https://api.alpaca.markets#paper-api.alpaca.markets",
    "https://api.alpaca.markets?paper-api.alpaca.markets",
    "https://api.alpaca.markets\\@paper-api.alpaca.markets",
    "https://paper-api.alpaca.markets\\@api.alpaca.markets",
    "https://paper-api.alpaca.markets\\.api.alpaca.markets",
    "https://paper-api.alpaca.markets%2f@api.alpaca.markets",
    "https://paper-api.alpaca.markets%00.api.alpaca.markets",
    "https://paper-api.alpaca.markets\x00.api.alpaca.markets",
    "https://paper-api.alpaca.markets\t.example.com",
    "https://paper-api.alpaca.markets\n@api.alpaca.markets",
    " https://paper-api.alpaca.markets",
    "https://paper-api.alpaca.markets ",
    "https://[paper-api.alpaca.markets]",
    "https:paper-api.alpaca.markets",
    "https:/paper-api.alpaca.markets",
    "https:///paper-api.alpaca.markets",
    "//paper-api.alpaca.markets",
    "paper-api.alpaca.markets",
    # the paper host, not quite
    "http://paper-api.alpaca.markets",
    "https://paper-api.alpaca.markets.",
    "https://paper-api.alpaca.markets:8443",
    "https://paper-api.alpaca.markets/v2",
    "https://paper-api.alpaca.markets/../",
    "https://paper-api.alpaca.markets//",
    "https://paper-api.alpaca.markets?x=1",
    "https://paper-api.alpaca.markets#x",
    "https://paper-api.alpaca.markets.example.com",
    "https://paper-api.alpaca.markets-example.com",
    "https://example.com/paper-api.alpaca.markets",
    "https://xpaper-api.alpaca.markets",
    "https://paper-api.alpaca.market",
    "https://paper-api.alpaca.mar\u212aets",
    "https://paper\u2010api.alpaca.markets",
    "https://paper-api\u3002alpaca.markets",
    "https://paper-api.\u0430lpaca.markets",
    "https://\uff50aper-api.alpaca.markets",
    # this machine, not quite
    "http://127.0.0.1.example.com",
    "http://127.1",
    "http://0x7f.0.0.1",
    "http://2130706433",
    "http://0177.0.0.1",
    "http://127.0.0.1.",
    "http://127.0.0.1/v2",
    "http://localhost.example.com",
    "http://localhost.",
    "http://0.0.0.0:8090",
    "http://[::]:8090",
    "http://[::ffff:127.0.0.1]",
    "http://[::ffff:7f00:1]",
    "http://[::1%25eth0]",
    "http://128.0.0.1",
    "http://10.0.0.1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:port",
    # something else
    "https://broker-api.alpaca.markets",
    "https://broker-api.sandbox.alpaca.markets",
    "https://data.alpaca.markets",
    "https://example.com",
    "ftp://127.0.0.1",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "",
    "https://",
    "://",
]


@pytest.mark.parametrize(("url", "plain"), ALLOWED.items())
def test_paper_trading_and_this_machine_are_asked(url: str, plain: str):
    assert paper_address(url) == plain
    assert paper_address(plain) == plain


@pytest.mark.parametrize("url", REFUSED)
def test_everything_else_is_refused(url: str):
    with pytest.raises(RealMoneyError) as caught:
        AlpacaPaper("PK-KEY", "secret", url=url)
    assert isinstance(caught.value, VenueError)
    assert not caught.value.transient
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 5, b"https://paper-api.alpaca.markets"])
def test_what_is_no_text_is_refused(url: object):
    with pytest.raises(RealMoneyError):
        paper_address(url)  # type: ignore[arg-type]


@given(st.text(max_size=60) | st.from_regex(r"https?://[ -~]{0,40}", fullmatch=True))
def test_nothing_but_the_allowed_gets_through(text: str):
    """What comes out has one of three hosts, as the library that sends requests reads it."""
    from urllib3.util import parse_url

    try:
        plain = paper_address(text)
    except RealMoneyError:
        return
    host = str(parse_url(plain).host).strip("[]")
    assert plain == PAPER_URL or host in ("localhost", "::1") or host.startswith("127.")


@given(
    st.sampled_from([*ALLOWED]), st.text("@\\/%.:#? \t\n\x00aA1", min_size=1, max_size=3), st.data()
)
def test_nothing_slips_in_beside_the_allowed(url: str, more: str, data: st.DataObject):
    at = data.draw(st.integers(0, len(url)))
    try:
        plain = paper_address(url[:at] + more + url[at:])
    except RealMoneyError:
        return
    assert plain == PAPER_URL or plain.split("//")[1].startswith(("127.", "localhost", "[::1]"))


@pytest.mark.parametrize(
    "key", ["AK1234567890", "ak1234567890", "CK1234567890", "", "XP123456", "KPK12345"]
)
def test_keys_that_are_not_of_paper_trading_are_refused(key: str):
    with pytest.raises(RealMoneyError) as caught:
        check_key(PAPER_URL, key)
    assert not key or key not in str(caught.value)


def test_paper_keys_are_taken():
    check_key(PAPER_URL, "PK1234567890")
    check_key("http://127.0.0.1:8090", "anything")
    with pytest.raises(RealMoneyError):
        check_key("http://127.0.0.1:8090", "AK1234567890")
