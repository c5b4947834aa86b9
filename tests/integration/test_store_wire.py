"""PostgreSQL's binary formats against PostgreSQL itself."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.spans import Span, normalise
from marketdata.store.wire import multirange_text, register_loaders

INSTANTS = st.integers(-2_000_000_000_000_000, 7_000_000_000_000_000)


@pytest.fixture(scope="module")
def connection(postgres_url: str):
    with psycopg.connect(postgres_url, autocommit=True) as made:
        made.execute("SET TimeZone = 'Asia/Kathmandu'")
        register_loaders(made)
        yield made


@given(st.lists(st.tuples(INSTANTS, INSTANTS), max_size=8))
@settings(max_examples=50, deadline=None)
def test_spans_go_to_a_multirange_and_back(connection, pairs):
    spans = normalise(Span(min(p), max(p)) for p in pairs)
    text = multirange_text(spans)
    back = connection.execute("SELECT %s::tstzmultirange", (text,), binary=True).fetchone()
    assert back == (spans,)


@pytest.mark.parametrize("text", ["{[2024-01-01,)}", "{(2024-01-01,2024-01-02)}", "{(,)}"])
def test_coverage_that_is_not_ours_is_refused(connection, text: str):
    cursor = connection.execute("SELECT %s::tstzmultirange", (text,), binary=True)
    with pytest.raises(ValueError, match="half-open"):
        cursor.fetchone()
