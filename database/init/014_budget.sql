-- One request budget for four kinds of callers: 0 live cycles, 1 interactive reads, 2 backfill,
-- 3 verify. Backfill and verify are background work: nobody waits for them.
--
-- A request of kind p is granted if, of the requests of the last minute,
--   a) those of all kinds together are fewer than the limit less what p leaves to its betters:
--      background work leaves what the largest cycle of late has needed twice over, so that the next
--      one finds its budget while the last one still counts, and a floor for reads that come
--      unannounced;
--      reads leave what a cycle needed lately and has not used yet, half of the limit at most;
--   b) nobody above p waits: who is refused counts as waiting until the moment named to him is over;
--   c) for background work: the pace is kept. It begins with an eighth of the limit at once and goes
--      on evenly, so that budget comes free all the time once it has to give way.
-- A live call is subject to the limit alone, and finds budget that nobody else could take.
ALTER TABLE rate_budgets
    ADD COLUMN by_priority integer[] NOT NULL DEFAULT array_fill(0, ARRAY[244]),
    ADD COLUMN wanted_until timestamptz[] NOT NULL
        DEFAULT array_fill('-infinity'::timestamptz, ARRAY[4]),
    ADD COLUMN per_minute integer,
    ADD COLUMN stated boolean NOT NULL DEFAULT false,
    ADD COLUMN live_peak integer NOT NULL DEFAULT 0,
    ADD COLUMN live_peak_before integer NOT NULL DEFAULT 0,
    ADD COLUMN live_peak_since timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN paced_until timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN generation bigint NOT NULL DEFAULT floor(random() * 9007199254740992)::bigint,
    ADD COLUMN taken bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN rate_budgets.credential IS 'Digest of provider and key.';
COMMENT ON COLUMN rate_budgets.granted IS
    'Requests granted in each second: element s % 61 + 1 belongs to second s since 1970. After the '
    'row was lost also those that processes remember, and those that are assumed.';
COMMENT ON COLUMN rate_budgets.newest IS 'The newest second in granted and by_priority.';
COMMENT ON COLUMN rate_budgets.paused_until IS 'The broker refuses everything until then.';
COMMENT ON COLUMN rate_budgets.by_priority IS
    'As granted, 61 elements for each of the four kinds of callers, one kind after the other.';
COMMENT ON COLUMN rate_budgets.wanted_until IS
    'By kind of caller: somebody was refused and waits until then.';
COMMENT ON COLUMN rate_budgets.per_minute IS 'The limit that was used last.';
COMMENT ON COLUMN rate_budgets.stated IS 'Whether per_minute is the broker''s own word.';
COMMENT ON COLUMN rate_budgets.live_peak IS
    'Most requests of live cycles in 45 seconds, which is one cycle, since live_peak_since.';
COMMENT ON COLUMN rate_budgets.live_peak_before IS 'The same of the five minutes before.';
COMMENT ON COLUMN rate_budgets.live_peak_since IS 'When live_peak began to be measured.';
COMMENT ON COLUMN rate_budgets.paced_until IS
    'When background work would have sent what it has sent, had it kept its pace from the start.';
COMMENT ON COLUMN rate_budgets.generation IS
    'Drawn when the row was made: another one tells every process that the row was lost, and to '
    'declare what it has sent.';
COMMENT ON COLUMN rate_budgets.taken IS
    'Requests granted ever: fewer than a process remembers tells that the row is an old copy.';

-- Whether this database ever had a budget: a sequence keeps its count when rows are deleted.
CREATE SEQUENCE rate_budgets_made;
COMMENT ON SEQUENCE rate_budgets_made IS
    'Counts the rows made in rate_budgets: only the very first one starts with a whole budget.';

CREATE FUNCTION request_reserve(per_minute integer, priority integer, live_peak integer, live_used bigint)
    RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN priority <= 0 THEN 0
        WHEN priority = 1 THEN least(greatest(live_peak - live_used, 0), per_minute / 2)
        ELSE live_peak + greatest(live_peak - live_used, 0)
            + least(greatest(ceil(per_minute / 20.0), 2), per_minute / 2)
    END;
COMMENT ON FUNCTION request_reserve(integer, integer, integer, bigint) IS
    'The requests of a minute that a kind of caller leaves to its betters.';

-- Make a missing row, unless somebody else just has. A lost row is no unused budget: of what others
-- may have sent counts what the broker counted (told_used) or, where nobody knows, all but a quarter
-- of the limit (10 at least), coming free evenly. What this process has sent (own; NULL where it never
-- saw a row) is added later.
CREATE FUNCTION make_budget(
    for_credential text, limit_now integer, own bigint, told_used integer, moment timestamptz)
    RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT
AS $$
DECLARE
    this    bigint := floor(extract(epoch FROM moment))::bigint;
    ring    integer[] := array_fill(0, ARRAY[61]);
    assumed integer;
BEGIN
    INSERT INTO rate_budgets (credential, newest) VALUES (for_credential, this)
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF nextval('rate_budgets_made') = 1 AND own IS NULL AND NOT EXISTS (SELECT FROM series) THEN
        RETURN;  -- a new database: nobody has asked for anything
    END IF;
    assumed := greatest(
        coalesce(told_used, limit_now - greatest(ceil(limit_now / 4.0), 10)::integer) - coalesce(own, 0), 0);
    FOR age IN 0 .. 59 LOOP
        ring[(this - age) % 61 + 1] := assumed * (age + 1) / 60 - assumed * age / 60;
    END LOOP;
    UPDATE rate_budgets SET granted = ring WHERE credential = for_credential;
END
$$;
COMMENT ON FUNCTION make_budget(text, integer, bigint, integer, timestamptz) IS
    'Make the row of a credential that has none, from what is known of the last minute.';

CREATE FUNCTION take_from_budget(
    for_credential text, limit_given integer, limit_stated boolean, priority integer,
    known_generation bigint, known_taken bigint,
    sent integer[] DEFAULT NULL, told_used integer DEFAULT NULL, at timestamptz DEFAULT NULL,
    OUT wait double precision, OUT generation bigint, OUT taken bigint)
    LANGUAGE plpgsql SET search_path FROM CURRENT
AS $$
DECLARE
    budget rate_budgets;
    moment timestamptz;
    this   bigint;
    slot   integer;
    used   bigint;
    live   bigint;
    peak   integer := 0;
    most   bigint;
    pace   interval;
    burst  integer;
BEGIN
    SELECT * INTO budget FROM rate_budgets AS b WHERE b.credential = for_credential FOR UPDATE;
    IF NOT FOUND THEN
        IF sent IS NULL THEN
            RETURN;  -- wait is NULL: call again with what was sent
        END IF;
        PERFORM make_budget(
            for_credential, limit_given,
            CASE WHEN known_generation IS NOT NULL
                THEN (SELECT sum(s) FROM unnest(sent) AS s) END,
            told_used, coalesce(at, clock_timestamp()));
        SELECT * INTO STRICT budget FROM rate_budgets AS b
            WHERE b.credential = for_credential FOR UPDATE;
    END IF;
    IF sent IS NULL AND (known_generation <> budget.generation OR known_taken > budget.taken) THEN
        RETURN;  -- the row was lost, or is an old copy: declare what was sent
    END IF;
    moment := coalesce(at, clock_timestamp());  -- asked after the lock: waiting for it takes time
    this := floor(extract(epoch FROM moment))::bigint;

    IF budget.newest > this + 60 THEN
        -- The clock was set back: everything granted lately counts as granted now, nobody waits.
        SELECT sum(g) INTO used FROM unnest(budget.granted) AS g;
        SELECT sum(g) INTO live FROM unnest(budget.by_priority[1:61]) AS g;
        budget.granted := array_fill(0, ARRAY[61]);
        budget.by_priority := array_fill(0, ARRAY[244]);
        budget.granted[this % 61 + 1] := used;
        budget.by_priority[this % 61 + 1] := live;
        budget.newest := this;
        budget.wanted_until := array_fill('-infinity'::timestamptz, ARRAY[4]);
        budget.live_peak_since := moment;
        budget.paced_until := '-infinity';
        budget.paused_until := least(budget.paused_until, moment + interval '2 minutes');
    END IF;
    this := greatest(this, budget.newest);
    IF budget.newest < this - 60 THEN
        budget.granted := array_fill(0, ARRAY[61]);
        budget.by_priority := array_fill(0, ARRAY[244]);
    ELSE
        FOR past IN budget.newest + 1 .. this LOOP
            slot := past % 61 + 1;
            budget.granted[slot] := 0;
            budget.by_priority[slot] := 0;
            budget.by_priority[slot + 61] := 0;
            budget.by_priority[slot + 122] := 0;
            budget.by_priority[slot + 183] := 0;
        END LOOP;
    END IF;
    budget.newest := this;

    IF known_generation <> budget.generation OR known_taken > budget.taken THEN
        IF known_generation = budget.generation THEN
            budget.generation := floor(random() * 9007199254740992)::bigint;  -- others must declare too
            budget.taken := known_taken;
        END IF;
        FOR age IN 0 .. 59 LOOP
            slot := (this - age) % 61 + 1;
            budget.granted[slot] := budget.granted[slot] + coalesce(sent[age + 1], 0);
        END LOOP;
    END IF;
    IF limit_stated OR NOT budget.stated THEN
        budget.per_minute := limit_given;
        budget.stated := limit_stated;
    END IF;

    SELECT sum(g), sum(l) INTO used, live
    FROM unnest(budget.granted, budget.by_priority[1:61]) AS u (g, l);
    IF moment <= budget.live_peak_since + interval '5 minutes' THEN
        peak := greatest(budget.live_peak, budget.live_peak_before);
    ELSIF moment <= budget.live_peak_since + interval '10 minutes' THEN
        peak := budget.live_peak;
    END IF;
    most := budget.per_minute - request_reserve(budget.per_minute, priority, peak, live);

    wait := extract(epoch FROM greatest(budget.paused_until, moment) - moment);
    IF used >= most THEN
        wait := greatest(wait, 61);  -- a limit of 0, or all of it held back
        FOR past IN this - 60 .. this LOOP
            used := used - budget.granted[past % 61 + 1];
            IF used < most THEN
                wait := greatest(extract(epoch FROM greatest(budget.paused_until, moment) - moment),
                    past + 61 - extract(epoch FROM moment));
                EXIT;
            END IF;
        END LOOP;
    END IF;
    FOR better IN 1 .. priority LOOP
        wait := greatest(wait, extract(epoch FROM greatest(budget.wanted_until[better], moment) - moment));
    END LOOP;
    IF priority >= 2 THEN
        pace := interval '1 minute' / greatest(budget.per_minute, 1);
        burst := greatest(budget.per_minute / 8, 1) - 1;
        IF wait > 0 THEN
            -- It may go on evenly once it is let, without a burst.
            budget.paced_until := greatest(budget.paced_until, moment + burst * pace);
        ELSE
            wait := extract(epoch FROM greatest(budget.paced_until - burst * pace, moment) - moment);
        END IF;
    END IF;

    IF wait > 0 THEN
        budget.wanted_until[priority + 1] := greatest(
            budget.wanted_until[priority + 1], moment + (wait + 1) * interval '1 second');
    ELSE
        slot := this % 61 + 1;
        budget.granted[slot] := budget.granted[slot] + 1;
        slot := slot + 61 * priority;
        budget.by_priority[slot] := budget.by_priority[slot] + 1;
        budget.taken := budget.taken + 1;
        IF priority >= 2 THEN
            budget.paced_until := greatest(budget.paced_until, moment) + pace;
        ELSIF priority = 0 THEN
            IF moment > budget.live_peak_since + interval '5 minutes' THEN
                budget.live_peak_before := CASE
                    WHEN moment <= budget.live_peak_since + interval '10 minutes'
                    THEN budget.live_peak ELSE 0 END;
                budget.live_peak := 0;
                budget.live_peak_since := moment;
            END IF;
            FOR past IN this - 60 .. this - 45 LOOP
                live := live - budget.by_priority[past % 61 + 1];  -- the cycle before
            END LOOP;
            budget.live_peak := greatest(budget.live_peak, live + 1);
        END IF;
    END IF;
    -- Losing a second of grants in a server crash is cheaper than a disk flush for every request.
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE rate_budgets AS b
    SET granted = budget.granted, newest = budget.newest, by_priority = budget.by_priority,
        wanted_until = budget.wanted_until, per_minute = budget.per_minute,
        stated = budget.stated, live_peak = budget.live_peak,
        live_peak_before = budget.live_peak_before, live_peak_since = budget.live_peak_since,
        paced_until = budget.paced_until, paused_until = budget.paused_until,
        generation = budget.generation, taken = budget.taken
    WHERE b.credential = for_credential;
    generation := budget.generation;
    taken := budget.taken;
END
$$;
COMMENT ON FUNCTION take_from_budget(
    text, integer, boolean, integer, bigint, bigint, integer[], integer, timestamptz) IS
    'Take one request from a budget: wait is 0 if granted, otherwise the seconds to wait (nothing is '
    'taken), and NULL where the row is lost or an old copy: call again with the requests sent in each '
    'of the last 60 seconds, the newest first. The caller keeps generation and taken for the next '
    'call. `at` is for tests.';

-- Processes of the release before this one are served by the same rules.
CREATE OR REPLACE FUNCTION take_request(for_credential text, per_minute integer, reserve integer)
    RETURNS double precision
    LANGUAGE sql SET search_path FROM CURRENT
AS $$
    SELECT wait FROM take_from_budget(
        for_credential, per_minute, false, CASE WHEN reserve > 0 THEN 2 ELSE 1 END,
        NULL, NULL, '{}')
$$;

-- What ``marketdata status`` and the metrics show of every budget.
CREATE VIEW rate_budget_use AS
SELECT b.credential, b.per_minute, b.stated, total.used, kinds.used AS by_priority,
       ARRAY(SELECT w > at.moment FROM unnest(b.wanted_until) WITH ORDINALITY AS u (w, n) ORDER BY n)
           AS waiting,
       extract(epoch FROM greatest(b.paused_until, at.moment) - at.moment)::double precision AS paused,
       request_reserve(b.per_minute, 1, live.peak, kinds.used[1]) AS left_by_reads,
       request_reserve(b.per_minute, 2, live.peak, kinds.used[1]) AS left_by_background
FROM rate_budgets AS b,
     LATERAL (SELECT clock_timestamp() AS moment) AS at,
     LATERAL (
         SELECT CASE WHEN at.moment <= b.live_peak_since + interval '5 minutes'
                     THEN greatest(b.live_peak, b.live_peak_before)
                     WHEN at.moment <= b.live_peak_since + interval '10 minutes' THEN b.live_peak
                     ELSE 0 END AS peak) AS live,
     LATERAL (
         SELECT coalesce(sum(g), 0)::integer AS used
         FROM unnest(b.granted) WITH ORDINALITY AS u (g, n)
         WHERE b.newest - (b.newest % 61 + 61 - (n - 1)) % 61
               > floor(extract(epoch FROM at.moment)) - 60) AS total,
     LATERAL (
         SELECT array_agg(one.used ORDER BY one.kind) AS used
         FROM (SELECT (n - 1) / 61 AS kind,
                      coalesce(sum(g) FILTER (
                          WHERE b.newest - (b.newest % 61 + 61 - (n - 1) % 61) % 61
                                > floor(extract(epoch FROM at.moment)) - 60), 0)::integer AS used
               FROM unnest(b.by_priority) WITH ORDINALITY AS u (g, n)
               GROUP BY 1) AS one) AS kinds;
COMMENT ON VIEW rate_budget_use IS
    'Of each credential: requests of the last minute, in all and by kind of caller (live cycles, '
    'reads, backfill, verify), who waits, and for how many seconds the broker refuses everything.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT USAGE ON SEQUENCE rate_budgets_made TO marketdata_writer;
        GRANT EXECUTE ON FUNCTION
            make_budget(text, integer, bigint, integer, timestamptz),
            request_reserve(integer, integer, integer, bigint),
            take_from_budget(
                text, integer, boolean, integer, bigint, bigint, integer[], integer, timestamptz)
            TO marketdata_writer;
    END IF;
END
$$;
