"""`database`: the store's address, for programs with tables of their own beside the bars."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

import marketdata as md
from tests.stack import Stack


def test_a_program_keeps_a_table_of_its_own_beside_the_bars(stack: Stack) -> None:
    found = stack.client.database()
    assert isinstance(found, md.Database)
    with psycopg.connect(found.url) as connection:
        connection.execute("CREATE TABLE public.mine AS SELECT 1 AS n")
        tables = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = %s", [found.schema]
        ).fetchone()
    assert tables is not None
    assert tables[0] > 5
    with stack.connect() as other:
        assert other.database() == found


def test_the_schema_is_made_by_the_call(stack: Stack) -> None:
    with stack.connect(database_schema="elsewhere") as client:
        found = client.database()
        assert found.schema == "elsewhere"
        with psycopg.connect(found.url) as connection:
            row = connection.execute("SELECT to_regclass('elsewhere.series')").fetchone()
    assert row is not None
    assert row[0] is not None


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cr3t@host:5432/bars", "postgresql://host/bars?password=s3cr3t"]
)
def test_the_password_is_in_no_repr(url: str) -> None:
    found = md.Database(url, "marketdata")
    for shown in (repr(found), str(found), f"{found}", repr([found]), repr({"at": found})):
        assert "s3cr3t" not in shown
        assert "bars" in shown
    assert found.url == url


def test_the_embedded_server_is_started(tmp_path: Path) -> None:
    with md.connect(home=tmp_path / "home", broker="sandbox", progress="off") as client:
        found = client.database()
        with psycopg.connect(found.url) as connection:
            row = connection.execute("SELECT count(*) FROM marketdata.series").fetchone()
    assert row == (0,)
