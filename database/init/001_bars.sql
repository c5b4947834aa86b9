-- Bars as rows, what the database is, and which migrations made it.
--
-- Migrations are numbered and only go forward. `marketdata db init` runs those that are missing in
-- one transaction, with search_path set to the configured schema: names here are unqualified.

CREATE TABLE schema_migrations (
    number     integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_migrations IS
    'Migrations applied to this schema, each with the SHA-256 of its file.';

CREATE TABLE store_info (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    bigint  NOT NULL,
    provider text,
    feed     text,
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE store_info IS
    'One row: a random number that tells this schema from every other one (cached copies carry it), '
    'and the provider and feed recorded by the first writer.';
INSERT INTO store_info (epoch) VALUES ((random() * 9007199254740991)::bigint);

-- The CHECKs are the last gate, behind the quality gates of the reader. `x > 0 AND x < 'Infinity'`
-- refuses NaN as well, which PostgreSQL sorts above every number; `high >= low` alone would not.
CREATE TABLE market_data_bars (
    symbol      text             NOT NULL,
    timeframe   text             NOT NULL,
    "timestamp" timestamptz      NOT NULL,
    open        double precision NOT NULL,
    high        double precision NOT NULL,
    low         double precision NOT NULL,
    close       double precision NOT NULL,
    volume      double precision NOT NULL,
    vwap        double precision,
    trade_count double precision,
    provider    text             NOT NULL,
    feed        text             NOT NULL,
    revision    bigint           NOT NULL,
    PRIMARY KEY (symbol, timeframe, "timestamp", provider, feed),
    CONSTRAINT market_data_bars_prices CHECK (
        open > 0 AND open < 'Infinity' AND high > 0 AND high < 'Infinity'
        AND low > 0 AND low < 'Infinity' AND close > 0 AND close < 'Infinity' AND high >= low),
    CONSTRAINT market_data_bars_volume CHECK (volume >= 0 AND volume < 'Infinity'),
    CONSTRAINT market_data_bars_vwap CHECK (vwap >= 0 AND vwap < 'Infinity'),
    CONSTRAINT market_data_bars_trade_count CHECK (trade_count >= 0 AND trade_count < 'Infinity')
) PARTITION BY LIST (timeframe);

COMMENT ON TABLE market_data_bars IS
    'Raw (unadjusted) bars, labelled by their open in UTC; daily bars by exchange midnight. One '
    'series is (provider, feed, symbol, timeframe). No row inside a covered span means that the '
    'market was quiet; see series.coverage and market_data_holdings for what is covered.';
COMMENT ON COLUMN market_data_bars.vwap IS 'NULL where the source has none.';
COMMENT ON COLUMN market_data_bars.trade_count IS 'NULL where the source has none.';
COMMENT ON COLUMN market_data_bars.revision IS
    'stage * 10^13 + milliseconds of observation since 1970; stage 1 closed, 2 revised, 3 final. '
    'A bar is replaced only by one of a higher revision.';

CREATE TABLE market_data_bars_daily PARTITION OF market_data_bars
    FOR VALUES IN ('1day', '1week', '1month');

CREATE TABLE market_data_bars_intraday PARTITION OF market_data_bars
    FOR VALUES IN ('1min', '5min', '15min', '30min', '1hour', '4hour')
    PARTITION BY RANGE ("timestamp");

-- Writers have no DDL rights: this function makes the months they are about to write. CREATE and
-- ATTACH take no lock that waits behind open readers of the parent; PARTITION OF would.
CREATE FUNCTION ensure_bar_partitions(months date[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    month     date;
    partition text;
    made      integer := 0;
BEGIN
    IF cardinality(months) > 1200 THEN
        RAISE EXCEPTION 'too many months at once: %', cardinality(months);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('marketdata.partitions'), hashtext(current_schema()));
    FOR month IN SELECT DISTINCT date_trunc('month', m)::date FROM unnest(months) AS m ORDER BY 1 LOOP
        IF month < DATE '1970-01-01' OR month >= DATE '2200-01-01' THEN
            RAISE EXCEPTION 'no bars are kept for %', month;
        END IF;
        partition := format('market_data_bars_%s', to_char(month, 'YYYY_MM'));
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_inherits
            WHERE inhrelid = to_regclass(partition)
              AND inhparent = 'market_data_bars_intraday'::regclass);
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE market_data_bars_intraday INCLUDING ALL)', partition);
        END IF;
        EXECUTE format(
            'ALTER TABLE market_data_bars_intraday ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            partition,
            to_char(month, 'YYYY-MM-DD') || ' 00:00:00+00',
            to_char(month + interval '1 month', 'YYYY-MM-DD') || ' 00:00:00+00');
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
COMMENT ON FUNCTION ensure_bar_partitions(date[]) IS
    'Make the monthly partitions of intraday bars that these dates fall in; returns how many were made.';
