-- What observed bars were before they became what they are: the trail of old and new values, since
-- when it is kept, what was first observed late, and how often which field changes.

CREATE TABLE bar_revisions (
    symbol       text        NOT NULL,
    timeframe    text        NOT NULL,
    provider     text        NOT NULL,
    feed         text        NOT NULL,
    "timestamp"  timestamptz NOT NULL,
    new_revision bigint      NOT NULL,
    old_revision bigint      NOT NULL,
    old_stage    smallint    NOT NULL CHECK (old_stage BETWEEN 1 AND 3),
    old_values   double precision[],
    new_values   double precision[],
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, timeframe, provider, feed, "timestamp", new_revision),
    CONSTRAINT bar_revisions_old CHECK (cardinality(old_values) = 7),
    CONSTRAINT bar_revisions_new CHECK (cardinality(new_values) = 7),
    CONSTRAINT bar_revisions_change CHECK (old_values IS DISTINCT FROM new_values)
);
COMMENT ON TABLE bar_revisions IS
    'The trail: one row for every time a stored bar was replaced by one with other values, '
    'withdrawn, came back, or appeared where an answer before had none. The oldest row of a bar has '
    'in old_values what was observed first, the newest one in new_values what is stored now. '
    'Intraday entries go with their bars; MARKETDATA_TRAIL names the symbols it is kept for.';
COMMENT ON COLUMN bar_revisions.new_revision IS
    'As market_data_bars.revision: stage * 10^13 + milliseconds of observation since 1970.';
COMMENT ON COLUMN bar_revisions.old_revision IS
    'Of what was replaced; its milliseconds are 0 where it is not known when it was observed.';
COMMENT ON COLUMN bar_revisions.old_stage IS
    'How settled the replaced bar was held to be: 1 closed, 2 revised, 3 final. It may be more than '
    'the stage of old_revision: a bar seen again unchanged is not written anew.';
COMMENT ON COLUMN bar_revisions.old_values IS
    'open, high, low, close, volume, vwap, trade_count, with NaN where the source has none; NULL '
    'where there was no bar.';
COMMENT ON COLUMN bar_revisions.new_values IS 'Likewise; NULL where the bar was withdrawn.';
COMMENT ON COLUMN bar_revisions.recorded_at IS 'By this server''s clock, not market time.';

CREATE TABLE bar_arrivals (
    symbol      text        NOT NULL,
    timeframe   text        NOT NULL,
    provider    text        NOT NULL,
    feed        text        NOT NULL,
    first_bar   timestamptz NOT NULL,
    last_bar    timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    PRIMARY KEY (symbol, timeframe, provider, feed, first_bar),
    CHECK (first_bar <= last_bar)
);
COMMENT ON TABLE bar_arrivals IS
    'Bars that were first observed long after their close, by a backfill for example: from first_bar '
    'to last_bar at observed_at (market time). All others were observed when they closed.';

ALTER TABLE series ADD COLUMN untrailed_until timestamptz;
COMMENT ON COLUMN series.untrailed_until IS
    'Market time up to which values may have been replaced without an entry in bar_revisions; NULL '
    'where the trail is complete.';
UPDATE series SET untrailed_until = last_fetched_at;

CREATE TABLE drift_counters (
    provider   text     NOT NULL,
    feed       text     NOT NULL,
    timeframe  text     NOT NULL,
    stage      text     NOT NULL,
    field      text     NOT NULL,
    slot       smallint NOT NULL,
    bars       bigint   NOT NULL,
    largest    double precision NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (provider, feed, timeframe, stage, field, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE drift_counters IS
    'How many observed bars replaced stored ones with other values, by field: every one since the '
    'series were made, whatever MARKETDATA_TRAIL says. Add up the slots: writers take different ones '
    'so that they do not wait for each other.';
COMMENT ON COLUMN drift_counters.stage IS
    'From what to what, such as closed->revised, revised->final or final->verified.';
COMMENT ON COLUMN drift_counters.field IS
    'A column of market_data_bars; bars (any of them, once), withdrawn, returned (after a '
    'withdrawal) or appeared (where an answer before had no bar).';
COMMENT ON COLUMN drift_counters.largest IS
    'The largest relative change of the field so far; 0 where it has no size.';

-- For SQL: the trail with names and times instead of numbers.
CREATE VIEW bar_trail AS
    SELECT provider, feed, symbol, timeframe, "timestamp",
           (ARRAY['closed', 'revised', 'final'])[old_stage] AS state_from,
           CASE WHEN old_stage = 3 AND new_revision / 10000000000000 = 3 THEN 'verified'
                ELSE (ARRAY['closed', 'revised', 'final'])[new_revision / 10000000000000]
           END AS state_to,
           CASE WHEN old_revision % 10000000000000 > 0
                THEN to_timestamp((old_revision % 10000000000000) / 1000.0) END AS observed_from,
           to_timestamp((new_revision % 10000000000000) / 1000.0) AS observed_to,
           old_values[1] AS open_from, new_values[1] AS open_to,
           old_values[2] AS high_from, new_values[2] AS high_to,
           old_values[3] AS low_from, new_values[3] AS low_to,
           old_values[4] AS close_from, new_values[4] AS close_to,
           old_values[5] AS volume_from, new_values[5] AS volume_to,
           old_values[6] AS vwap_from, new_values[6] AS vwap_to,
           old_values[7] AS trade_count_from, new_values[7] AS trade_count_to,
           new_values IS NULL AS withdrawn
    FROM bar_revisions;
COMMENT ON VIEW bar_trail IS
    'bar_revisions for people: what each field was before and after, and when either was observed '
    '(market time). NULL in all of one side: there was no bar.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON bar_revisions, bar_arrivals, drift_counters
            TO marketdata_writer;
    END IF;
END
$$;
