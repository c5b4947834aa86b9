"""Whole columns as parameters: the server sees what was meant."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest

from marketdata.clock import to_micros
from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.arrays import LONG_AGO, NEVER
from tests.store_examples import AAPL, MSFT

MOMENT = datetime(2024, 1, 2, 14, 30, 0, 1, tzinfo=UTC)


@pytest.fixture
def connection(postgres_url: str):
    with psycopg.connect(postgres_url, prepare_threshold=None) as made:
        arrays.register_arrays(made)
        made.execute("SET LOCAL TimeZone = 'UTC'")
        yield made


@pytest.mark.parametrize(
    ("given", "kind", "seen"),
    [
        (arrays.texts(["", "AAPL", "Zürich, 'x'"]), "text", '{"",AAPL,"Zürich, \'x\'"}'),
        (arrays.ints([0, -1, 2**31 - 1]), "integer", "{0,-1,2147483647}"),
        (arrays.bigints(np.array([0, -(2**62)])), "bigint", "{0,-4611686018427387904}"),
        (arrays.booleans(np.array([True, False])), "boolean", "{t,f}"),
        (arrays.doubles(np.array([0.1, np.nan, 5e-324])), "double precision", "{0.1,NaN,5e-324}"),
        (
            arrays.instants([to_micros(MOMENT), NEVER, LONG_AGO]),
            "timestamptz",
            '{"2024-01-02 14:30:00.000001+00",infinity,-infinity}',
        ),
        (
            arrays.multiranges([[], [Span(0, 1_000_000)]]),
            "tstzmultirange",
            '{"{}","{[\\"1970-01-01 00:00:00+00\\",\\"1970-01-01 00:00:01+00\\")}"}',
        ),
        (arrays.ints([]), "integer", "{}"),
        (arrays.texts([]), "text", "{}"),
    ],
)
def test_an_array_arrives_as_it_was_given(connection, given, kind, seen):
    cast = "text[]::" if kind == "tstzmultirange" else ""
    found = connection.execute(f"SELECT (%s::{cast}{kind}[])::text", (given,)).fetchone()
    assert found == (seen,)


def test_the_fields_of_keys_are_columns(connection):
    columns = arrays.key_arrays([AAPL, MSFT])
    found = connection.execute(
        "SELECT * FROM unnest(%(provider)s::text[], %(feed)s::text[], %(symbol)s::text[],"
        " %(timeframe)s::text[])",
        columns,
    ).fetchall()
    assert found == [tuple(AAPL), tuple(MSFT)]
