-- What is known about each series, and the views that people and monitoring read.

CREATE TABLE series (
    provider        text           NOT NULL,
    feed            text           NOT NULL,
    symbol          text           NOT NULL,
    timeframe       text           NOT NULL,
    coverage        tstzmultirange NOT NULL DEFAULT '{}',
    revision        bigint         NOT NULL DEFAULT 0,
    unsettled       tstzmultirange NOT NULL DEFAULT '{}',
    first_bar       timestamptz,
    last_bar        timestamptz,
    bar_count       bigint         NOT NULL DEFAULT 0,
    last_fetched_at timestamptz,
    PRIMARY KEY (provider, feed, symbol, timeframe)
) WITH (fillfactor = 70);  -- updated in place with every commit
CREATE INDEX series_symbol ON series (symbol);

COMMENT ON TABLE series IS 'One row per series: what was answered completely, and what is stored.';
COMMENT ON COLUMN series.coverage IS
    'Spans for which the provider has answered completely, quiet time included. Gaps are what was '
    'asked minus this; rows prove nothing.';
COMMENT ON COLUMN series.revision IS 'Grows with every commit that changes bars or coverage.';
COMMENT ON COLUMN series.unsettled IS
    'Part of coverage whose bars were observed before the provider''s own early corrections only: '
    'the next request beside it reads it again.';
COMMENT ON COLUMN series.last_fetched_at IS 'Market time at which the provider was last asked.';

CREATE TABLE symbols (
    symbol     text PRIMARY KEY,
    name       text,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE symbols IS 'What symbols are called; names come with the identity of securities.';
COMMENT ON COLUMN symbols.name IS 'NULL until then.';

-- A view, so that it can never disagree with `series`.
CREATE VIEW symbol_metadata AS
    SELECT s.symbol,
           max(n.name)          AS name,
           min(s.first_bar)     AS earliest_data_date,
           max(s.last_bar)      AS latest_data_date,
           sum(s.bar_count)::bigint AS total_bars_stored,
           max(s.last_fetched_at)   AS last_fetched_at
    FROM series AS s LEFT JOIN symbols AS n USING (symbol)
    GROUP BY s.symbol;
COMMENT ON VIEW symbol_metadata IS
    'One row per symbol over all its series: first and last bar, number of stored bars, freshness. '
    'Read this instead of counting market_data_bars.';
COMMENT ON COLUMN symbol_metadata.name IS 'NULL for now: names come with the identity of securities.';

CREATE VIEW market_data_holdings AS
    SELECT s.provider, s.feed, s.symbol, s.timeframe,
           s.first_bar                AS rows_from,
           s.last_bar                 AS rows_to,
           s.bar_count                AS row_count,
           lower(s.coverage)          AS covered_from,
           upper(s.coverage)          AS covered_to,
           (SELECT count(*) FROM unnest(s.coverage)) AS covered_ranges,
           (SELECT count(*) FROM unnest(s.unsettled)) AS unsettled_ranges,
           lower(s.unsettled)         AS unsettled_from,
           s.revision, s.last_fetched_at
    FROM series AS s;
COMMENT ON VIEW market_data_holdings IS
    'What the database holds of each series: where its rows lie, how many, and what is covered. '
    'covered_ranges is 1 for a series without gaps, unsettled_ranges 0 for one that is past '
    'corrections.';
