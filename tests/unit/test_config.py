"""Settings: four places in their order, unknown names refused, secrets never shown."""

import pickle
from pathlib import Path

import pytest

from marketdata.config import VARIABLES, Settings, is_secret, masked_url, provider_of
from marketdata.errors import ConfigurationError


@pytest.fixture(autouse=True)
def empty_surroundings(tmp_path, monkeypatch):
    """No variable and no .env of the machine reaches these tests."""
    for names in VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**keywords) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**keywords)
    assert not caught.value.transient
    assert str(caught.value).endswith("run: marketdata doctor")
    return str(caught.value)


def test_defaults_need_no_configuration():
    settings = Settings.load()
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.broker == "auto"
    assert settings.adjustment == "raw"
    assert settings.tz == "UTC"
    assert settings.home.is_absolute()
    assert {line.source for line in settings.describe()} == {"default"}


def test_keyword_beats_environment_beats_dotenv_beats_file(tmp_path, monkeypatch):
    layers = {
        "keyword": ("sandbox", lambda: None),
        "environment": ("none", lambda: monkeypatch.setenv("MARKETDATA_BROKER", "none")),
        ".env": ("yahoo", lambda: Path(".env").write_text("MARKETDATA_BROKER=yahoo\n")),
    }
    file = tmp_path / "settings.toml"
    file.write_text('MARKETDATA_BROKER = "alpaca"\nMARKETDATA_TIMEOUT = 7\n')
    monkeypatch.setenv("MARKETDATA_CONFIG", str(file))

    assert Settings.load().broker == "alpaca"
    assert Settings.load().source_of("broker") == str(file)
    for place in (".env", "environment"):
        value, arrange = layers[place]
        arrange()
        settings = Settings.load()
        assert (settings.broker, settings.source_of("broker")) == (value, place)
    settings = Settings.load(broker="sandbox")
    assert (settings.broker, settings.source_of("broker")) == ("sandbox", "keyword")
    assert settings.timeout == 7.0


def test_configuration_file_is_found_through_dotenv_and_keyword(tmp_path):
    (tmp_path / "settings.toml").write_text(
        'feed = "iex"\nschema = "prices"\n[tool.other]\nx = 1\n'
    )
    assert Settings.load(config=tmp_path / "settings.toml").feed == "iex"
    Path(".env").write_text("MARKETDATA_CONFIG=settings.toml\n")
    assert Settings.load().database_schema == "prices"


@pytest.mark.parametrize("place", ["environment", ".env", "file"])
def test_misspelt_variable_is_refused_with_the_nearest_one(place, tmp_path, monkeypatch):
    if place == "environment":
        monkeypatch.setenv("MARKETDATA_DATABSE_URL", "x")
        monkeypatch.setenv("MARKETDATA_BROKR", "x")
    elif place == ".env":
        Path(".env").write_text("MARKETDATA_DATABSE_URL=x\nMARKETDATA_BROKR=x\n")
    else:
        file = tmp_path / "settings.toml"
        file.write_text('MARKETDATA_DATABSE_URL = "x"\nMARKETDATA_BROKR = "x"\n')
        monkeypatch.setenv("MARKETDATA_CONFIG", str(file))
    message = refusal()
    assert "MARKETDATA_DATABSE_URL" in message
    assert "did you mean MARKETDATA_DATABASE_URL?" in message
    assert "did you mean MARKETDATA_BROKER?" in message


def test_foreign_names_and_test_variables_are_let_through(monkeypatch):
    monkeypatch.setenv("MARKETDATA_TEST_ANYTHING", "1")
    monkeypatch.setenv("MARKET_DATA_URL", "1")
    monkeypatch.setenv("APCA_API_BASE_URL", "1")
    Path(".env").write_text("DJANGO_SECRET=1\nBROKER=nonsense\nHOME=nowhere\n")
    assert Settings.load().broker == "auto"


def test_unknown_keyword_names_the_nearest():
    assert "did you mean database_url?" in refusal(databse_url="postgresql://h/d")


def test_empty_variable_means_unset(monkeypatch):
    monkeypatch.setenv("MARKETDATA_REDIS_URL", "")
    assert Settings.load().redis_url is None
    assert Settings.load().source_of("redis_url") == "default"


def test_every_unusable_value_is_named_with_place_and_remedy(monkeypatch):
    monkeypatch.setenv("MARKETDATA_BROKER", "alpacca")
    monkeypatch.setenv("MARKETDATA_TYPO", "x")
    Path(".env").write_text("MARKETDATA_TIMEOUT=soon\n")
    message = refusal(tz="Mars/Olympus", clock="yesterday")
    assert "MARKETDATA_BROKER='alpacca' (environment)" in message
    assert "auto, alpaca, yahoo, sandbox" in message
    assert "MARKETDATA_TIMEOUT='soon' (.env)" in message
    assert "America/New_York" in message
    assert "replay:" in message
    assert "MARKETDATA_TYPO" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "mysql://h/d"),
        ("database_url", "postgresql+psycopg://h/d"),
        ("database_url", "postgresql://h:port/d"),
        ("redis_url", "localhost:6379"),
        ("alpaca_url", "https://"),
        ("alpaca_url", "data.alpaca.markets"),
        ("schema", 'x"; drop table bars; --'),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("max_lookback", 0),
        ("clock", "2024-03-08T14:30:00"),
        ("feed", "s i p"),
        ("adjustment", "splits"),
        ("actions_at", "6:15"),
        ("actions_at", "06:15,24:00"),
        ("actions_at", "06:15,never"),
        ("actions_at", []),
        ("log", "loud"),
    ],
)
def test_unusable_value_is_refused(name, value):
    assert name in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "postgresql://u@h:5432/d?sslmode=require"),
        ("database_url", "postgres:///d?host=/run/postgresql"),
        ("redis_url", "unix:///run/redis.sock?db=2"),
        ("redis_url", "rediss://h:6380/1"),
        ("tz", "exchange"),
        ("tz", "Europe/Vienna"),
        ("clock", "replay:2024-03-08T14:30:00Z@60"),
    ],
)
def test_usable_value_is_kept_as_written(name, value):
    assert getattr(Settings.load(**{name: value}), name) == value


def test_both_spellings_of_the_keys(monkeypatch):
    monkeypatch.setenv("ALPACA_API_KEY", "old-id")
    monkeypatch.setenv("ALPACA_API_SECRET", "old-secret")
    settings = Settings.load()
    assert settings.alpaca_key_id is not None
    assert settings.alpaca_key_id.get_secret_value() == "old-id"
    monkeypatch.setenv("APCA_API_KEY_ID", "new-id")
    preferred = Settings.load().alpaca_key_id
    assert preferred is not None
    assert preferred.get_secret_value() == "new-id"


def test_half_a_key_is_refused(monkeypatch):
    monkeypatch.setenv("ALPACA_API_KEY", "only-id")
    message = refusal()
    assert "ALPACA_API_KEY is set, APCA_API_SECRET_KEY is not" in message
    assert "only-id" not in message


def test_secrets_are_shown_nowhere(monkeypatch):
    secret = "hunter2@/:x"
    monkeypatch.setenv("APCA_API_KEY_ID", f"id-{secret}")
    monkeypatch.setenv("APCA_API_SECRET_KEY", secret)
    monkeypatch.setenv("MARKETDATA_REDIS_URL", f"redis://:{secret}@h:6379/0")
    settings = Settings.load(database_url="postgresql://u@h/d?password=hunter2&sslmode=require")
    shown = f"{settings!r} {settings} {settings.describe()}"
    assert "hunter2" not in shown
    assert "sslmode=require" in shown
    lines = {line.name: line for line in settings.describe()}
    assert lines["APCA_API_SECRET_KEY"].value == "***"
    assert lines["MARKETDATA_REDIS_URL"].value == "redis://:***@h:6379/0"
    broken = refusal(database_url=f"mysql://u:{secret}@h/d", redis_url="ftp://u:hunter2@h", tz="?")
    assert "hunter2" not in broken
    assert "mysql://u:***@h/d" in broken


SECRETS = [f for f in VARIABLES if is_secret(f)]
URLS = [f for f in VARIABLES if f.endswith("_url")]


def test_the_keys_are_secrets():
    assert SECRETS == ["alpaca_key_id", "alpaca_secret_key"]


@pytest.mark.parametrize("field", SECRETS)
def test_every_secret_is_masked_by_its_type(field):
    settings = Settings.load(**dict.fromkeys(SECRETS, "hunter2"))
    assert getattr(settings, field).get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings.describe()}"
    (line,) = [s for s in settings.describe() if s.name == VARIABLES[field][0]]
    assert line.value == "***"
    assert "hunter2" not in refusal(**{field: ["hunter2"]})


@pytest.mark.parametrize("field", URLS)
def test_every_url_is_shown_without_its_password(field):
    scheme = {"database_url": "postgresql", "redis_url": "redis"}.get(field, "https")
    settings = Settings.load(**{field: f"{scheme}://user:hunter2@host:1234/x?token=hunter2"})
    assert "hunter2" not in f"{settings!r} {settings.describe()}"
    assert "hunter2" not in refusal(**{field: "nonsense://user:hunter2@host"})


def test_settings_are_frozen_and_picklable():
    settings = Settings.load(home="~/bars")
    assert settings.home == Path("~/bars").expanduser()
    with pytest.raises(ValueError, match="frozen"):
        settings.broker = "yahoo"
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("body", "words"),
    [(None, "cannot be read"), (b"broker: yahoo", "not TOML"), (b"\xff", "UTF-8")],
)
def test_unreadable_configuration_file(body, words, tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    if body is not None:
        file.write_bytes(body)
    monkeypatch.setenv("MARKETDATA_CONFIG", str(file))
    message = refusal()
    assert words in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("url", "default", "provider"),
    [
        (None, "alpaca", "alpaca"),
        ("https://data.alpaca.markets", "alpaca", "alpaca"),
        ("https://query1.finance.yahoo.com", "yahoo", "yahoo"),
        ("https://data.alpaca.markets", "yahoo", "data.alpaca.markets"),
        ("http://Prices.Example.com/v2", "alpaca", "prices.example.com"),
        ("http://127.0.0.1:8787", "alpaca", "127.0.0.1:8787"),
        ("http://[::1]:8787", "yahoo", "[::1]:8787"),
        ("https://data.alpaca.markets.example.com", "alpaca", "data.alpaca.markets.example.com"),
    ],
)
def test_foreign_servers_are_their_own_provider(url, default, provider):
    assert provider_of(url, default) == provider


def test_url_without_secret_is_shown_whole():
    url = "postgresql://reader@db.example.com:5432/prices?sslmode=require"
    assert masked_url(url) == url


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("all", None),
        ("NONE", frozenset()),
        ("aapl, brk-b MSFT", frozenset({"AAPL", "BRK.B", "MSFT"})),
        (["AAPL"], frozenset({"AAPL"})),
    ],
)
def test_the_trail_is_kept_for_all_none_or_some_symbols(written: object, kept: object):
    assert Settings.load(trail=written).trailed == kept


@pytest.mark.parametrize("written", ["AAPL ^GSPC", 5, "1e9"])
def test_a_trail_of_what_is_no_symbol_is_refused(written: object):
    with pytest.raises(ConfigurationError, match="all, none, or the symbols"):
        Settings.load(trail=written)
