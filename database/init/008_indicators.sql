-- Indicator values: one row a series and instant, its values in an array; the view unfolds them.

CREATE TABLE indicator_sets (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    names  text[]  NOT NULL CHECK (cardinality(names) > 0),
    digest text    NOT NULL UNIQUE
);
COMMENT ON TABLE indicator_sets IS
    'Which indicators the arrays of indicator_latest and indicator_history hold, in their order.';
COMMENT ON COLUMN indicator_sets.names IS 'Output columns such as rsi_14 or macd_12_26_9_signal.';
COMMENT ON COLUMN indicator_sets.digest IS 'Of the names: a long list fits into no index.';

CREATE TABLE indicator_series (
    number     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider   text NOT NULL,
    feed       text NOT NULL,
    symbol     text NOT NULL,
    timeframe  text NOT NULL,
    adjustment text NOT NULL,
    UNIQUE (symbol, timeframe, provider, feed, adjustment)
);
COMMENT ON TABLE indicator_series IS
    'A number for each series that has indicator values: what is written every minute names it by that.';
COMMENT ON COLUMN indicator_series.timeframe IS
    'Of the bars the values are computed on, derived timeframes included.';
COMMENT ON COLUMN indicator_series.adjustment IS 'Of the bars the values are computed on: split.';

-- Rewritten every minute: half of each page is left free, so that updates stay in it. No foreign
-- keys: one would be checked for each of ten thousand rows.
CREATE TABLE indicator_latest (
    series           integer PRIMARY KEY,
    set_number       integer            NOT NULL,
    "timestamp"      timestamptz        NOT NULL,
    indicator_values double precision[] NOT NULL,
    revision         bigint             NOT NULL,
    actions_as_of    timestamptz        NOT NULL,
    action_version   bigint             NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE indicator_latest IS
    'The newest values of each series. A row is replaced only by one computed from a bar revision '
    'and a knowledge of corporate actions that are both no older.';
COMMENT ON COLUMN indicator_latest."timestamp" IS 'Open of the newest bar, UTC.';
COMMENT ON COLUMN indicator_latest.indicator_values IS
    'In the order of indicator_sets.names; NaN where the series is too young.';
COMMENT ON COLUMN indicator_latest.revision IS
    'series.revision of the stored bars the values were computed from.';
COMMENT ON COLUMN indicator_latest.actions_as_of IS
    'Market time at which the provider had last been asked about corporate actions.';
COMMENT ON COLUMN indicator_latest.action_version IS
    'A number for the set of splits applied; it changes with each of them, 0 is none.';

CREATE TABLE indicator_history (
    series           integer            NOT NULL,
    "timestamp"      timestamptz        NOT NULL,
    set_number       integer            NOT NULL,
    indicator_values double precision[] NOT NULL,
    revision         bigint             NOT NULL,
    actions_as_of    timestamptz        NOT NULL,
    action_version   bigint             NOT NULL,
    PRIMARY KEY (series, "timestamp")
);
COMMENT ON TABLE indicator_history IS
    'Values of every bar, of the timeframes that MARKETDATA_INDICATOR_HISTORY names. Columns as in '
    'indicator_latest; a new split or a corrected bar rewrites them.';

CREATE VIEW market_data_indicators AS
    SELECT k.symbol,
           k.timeframe,
           v."timestamp",
           c.indicator_name,
           v.indicator_values[c.place] AS indicator_value,
           k.provider,
           k.feed,
           k.adjustment,
           CASE v.action_version WHEN 0 THEN '0'
                ELSE lpad(to_hex(v.action_version), 12, '0') END AS action_version
    FROM (SELECT series, "timestamp", set_number, indicator_values, action_version
          FROM indicator_latest
          UNION ALL
          SELECT h.series, h."timestamp", h.set_number, h.indicator_values, h.action_version
          FROM indicator_history AS h LEFT JOIN indicator_latest AS l USING (series)
          WHERE h."timestamp" IS DISTINCT FROM l."timestamp") AS v
    JOIN indicator_series AS k ON k.number = v.series
    JOIN indicator_sets AS s ON s.number = v.set_number
    CROSS JOIN LATERAL unnest(s.names) WITH ORDINALITY AS c (indicator_name, place)
    WHERE v.indicator_values[c.place] <> 'NaN';
COMMENT ON VIEW market_data_indicators IS
    'Values of the default indicators, one a row: the newest of each series that is subscribed or '
    'was read, and of subscribed ones all of the timeframes that MARKETDATA_INDICATOR_HISTORY '
    'names. No row where a series is too young for an indicator. For a value at any other time ask '
    'get_indicators().';
COMMENT ON COLUMN market_data_indicators."timestamp" IS 'Open of the bar, UTC.';
COMMENT ON COLUMN market_data_indicators.indicator_name IS
    'As get_indicators() names its columns: rsi_14, macd_12_26_9_signal.';
COMMENT ON COLUMN market_data_indicators.adjustment IS 'Of the bars the value is computed on.';
COMMENT ON COLUMN market_data_indicators.action_version IS
    'A word for the splits applied: values of one series with different ones do not compare.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE
            ON indicator_sets, indicator_series, indicator_latest, indicator_history
            TO marketdata_writer;
    END IF;
END
$$;
