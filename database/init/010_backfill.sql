-- What coverage cannot say of a gap: that it was asked for and could not be fetched.

CREATE TABLE backfill_failures (
    provider        text      NOT NULL,
    feed            text      NOT NULL,
    symbol          text      NOT NULL,
    timeframe       text      NOT NULL,
    span            tstzrange NOT NULL,
    error           text      NOT NULL,
    attempts        integer   NOT NULL CHECK (attempts > 0),
    first_failed_at timestamptz NOT NULL,
    last_failed_at  timestamptz NOT NULL,
    next_retry_at   timestamptz NOT NULL,
    PRIMARY KEY (provider, feed, symbol, timeframe, span)
);
COMMENT ON TABLE backfill_failures IS
    'Stretches of stored series that a backfill could not fetch. They are gaps like any other, '
    'which the next backfill leaves alone until next_retry_at; fetched, they are gone from here.';
COMMENT ON COLUMN backfill_failures.span IS 'The stretch, half-open; of one series they are disjoint.';
COMMENT ON COLUMN backfill_failures.error IS 'What the last attempt failed with.';
COMMENT ON COLUMN backfill_failures.attempts IS 'How often in a row; the wait doubles with each.';
COMMENT ON COLUMN backfill_failures.first_failed_at IS 'Market time of the first of these attempts.';
COMMENT ON COLUMN backfill_failures.last_failed_at IS 'Market time of the last attempt.';
COMMENT ON COLUMN backfill_failures.next_retry_at IS
    'Market time before which it is left alone; `marketdata backfill --retry-failed` does not wait.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON backfill_failures TO marketdata_writer;
    END IF;
END
$$;
