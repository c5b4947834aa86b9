"""The settings: which servers, which broker, which keys, and where each value came from.

Four places are read, the earlier one winning: keywords, the environment, ``.env`` in the working
directory, and the TOML file that ``MARKETDATA_CONFIG`` names. `Settings.load` reads them once;
afterwards nothing changes under a running client.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, get_args
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from dotenv import dotenv_values
from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from marketdata.clock import parse_clock
from marketdata.errors import ConfigurationError, InvalidSymbolError, InvalidTimeframeError
from marketdata.own_brokers import installed, is_name
from marketdata.types import Adjustment, Timeframe, unique_symbols

PREFIX: Final = "MARKETDATA_"
TEST_PREFIX: Final = "MARKETDATA_TEST_"
KEYWORD: Final = "keyword"
MASK: Final = "***"

BROKERS: Final = ("alpaca", "yahoo", "sandbox")
"""The brokers of this library, as ``MARKETDATA_BROKER`` names them."""
ALONE: Final = frozenset({"auto", "none"})
"""What it may say instead, and never in a list."""

_TIME_OF_DAY: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_OFFICIAL_HOSTS: Final = {
    "alpaca": frozenset({"data.alpaca.markets"}),
    "yahoo": frozenset({"query1.finance.yahoo.com", "query2.finance.yahoo.com"}),
}


def _lowered(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _number_or_word(value: object) -> object:
    text = str(value).strip().lower()
    if not text.isdigit():
        return text
    if int(text) < 1:
        raise ValueError("not above 0")
    return int(text)


def _broker_names(value: object) -> object:
    """Return the brokers to ask, in order, joined by commas."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        raise ValueError("not a list of brokers")
    names = [name.strip().lower() for name in names]
    if not names or len(set(names)) < len(names):
        raise ValueError("none, or one twice")
    if names[1:] and not ALONE.isdisjoint(names):
        raise ValueError("this one stands alone")
    others = [name for name in names if name not in BROKERS and name not in ALONE]
    if others and not all(is_name(name) for name in others):
        raise ValueError("not a name")
    if others and not installed().keys() >= set(others):
        raise ValueError("no such broker")
    return ",".join(names)


def _timeframes(value: object) -> object:
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError("not a list of timeframes")
    try:
        return tuple(Timeframe.parse(word) for word in words)
    except InvalidTimeframeError as error:
        raise ValueError(str(error)) from None


def _times(value: object) -> object:
    """Return times of day ascending; ``never`` is none."""
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
        raise ValueError("not a list of times")
    if [w.lower() for w in words] == ["never"]:
        return ()
    if not words or not all(_TIME_OF_DAY.fullmatch(w) for w in words):
        raise ValueError("not times of day")
    return tuple(sorted(set(words)))


def _trailed(value: object) -> object:
    """Return ``all``, ``none``, or symbols in canonical spelling."""
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
        raise ValueError("not a list of symbols")
    if len(words) == 1 and words[0].lower() in ("all", "none"):
        return words[0].lower()
    try:
        return tuple(unique_symbols(words))
    except InvalidSymbolError as error:
        raise ValueError(str(error)) from None


def _url_with(schemes: tuple[str, ...]) -> AfterValidator:
    def check(url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("not a URL") from None
        if parts.scheme not in schemes:
            raise ValueError("not such a URL")
        return url

    return AfterValidator(check)


def _web_url(url: str) -> str:
    if not urlsplit(url).hostname:
        raise ValueError("no host")
    return url.rstrip("/")


PostgresUrl = Annotated[str, _url_with(("postgresql", "postgres"))]
RedisUrl = Annotated[str, _url_with(("redis", "rediss", "unix"))]
WebUrl = Annotated[str, _url_with(("http", "https")), AfterValidator(_web_url)]


class Origin(NamedTuple):
    """Where a value came from: ``keyword``, ``environment``, ``.env`` or a file, and under what name."""

    place: str
    name: str


class Setting(NamedTuple):
    """One line of ``marketdata config``; secrets are masked."""

    name: str
    value: str
    source: str


class Settings(BaseSettings):
    """Every setting of one client, frozen. Made by `load`.

    The description of a field says what may be written there; errors and ``marketdata config``
    repeat it. Keys are `SecretStr`; passwords inside URLs are masked wherever settings are shown.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: PostgresUrl | None = Field(
        None, description="postgresql://user:password@host:5432/name; unset: the embedded server"
    )
    redis_url: RedisUrl | None = Field(
        None, description="redis://host:6379/0, rediss://... or unix://...; unset: the embedded one"
    )
    home: Path = Field(
        default_factory=lambda: user_data_path("marketdata", appauthor=False),
        description="a directory of your own for the embedded servers",
    )
    database_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = Field(
        "marketdata",
        description="a PostgreSQL schema name: lower-case letters, digits and underscores",
    )
    broker: Annotated[str, BeforeValidator(_broker_names)] = Field(
        "auto",
        description="auto, alpaca, yahoo, sandbox, or none for stored data only; the name of a "
        "broker that a package adds; or several in the order to ask them, such as alpaca,yahoo",
    )
    alpaca_key_id: SecretStr | None = Field(
        None, description="the key ID of the Alpaca dashboard", min_length=1
    )
    alpaca_secret_key: SecretStr | None = Field(
        None, description="the secret that came with the key ID", min_length=1
    )
    alpaca_url: WebUrl | None = Field(
        None, description="http(s)://host of a server that speaks Alpaca's market-data REST"
    )
    alpaca_trading_url: WebUrl | None = Field(
        None, description="http(s)://host of a server that speaks Alpaca's trading REST"
    )
    yahoo_url: WebUrl | None = Field(
        None, description="http(s)://host of a server that answers as Yahoo does"
    )
    feed: Annotated[str, BeforeValidator(_lowered), Field(pattern=r"^[a-z][a-z_]*$")] | None = (
        Field(None, description="a feed of the broker, such as sip or iex; unset: its default")
    )
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = Field(
        300.0, description="seconds one call may take, above 0"
    )
    tz: str = Field("UTC", description="an IANA name such as America/New_York, or exchange")
    clock: str = Field(
        "system",
        description="system, an instant such as 2024-03-08T14:30:00Z, "
        "or replay:2024-03-08T14:30:00Z@60",
    )
    adjustment: Annotated[Adjustment, BeforeValidator(_lowered)] = Field(
        "raw", description="raw, split, dividend or all"
    )
    progress: Annotated[Literal["auto", "on", "off"], BeforeValidator(_lowered)] = Field(
        "auto", description="auto, on or off"
    )
    max_lookback: Annotated[int, Field(ge=1, le=36_500)] = Field(
        3_650, description="days that limit=N may walk back, 1 to 36500"
    )
    poll: Annotated[int, Field(ge=60, le=3_600)] = Field(
        60, description="seconds between cycles in market hours, 60 to 3600"
    )
    poll_after_hours: Annotated[int, Field(ge=60, le=86_400)] = Field(
        900, description="seconds between cycles outside market hours, 60 to 86400"
    )
    seal_after: Annotated[Literal["never"] | int, BeforeValidator(_number_or_word)] = Field(
        10, description="sessions after which intraday bars are sealed, 1 to 1000, or never"
    )
    retention: Annotated[Literal["never"] | int, BeforeValidator(_number_or_word)] = Field(
        730, description="days that intraday bars are kept, 1 or more, or never to drop any"
    )
    trail: Annotated[Literal["all", "none"] | tuple[str, ...], BeforeValidator(_trailed)] = Field(
        "all",
        description="all, none, or the symbols whose replaced values are kept, such as AAPL,MSFT",
    )
    indicator_history: Annotated[tuple[Timeframe, ...], BeforeValidator(_timeframes)] = Field(
        (), description="timeframes whose indicator values are kept for ever, such as 1day,1hour"
    )
    backfill_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = Field(
        "01:00", description="when the nightly backfill starts, HH:MM New York time"
    )
    actions_at: Annotated[tuple[str, ...], BeforeValidator(_times)] = Field(
        ("06:15", "18:15"),
        description="when corporate actions are asked for again, HH:MM,HH:MM New York time, or never",
    )
    backfill_years: Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)] = Field(
        2.0, description="years of history that the backfill fills, above 0"
    )
    listen: Annotated[str, Field(pattern=r"^[^\s/]+:\d{1,5}$")] = Field(
        "127.0.0.1:9464", description="host:port where the daemon answers health and metrics"
    )
    companions: Annotated[Literal["on", "off"], BeforeValidator(_lowered)] = Field(
        "on", description="on or off: whether the daemon runs what other packages put beside it"
    )
    log: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lowered)
    ] = Field("warning", description="debug, info, warning, error or critical")
    config: Path | None = Field(None, description="a TOML file of these settings")
    origins: Mapping[str, Origin] = Field(default_factory=dict)
    """For each setting that was given: the place it came from."""

    @field_validator("home", "config")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("tz")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name != "exchange" and name not in available_timezones():
            raise ValueError("no such time zone")
        return name

    @field_validator("clock")
    @classmethod
    def _readable_clock(cls, text: str) -> str:
        try:
            parse_clock(text)
        except ConfigurationError:
            raise ValueError("not a clock") from None
        return text

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.alpaca_key_id is None) != (self.alpaca_secret_key is None):
            given, missing = (
                ("alpaca_key_id", "alpaca_secret_key")
                if self.alpaca_key_id
                else ("alpaca_secret_key", "alpaca_key_id")
            )
            raise ValueError(
                f"{self._variable(given)} is set, {VARIABLES[missing][0]} is not: set both or none"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The stock sources keep no record of where a value came from, and let a misspelt
        # variable pass in the environment: `load` reads the places, this class validates.
        return (init_settings,)

    @classmethod
    def load(cls, **keywords: Any) -> Settings:
        """Read the four places and return the settings.

        Parameters
        ----------
        **keywords
            Settings by field name, or by variable name without its prefix in lower case
            (``schema``); None means not given.

        Raises
        ------
        ConfigurationError
            Lists every unknown name (with the nearest valid one) or every value that cannot be
            used (with its variable, its place and what to write); a retry does not help.
        """
        given = {_KEYWORDS.get(k, k): v for k, v in keywords.items() if v is not None}
        values: dict[str, Any] = {}
        origins: dict[str, Origin] = {}
        problems: dict[str, str] = {}
        for place, variables in _places(given):
            for name in variables:
                if problem := _unknown(name, place):
                    problems.setdefault(name, problem)
            for field, names in VARIABLES.items():
                candidates = (field,) if place == KEYWORD else names
                given_as = [n for n in candidates if variables.get(n) not in (None, "")]
                if given_as and field not in values:
                    values[field] = variables[given_as[0]]
                    origins[field] = Origin(place, given_as[0])
        try:
            settings = cls(**values, origins=origins)
        except ValidationError as error:
            problems |= _unusable(error, values, origins)
        if problems:
            raise ConfigurationError("; ".join(problems.values()), names=list(problems))
        return settings

    @property
    def brokers(self) -> tuple[str, ...]:
        """The brokers to ask, in order; most settings name one."""
        return tuple(self.broker.split(","))

    @property
    def trailed(self) -> frozenset[str] | None:
        """The symbols whose replaced values are kept; None for all."""
        if isinstance(self.trail, str):
            return None if self.trail == "all" else frozenset()
        return frozenset(self.trail)

    def source_of(self, name: str) -> str:
        """Return where a setting (by field name) came from, such as ``.env`` or ``default``."""
        origin = self.origins.get(_KEYWORDS.get(name, name))
        return origin.place if origin else "default"

    def describe(self) -> list[Setting]:
        """Return every setting under its variable's name, masked, with its source."""
        return [
            Setting(
                self._variable(field), _shown(field, getattr(self, field)), self.source_of(field)
            )
            for field in VARIABLES
        ]

    def _variable(self, field: str) -> str:
        origin = self.origins.get(field)
        return origin.name if origin and origin.place != KEYWORD else VARIABLES[field][0]

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        for field in VARIABLES:
            yield field, _shown(field, getattr(self, field))

    def __str__(self) -> str:
        return repr(self)


_NAMED_DIFFERENTLY: Final = {
    "database_schema": (f"{PREFIX}SCHEMA",),  # pydantic keeps `schema` for itself
    "alpaca_key_id": ("APCA_API_KEY_ID", "ALPACA_API_KEY"),
    "alpaca_secret_key": ("APCA_API_SECRET_KEY", "ALPACA_API_SECRET"),
}
VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    field: _NAMED_DIFFERENTLY.get(field, (PREFIX + field.upper(),))
    for field in Settings.model_fields
    if field != "origins"
}
"""The variables of each field, the preferred one first."""

_FIELDS: Final = {name: field for field, names in VARIABLES.items() for name in names}
_KEYWORDS: Final = {field: field for field in VARIABLES} | {
    name.removeprefix(PREFIX).lower(): field
    for name, field in _FIELDS.items()
    if name.startswith(PREFIX)
}


def _places(keywords: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each place with its variables, the strongest first."""
    try:
        in_directory = dotenv_values(".env")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{Path('.env').absolute()} cannot be read: {error}") from None
    yield KEYWORD, keywords
    yield "environment", os.environ
    yield ".env", in_directory
    name = f"{PREFIX}CONFIG"
    path = keywords.get("config") or os.environ.get(name) or in_directory.get(name)
    if path:
        yield str(path), _read_file(Path(path).expanduser())


def _read_file(path: Path) -> dict[str, Any]:
    """Return the file's variables; ``broker`` is accepted for ``MARKETDATA_BROKER``."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
        return {VARIABLES[_KEYWORDS[k]][0] if k in _KEYWORDS else k: found[k] for k in found}
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        problem = f'is not TOML ({error}); write lines such as {PREFIX}BROKER = "yahoo"'
    raise ConfigurationError(f"the settings file {path} (named by {PREFIX}CONFIG) {problem}")


def _unknown(name: str, place: str) -> str | None:
    """Return what is wrong with a name, or None where it is known or none of our business."""
    if place == KEYWORD:
        if name in VARIABLES:
            return None
        valid = list(_KEYWORDS)
    else:
        if name in _FIELDS or not name.startswith(PREFIX) or name.startswith(TEST_PREFIX):
            return None
        valid = list(_FIELDS)
    nearest = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`marketdata config` lists the valid names"
    return f"{name} ({place}) is not a setting: {hint}"


def _unusable(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, Origin]
) -> dict[str, str]:
    """Return a sentence for each value that cannot be used, by the name it was given under."""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        if not detail["loc"]:
            problems["keys"] = str(detail["msg"]).removeprefix("Value error, ")
            continue
        field = str(detail["loc"][0])
        origin = origins[field]
        problems[origin.name] = (
            f"{origin.name}={_shown(field, values[field])!r} ({origin.place}) cannot be used: "
            f"write {Settings.model_fields[field].description}"
        )
    return problems


def is_secret(field: str) -> bool:
    """Return whether a setting is never shown: whether its annotation holds `SecretStr`."""
    return _holds_secret(Settings.model_fields[field].annotation)


def _holds_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_holds_secret(a) for a in get_args(annotation))


def _shown(field: str, value: object) -> str:
    """Return a value as it may be shown: keys hidden, URLs without their passwords."""
    if value is None:
        return ""
    if is_secret(field):
        return MASK
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return masked_url(text) if field.endswith("_url") else text


def masked_url(url: str) -> str:
    """Return `url` with its password, and any secret in its query, replaced by ``***``."""
    url = _PASSWORD.sub(rf"\g<1>{MASK}\g<2>", url, count=1)
    return _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", url)


# By pattern, not by parsing: a URL that cannot be parsed must not show its password either.
_PASSWORD: Final = re.compile(r"^([^/?#]*//[^/?#]*?:).*(@)")
_SECRET_PARAMETER: Final = re.compile(r"((?:[?&;]|^)\w*(?:pass|secret|token|key)\w*=)[^&#]*", re.I)


def provider_of(url: str | None, default: str) -> str:
    """Return under which provider data from `url` is stored.

    Parameters
    ----------
    url : str or None
        The configured server; None is the provider's own.
    default : str
        ``alpaca`` or ``yahoo``.

    Returns
    -------
    str
        `default` for the provider's own hosts, else ``host`` or ``host:port`` in lower case, so
        that data of a foreign server never passes for the provider's.
    """
    if url is None:
        return default
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if host in _OFFICIAL_HOSTS.get(default, frozenset()):
        return default
    if ":" in host:
        host = f"[{host}]"
    return host if parts.port is None else f"{host}:{parts.port}"
