-- How processes on the same store share work and request budgets.

-- UNLOGGED: after a crash nobody is in flight.
CREATE UNLOGGED TABLE flights (
    id          text NOT NULL,
    provider    text NOT NULL,
    feed        text NOT NULL,
    symbol      text NOT NULL,
    timeframe   text NOT NULL,
    span_start  timestamptz NOT NULL,
    span_end    timestamptz NOT NULL,
    lease_until timestamptz NOT NULL,
    finished_at timestamptz,
    error       jsonb
);
CREATE UNIQUE INDEX flights_in_air ON flights (provider, feed, symbol, timeframe)
    WHERE finished_at IS NULL;
CREATE INDEX flights_id ON flights (id);
CREATE INDEX flights_finished ON flights (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE flights IS
    'Who is fetching which series (finished_at NULL), and for a minute afterwards how it ended. '
    'A flight whose lease has run out may be taken over.';

-- One row per credential: requests granted in each second, in a ring of 61 seconds. The newest 61
-- seconds hold every possible window of 60, so no window ever exceeds the limit.
CREATE TABLE rate_budgets (
    credential   text PRIMARY KEY,
    granted      integer[] NOT NULL DEFAULT array_fill(0, ARRAY[61]),
    newest       bigint NOT NULL DEFAULT 0,
    paused_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE rate_budgets IS
    'Requests granted to each credential (a digest, never the credential itself) in the last minute.';

CREATE FUNCTION take_request(for_credential text, per_minute integer, reserve integer)
    RETURNS double precision
    LANGUAGE plpgsql SET search_path FROM CURRENT
AS $$
DECLARE
    budget rate_budgets;
    moment timestamptz;
    this   bigint;
    used   bigint;
    most   bigint := per_minute::bigint - reserve;
BEGIN
    SELECT * INTO budget FROM rate_budgets WHERE credential = for_credential FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO rate_budgets (credential) VALUES (for_credential) ON CONFLICT DO NOTHING;
        SELECT * INTO STRICT budget FROM rate_budgets WHERE credential = for_credential FOR UPDATE;
    END IF;
    moment := clock_timestamp();  -- asked after the lock: waiting for it takes time
    IF budget.paused_until > moment THEN
        RETURN extract(epoch FROM budget.paused_until - moment);
    END IF;
    this := floor(extract(epoch FROM moment))::bigint;
    IF budget.newest > this + 60 THEN
        -- The clock was set back: everything granted lately counts as granted now.
        SELECT sum(g) INTO used FROM unnest(budget.granted) AS g;
        budget.granted := array_fill(0, ARRAY[61]);
        budget.granted[this % 61 + 1] := used;
        budget.newest := this;
    END IF;
    this := greatest(this, budget.newest);
    FOR past IN greatest(budget.newest + 1, this - 60) .. this LOOP
        budget.granted[past % 61 + 1] := 0;
    END LOOP;
    budget.newest := this;
    SELECT sum(g) INTO used FROM unnest(budget.granted) AS g;
    IF used < most THEN
        budget.granted[this % 61 + 1] := budget.granted[this % 61 + 1] + 1;
        UPDATE rate_budgets SET granted = budget.granted, newest = this
        WHERE credential = for_credential;
        RETURN 0;
    END IF;
    FOR past IN this - 60 .. this LOOP
        used := used - budget.granted[past % 61 + 1];
        IF used < most THEN
            RETURN past + 61 - extract(epoch FROM moment);
        END IF;
    END LOOP;
    RETURN 61;  -- a limit of 0, or all of it held back
END
$$;
COMMENT ON FUNCTION take_request(text, integer, integer) IS
    'Take one request from a budget: 0 if granted, otherwise the seconds to wait (nothing is taken). '
    'It is granted only while more than `reserve` requests of the window are left.';
