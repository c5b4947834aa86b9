"""Where errors of PostgreSQL, psycopg and SQLAlchemy become ours: one table, read in one place.

SQLSTATE codes and their classes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg
import sqlalchemy.exc

from marketdata.errors import (
    ConfigurationError,
    DataQualityError,
    MarketDataError,
    SchemaError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

FOREIGN: Final = (psycopg.Error, sqlalchemy.exc.SQLAlchemyError)
"""What the store's driver and pool raise."""

INIT_CURE: Final = "run: marketdata db init"


class Retry(Enum):
    """Whether the store itself tries the same transaction again."""

    NEVER = "never"
    RECONNECTED = "reconnected"  # once, on a new connection
    CONFLICT = "conflict"  # several times, with jitter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a foreign error means to us."""

    error: type[MarketDataError]
    words: str
    cure: str | None = None
    transient: bool | None = None
    retry: Retry = Retry.NEVER


_GONE = Verdict(
    StoreUnavailableError, "the connection to PostgreSQL was lost", retry=Retry.RECONNECTED
)
_BUSY = Verdict(
    StoreUnavailableError,
    "PostgreSQL is short of resources",
    cure="try again later; check its connections, memory and disk",
)
_CONFLICT = Verdict(
    StoreUnavailableError,
    "the transaction kept colliding with others",
    cure="try again",
    retry=Retry.CONFLICT,
)
_SLOW = Verdict(
    StoreUnavailableError,
    "PostgreSQL did not finish within its time limit",
    cure="ask for less at once, or look for what blocks it in pg_stat_activity",
)
_BAD_VALUE = Verdict(
    DataQualityError,
    "PostgreSQL refused a value",
    cure="nothing of this commit was stored; report the bars as a bug",
)
_READ_ONLY = Verdict(
    StoreReadOnlyError,
    "PostgreSQL takes no writes",
    cure="check default_transaction_read_only and whether this is a standby",
)
_FULL = Verdict(
    StoreReadOnlyError, "PostgreSQL has no disk space left", cure="free disk space on its server"
)
_FORBIDDEN = Verdict(
    StoreReadOnlyError,
    "this PostgreSQL user lacks a right",
    cure="grant it the role marketdata_writer; run: marketdata doctor",
)
_NO_SCHEMA = Verdict(SchemaError, "the database schema is missing or out of date", cure=INIT_CURE)
_NO_PARTITION = Verdict(
    StoreUnavailableError, "the partition of a month has just been dropped", cure="try again"
)
_REFUSED = Verdict(
    ConfigurationError,
    "PostgreSQL refused the user, password or database",
    cure="check MARKETDATA_DATABASE_URL; run: marketdata doctor",
)
_DAMAGED = Verdict(
    StoreError, "PostgreSQL reports damage or an internal error", cure="see the server's log"
)
_BUG = Verdict(
    StoreError, "PostgreSQL refused a statement", cure="report this as a bug, with the message"
)

BY_SQLSTATE: Final[dict[str, Verdict]] = {
    # five characters: one condition; two: a whole class
    "25006": _READ_ONLY,
    "25P03": _GONE,  # idle in transaction for too long: the server has hung up
    "25P04": _SLOW,
    "3D000": _REFUSED,
    "3F000": _NO_SCHEMA,
    "42501": _FORBIDDEN,
    "42P01": _NO_SCHEMA,
    "42703": _NO_SCHEMA,
    "42883": _NO_SCHEMA,
    "53100": _FULL,
    "55P03": _SLOW,
    "57014": _SLOW,
    "57P01": _GONE,
    "57P02": _GONE,
    "57P03": Verdict(StoreUnavailableError, "PostgreSQL is starting up or shutting down"),
    "57P04": _REFUSED,
    "57P05": _GONE,
    "00": _BUG,
    "01": _BUG,
    "02": _BUG,
    "03": _BUG,
    "08": _GONE,
    "09": _BUG,
    "0A": _BUG,
    "0B": _BUG,
    "0F": _BUG,
    "0L": _FORBIDDEN,
    "0P": _FORBIDDEN,
    "0Z": _BUG,
    "10": _BUG,
    "20": _BUG,
    "21": _BUG,
    "22": _BAD_VALUE,
    "23": _BAD_VALUE,
    "24": _BUG,
    "25": _BUG,
    "26": _BUG,
    "27": _BUG,
    "28": _REFUSED,
    "2B": _FORBIDDEN,
    "2D": _BUG,
    "2F": _BUG,
    "34": _BUG,
    "38": _BUG,
    "39": _BUG,
    "3B": _BUG,
    "3D": _REFUSED,
    "3F": _NO_SCHEMA,
    "40": _CONFLICT,
    "42": _BUG,
    "44": _BAD_VALUE,
    "53": _BUSY,
    "54": _BUG,
    "55": _BUSY,
    "57": _BUSY,
    "58": _DAMAGED,
    "72": _CONFLICT,
    "F0": _DAMAGED,
    "HV": _BUG,
    "P0": _BUG,
    "XX": _DAMAGED,
}

BY_CLASS: Final[tuple[tuple[type[BaseException], Verdict], ...]] = (
    # for errors without SQLSTATE: they come from the client side
    (
        psycopg.errors.ConnectionTimeout,
        Verdict(StoreUnavailableError, "PostgreSQL does not answer"),
    ),
    (psycopg.OperationalError, _GONE),
    (psycopg.InterfaceError, _GONE),
    (psycopg.DataError, _BAD_VALUE),
    (psycopg.IntegrityError, _BAD_VALUE),
    (psycopg.Error, _BUG),
    (
        sqlalchemy.exc.TimeoutError,
        Verdict(
            StoreUnavailableError,
            "every connection of this process to PostgreSQL stayed busy",
            cure="use fewer threads, or a larger pool",
        ),
    ),
    (sqlalchemy.exc.SQLAlchemyError, _BUG),
)


def driver_error(error: BaseException) -> BaseException:
    """Return the psycopg error inside a SQLAlchemy error, or the error itself."""
    inner = getattr(error, "orig", None)
    return inner if isinstance(inner, BaseException) else error


def judge(error: BaseException) -> Verdict:
    """Return what a foreign error means, by its SQLSTATE, else by its class."""
    error = driver_error(error)
    if missing_partition(error):
        return _NO_PARTITION
    state = getattr(error, "sqlstate", None)
    if state:
        found = BY_SQLSTATE.get(state) or BY_SQLSTATE.get(state[:2])
        if found is not None:
            return found
    return next((v for kind, v in BY_CLASS if isinstance(error, kind)), _BUG)


def missing_partition(error: BaseException) -> bool:
    """Return whether a row found no partition: 23514 that names no constraint."""
    error = driver_error(error)
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None


def translate(error: BaseException, where: str) -> MarketDataError:
    """Return our error for a foreign one; `where` is the server's address without secrets."""
    verdict = judge(error)
    inner = driver_error(error)
    state = getattr(inner, "sqlstate", None)
    said = str(inner).strip().splitlines()
    message = f"{verdict.words} ({where})"
    if said:
        message += f": {said[0]}"
    return verdict.error(message, cure=verdict.cure, transient=verdict.transient, sqlstate=state)
