"""``marketdata db``: make the schema, or say which state it is in; see `sealing` for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from marketdata.cli import sealing
from marketdata.cli.exits import CONFIGURATION, DONE
from marketdata.cli.options import SERVERS, command
from marketdata.cli.output import Output, make_table

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.store import PostgresStore


def register(app: typer.Typer) -> None:
    db = typer.Typer(no_args_is_help=True, help="The database: its schema, and what is sealed.")
    command(db, "init", SERVERS)(init)
    command(db, "status", SERVERS)(status)
    sealing.register(db)
    app.add_typer(db, name="db")


@contextmanager
def open_store(settings: Settings) -> Iterator[PostgresStore]:
    """Yield the configured store, whatever its schema; start the embedded server if it is that."""
    from marketdata.store import PostgresStore

    lease = None
    url = settings.database_url
    if url is None:
        from marketdata import embedded

        lease = embedded.acquire(settings.home, redis=False)
        url = lease.servers.database_url
    try:
        with PostgresStore(url, schema=settings.database_schema, pool_size=2) as store:
            yield store
    finally:
        if lease is not None:
            lease.release()


def awaits_first_use(settings: Settings, store: PostgresStore) -> bool:
    """Whether this is an embedded database nobody has read from yet: the first read prepares it."""
    from marketdata.store.migrations import Migrator

    return settings.database_url is None and not Migrator(store.database).applied()


def init(
    out: Output,
    settings: Settings,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the script for an administrator; change nothing.")
    ] = False,
) -> int:
    """Make the schema, or bring it up to this release."""
    if sql:
        from marketdata.store.migrations import migration_sql

        script = migration_sql(settings.database_schema)
        if out.as_json:
            return out.done(sql=script)
        print(script, end="")
        return DONE
    with open_store(settings) as store:
        applied = store.migrate()
        where = f"schema {store.database.schema} of {store.database.address}"
    out.line(
        f"{where}: applied migration {', '.join(map(str, applied))}"
        if applied
        else f"{where}: up to date, nothing to do"
    )
    return out.done(applied=applied)


def status(out: Output, settings: Settings) -> int:
    """Print which migrations the database has."""
    from marketdata.store.migrations import Migrator, load_migrations

    with open_store(settings) as store:
        migrator = Migrator(store.database)
        applied = migrator.applied()
        where = f"schema {store.database.schema} of {store.database.address}"
        known = load_migrations()
        table = make_table("number", "migration", "state", right=["number"])
        out.line(where, "bold")
        for each in known:
            state = "pending"
            if each.number in applied:
                state = "applied" if applied[each.number] == each.checksum else "applied, differs"
            out.row({"number": each.number, "name": each.name, "state": state})
            table.add_row(str(each.number), each.name, state)
        out.table(table)
        if len(applied) == 0 or max(applied) < len(known):
            out.note("run: marketdata db init", style="yellow")
        else:
            store.check_schema()
    pending = len([m for m in known if m.number not in applied])
    code = CONFIGURATION if pending else DONE
    return out.done(code, version=max(applied, default=0), newest=len(known), pending=pending)
