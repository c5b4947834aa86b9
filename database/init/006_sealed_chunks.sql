-- Settled intraday bars as sealed chunks: one compressed block per series and stretch of days, about
-- ten times smaller and faster to read than rows.

ALTER TABLE series
    ADD COLUMN final        tstzmultirange NOT NULL DEFAULT '{}',
    ADD COLUMN sealed       tstzmultirange NOT NULL DEFAULT '{}',
    ADD COLUMN pinned       tstzmultirange NOT NULL DEFAULT '{}',
    ADD COLUMN first_row    timestamptz,
    ADD COLUMN last_row     timestamptz,
    ADD COLUMN sealed_count bigint  NOT NULL DEFAULT 0,
    ADD COLUMN corrections  integer NOT NULL DEFAULT 0,
    ADD COLUMN tombstones   integer NOT NULL DEFAULT 0;
UPDATE series SET first_row = first_bar, last_row = last_bar;
-- What was stored before this migration is final where its bars' own revisions (stage 3) say so:
-- not the days with a bar of a lower stage, and nothing after the newest day that is known final.
WITH days AS (
    SELECT provider, feed, symbol, timeframe,
           date_trunc('day', "timestamp", 'America/New_York') AS midnight,
           min(revision) >= 30000000000000 AS is_final
    FROM market_data_bars_intraday
    GROUP BY provider, feed, symbol, timeframe, midnight),
spans AS (
    SELECT days.*, (midnight AT TIME ZONE 'America/New_York' + interval '1 day')
                   AT TIME ZONE 'America/New_York' AS next_midnight
    FROM days),
known AS (
    SELECT provider, feed, symbol, timeframe, max(next_midnight) FILTER (WHERE is_final) AS until,
           coalesce(range_agg(tstzrange(midnight, next_midnight)) FILTER (WHERE NOT is_final), '{}')
               AS doubtful
    FROM spans GROUP BY provider, feed, symbol, timeframe)
UPDATE series AS s
SET final = (s.coverage - s.unsettled - k.doubtful) * tstzmultirange(tstzrange(NULL, k.until))
FROM known AS k
WHERE k.until IS NOT NULL
  AND (s.provider, s.feed, s.symbol, s.timeframe) = (k.provider, k.feed, k.symbol, k.timeframe);
COMMENT ON COLUMN series.final IS
    'Part of coverage that was observed when the provider''s correction period was over: an '
    'observation made before that never replaces a bar here.';
COMMENT ON COLUMN series.sealed IS
    'Whole days whose bars are stored in bar_chunks, corrected by bar_corrections; no row of '
    'market_data_bars lies here.';
COMMENT ON COLUMN series.pinned IS 'Days unsealed by hand: sealing leaves their rows alone.';
COMMENT ON COLUMN series.bar_count IS 'All stored bars, sealed ones included.';
COMMENT ON COLUMN series.first_row IS 'The oldest bar in market_data_bars; older ones are sealed.';
COMMENT ON COLUMN series.last_row IS 'The newest bar in market_data_bars.';
COMMENT ON COLUMN series.sealed_count IS 'The bars inside sealed.';
COMMENT ON COLUMN series.corrections IS 'Rows of bar_corrections that wait to be merged into chunks.';
COMMENT ON COLUMN series.tombstones IS 'Rows of bar_corrections that say a bar was withdrawn.';

CREATE TABLE bar_chunks (
    symbol     text        NOT NULL,
    timeframe  text        NOT NULL,
    provider   text        NOT NULL,
    feed       text        NOT NULL,
    span_start timestamptz NOT NULL,
    span_end   timestamptz NOT NULL,
    first_bar  timestamptz NOT NULL,
    last_bar   timestamptz NOT NULL,
    bar_count  integer     NOT NULL CHECK (bar_count > 0),
    revision   bigint      NOT NULL,
    data       bytea       NOT NULL,
    PRIMARY KEY (symbol, timeframe, provider, feed, span_start),
    CONSTRAINT bar_chunks_span CHECK (
        span_start <= first_bar AND first_bar <= last_bar AND last_bar < span_end)
);
ALTER TABLE bar_chunks ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE bar_chunks IS
    'Sealed bars: one compressed block per series and stretch of whole New York days, a week or, '
    'once that is wholly sealed, a month. Chunks of one series never overlap. Only the library can '
    'decode them: see market_data_holdings for what is sealed, use `marketdata export` for Parquet '
    'or CSV and `marketdata db unseal` to have rows again.';
COMMENT ON COLUMN bar_chunks.span_start IS 'First New York midnight of the days in this chunk.';
COMMENT ON COLUMN bar_chunks.span_end IS 'The midnight after its last day.';
COMMENT ON COLUMN bar_chunks.revision IS 'The highest revision of its bars; see market_data_bars.';
COMMENT ON COLUMN bar_chunks.data IS 'The encoded bars; compressed already, so stored as they are.';

CREATE TABLE bar_corrections (
    symbol      text             NOT NULL,
    timeframe   text             NOT NULL,
    provider    text             NOT NULL,
    feed        text             NOT NULL,
    "timestamp" timestamptz      NOT NULL,
    withdrawn   boolean          NOT NULL,
    pending     boolean          NOT NULL,
    revision    bigint           NOT NULL,
    open        double precision,
    high        double precision,
    low         double precision,
    close       double precision,
    volume      double precision,
    vwap        double precision,
    trade_count double precision,
    PRIMARY KEY (symbol, timeframe, provider, feed, "timestamp"),
    CONSTRAINT bar_corrections_prices CHECK (withdrawn OR (
        open > 0 AND open < 'Infinity' AND high > 0 AND high < 'Infinity'
        AND low > 0 AND low < 'Infinity' AND close > 0 AND close < 'Infinity' AND high >= low)
        IS TRUE),
    CONSTRAINT bar_corrections_amounts CHECK (withdrawn OR (
        volume >= 0 AND volume < 'Infinity') IS TRUE),
    CONSTRAINT bar_corrections_vwap CHECK (vwap >= 0 AND vwap < 'Infinity'),
    CONSTRAINT bar_corrections_trade_count CHECK (trade_count >= 0 AND trade_count < 'Infinity'),
    CONSTRAINT bar_corrections_kind CHECK (withdrawn OR pending)
);
CREATE INDEX bar_corrections_pending ON bar_corrections (symbol, timeframe) WHERE pending;
COMMENT ON TABLE bar_corrections IS
    'What differs from the sealed chunks since they were written, and bars that the provider has '
    'withdrawn. A pending row beats its chunk until the next sealing merges it.';
COMMENT ON COLUMN bar_corrections.withdrawn IS
    'The provider no longer has this bar. Such a row stays after it was merged: an older '
    'observation must not bring the bar back.';
COMMENT ON COLUMN bar_corrections.pending IS 'Not yet merged into the chunk of its day.';

DROP VIEW market_data_holdings;
CREATE VIEW market_data_holdings AS
    SELECT s.provider, s.feed, s.symbol, s.timeframe,
           s.first_row                AS rows_from,
           s.last_row                 AS rows_to,
           s.bar_count - s.sealed_count AS row_count,
           lower(s.sealed)            AS sealed_from,
           upper(s.sealed)            AS sealed_to,
           s.sealed_count,
           s.corrections              AS corrections_pending,
           s.first_bar, s.last_bar, s.bar_count,
           lower(s.coverage)          AS covered_from,
           upper(s.coverage)          AS covered_to,
           (SELECT count(*) FROM unnest(s.coverage)) AS covered_ranges,
           (SELECT count(*) FROM unnest(s.unsettled)) AS unsettled_ranges,
           lower(s.unsettled)         AS unsettled_from,
           s.revision, s.last_fetched_at
    FROM series AS s;
COMMENT ON VIEW market_data_holdings IS
    'What the database holds of each series, and in which form: rows of market_data_bars from '
    'rows_from to rows_to, sealed bars in bar_chunks from sealed_from to sealed_to, with the number '
    'of each, and what is covered. covered_ranges is 1 for a series without gaps, unsettled_ranges 0 '
    'for one that is past corrections.';
COMMENT ON COLUMN symbol_metadata.total_bars_stored IS 'Rows and sealed bars together.';
COMMENT ON TABLE market_data_bars IS
    'Raw (unadjusted) bars, labelled by their open in UTC; daily bars by exchange midnight. One '
    'series is (provider, feed, symbol, timeframe). Intraday bars here are the newest sessions: '
    'older ones live in bar_chunks, see market_data_holdings for what lies where, and use '
    '`marketdata export` or `marketdata db unseal SYMBOL --start --end` to have them in SQL. No row '
    'inside a covered span means that the market was quiet; see series.coverage for what is covered.';

-- Dropping a partition takes the parent from everybody for a moment: it is asked for with a short
-- patience, so that nobody queues behind us, and callers try again. Readers of the library lock the
-- parent before they take their snapshot, so a partition that is empty for us is empty for all of
-- them. Looking whether it is empty keeps out that month's writers only.
CREATE FUNCTION drop_empty_bar_partition(month date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '200ms'
AS $$
DECLARE
    partition text := format('market_data_bars_%s', to_char(month, 'YYYY_MM'));
    filled    boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('marketdata.partitions'), hashtext(current_schema()));
    IF NOT EXISTS (
        SELECT FROM pg_inherits
        WHERE inhrelid = to_regclass(partition)
          AND inhparent = 'market_data_bars_intraday'::regclass) THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', partition);
    EXECUTE format('SELECT EXISTS (SELECT FROM %I)', partition) INTO filled;
    IF filled THEN
        RETURN false;
    END IF;
    LOCK TABLE ONLY market_data_bars_intraday IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('ALTER TABLE market_data_bars_intraday DETACH PARTITION %I', partition);
    EXECUTE format('DROP TABLE %I', partition);
    RETURN true;
END
$$;
COMMENT ON FUNCTION drop_empty_bar_partition(date) IS
    'Drop the monthly partition of intraday bars that this date falls in, if it has no row; returns '
    'whether it is gone. Fails with 55P03 while somebody reads or writes.';
REVOKE EXECUTE ON FUNCTION drop_empty_bar_partition(date) FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON bar_chunks, bar_corrections TO marketdata_writer;
        GRANT EXECUTE ON FUNCTION drop_empty_bar_partition(date) TO marketdata_writer;
    END IF;
END
$$;
