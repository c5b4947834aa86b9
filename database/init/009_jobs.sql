-- Who acts: leases of the daemon and its jobs, what the jobs did, and counters of every process.

CREATE TABLE leases (
    name        text PRIMARY KEY,
    holder      text        NOT NULL,
    token       text        NOT NULL,
    fence       bigint      NOT NULL DEFAULT 1,
    acquired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL,
    details     jsonb       NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);  -- renewed in place every few seconds
COMMENT ON TABLE leases IS
    'Who acts: one row for the leading daemon ("daemon") and one per job ("job:cycle"). A lease whose '
    'time has run out, by this server''s clock, is free to anybody.';
COMMENT ON COLUMN leases.holder IS 'User, host and process that held it last, for people.';
COMMENT ON COLUMN leases.token IS 'Random; only who knows it renews or releases the lease.';
COMMENT ON COLUMN leases.fence IS 'Grows by 1 with every change of hands: an older number is stale.';
COMMENT ON COLUMN leases.lease_until IS 'By this server''s clock; in the past once released.';
COMMENT ON COLUMN leases.details IS 'What the holder says of itself, such as release and address.';

CREATE TABLE job_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job         text        NOT NULL,
    occasion    text,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    outcome     text CHECK (outcome IN (
        'done', 'incomplete', 'stopped', 'failed', 'lost', 'skipped', 'missed', 'error')),
    market_time timestamptz NOT NULL,
    summary     jsonb,
    error       jsonb,
    holder      text        NOT NULL,
    fence       bigint      NOT NULL,
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX job_runs_job ON job_runs (job, id);
CREATE INDEX job_runs_occasion ON job_runs (job, occasion) WHERE occasion IS NOT NULL;
COMMENT ON TABLE job_runs IS
    'What each job did and when: the newest 1,000 runs of each, and its newest success.';
COMMENT ON COLUMN job_runs.occasion IS
    'The night (date in New York) a nightly run belongs to: it runs once. NULL for others.';
COMMENT ON COLUMN job_runs.outcome IS
    'NULL while it runs. done; incomplete: finished with failed symbols; stopped: asked to end early; '
    'failed: with an error; lost: its process went away; skipped, missed, error: it never began, '
    'because the run before it still went on, nobody was there, or it could not be recorded.';
COMMENT ON COLUMN job_runs.market_time IS 'Market time at the start, which differs in a replay.';
COMMENT ON COLUMN job_runs.summary IS 'The report''s figures.';
COMMENT ON COLUMN job_runs.error IS 'Type, message and cure of what ended it.';
COMMENT ON COLUMN job_runs.fence IS 'The fence of the lease it ran under.';

CREATE TABLE counters (
    name       text PRIMARY KEY,
    value      bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE counters IS
    'Totals over every process that ever ran on this store, as in md.stats(): each process adds what it '
    'counted about once a minute and when it ends.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON leases, job_runs, counters TO marketdata_writer;
    END IF;
END
$$;
