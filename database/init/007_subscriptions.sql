-- Which symbols somebody wants kept fresh. Leases run on this server's clock: a program that was
-- killed renews nothing, and what it wanted ends with its lease.

-- Renewing changes no indexed column, so that it costs no index entry (HOT).
CREATE TABLE symbol_subscriptions (
    owner       text NOT NULL CHECK (owner <> ''),
    holder      text NOT NULL DEFAULT '',
    symbol      text NOT NULL,
    timeframe   text NOT NULL,
    priority    smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    lease_until timestamptz,
    pinned      boolean NOT NULL GENERATED ALWAYS AS (lease_until IS NULL) STORED,
    made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    PRIMARY KEY (owner, holder, timeframe, symbol)
) WITH (fillfactor = 60);
COMMENT ON TABLE symbol_subscriptions IS
    'Who wants which symbols kept fresh, and until when. Wanted is what any owner has '
    'pinned or has a live lease on; the end of the last lease ends the fetching and deletes no bar.';
COMMENT ON COLUMN symbol_subscriptions.owner IS
    'Whose subscription it is: user@host/program unless a name was given. Several programs may share one.';
COMMENT ON COLUMN symbol_subscriptions.holder IS
    'The running client that renews the lease, so that it can end its own and nobody else''s of the '
    'same owner; empty for a pinned one.';
COMMENT ON COLUMN symbol_subscriptions.timeframe IS
    'Timeframe of the bars that are wanted; where they are derived, what they derive from is fetched.';
COMMENT ON COLUMN symbol_subscriptions.priority IS
    'What is higher is fetched first; -100 to 100.';
COMMENT ON COLUMN symbol_subscriptions.lease_until IS
    'When it runs out unless it is renewed; NULL: pinned, until it is unsubscribed.';
COMMENT ON COLUMN symbol_subscriptions.pinned IS 'Whether it never runs out by itself.';
COMMENT ON COLUMN symbol_subscriptions.made_at IS 'When it was first subscribed.';
COMMENT ON COLUMN symbol_subscriptions.renewed_at IS 'When its lease was last renewed.';
COMMENT ON COLUMN symbol_subscriptions.ended_at IS
    'When another client of the owner unsubscribed it: the row stays for a day, so that its holder '
    'learns of it and does not renew it.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON symbol_subscriptions TO marketdata_writer;
    END IF;
END
$$;
