-- All kinds of corporate actions, and one check for all of them. What was known of splits stays; the
-- old checks go: whoever was asked about splits alone has said nothing of the other kinds.

DROP TABLE action_checks;
CREATE TABLE action_checks (
    provider   text      NOT NULL,
    symbol     text      NOT NULL,
    asked      tstzrange NOT NULL,
    whole_at   timestamptz NOT NULL,
    checked_at timestamptz NOT NULL,
    PRIMARY KEY (provider, symbol)
);
COMMENT ON TABLE action_checks IS
    'For which ex-dates a provider was asked about a symbol''s actions of every kind, and when (market '
    'time).';
COMMENT ON COLUMN action_checks.whole_at IS
    'When all of the dates asked were asked at once; a later question about a part does not count.';
COMMENT ON COLUMN action_checks.checked_at IS
    'When they were asked last, at least for the recent months and what is announced.';

ALTER TABLE corporate_actions
    DROP CONSTRAINT corporate_actions_type_check,
    DROP CONSTRAINT corporate_actions_check,
    DROP CONSTRAINT corporate_actions_provider_symbol_type_ex_date_key,
    ALTER COLUMN process_date TYPE timestamptz
        USING (process_date::timestamp AT TIME ZONE 'America/New_York'),
    ADD COLUMN provider_id      text NOT NULL DEFAULT '',
    ADD COLUMN action_key       text,
    ADD COLUMN other_symbol     text,
    ADD COLUMN special          boolean NOT NULL DEFAULT false,
    ADD COLUMN sequence         integer,
    ADD COLUMN first_fetched_at timestamptz;

UPDATE corporate_actions
SET type = CASE type WHEN 'dividend' THEN 'cash_dividend' ELSE type END,
    first_fetched_at = least(fetched_at, (
        SELECT min((c ->> 'fetched_at')::timestamptz)
        FROM jsonb_array_elements(corrections) AS c)),
    action_key = 'on ' || (ex_date AT TIME ZONE 'America/New_York')::date;

ALTER TABLE corporate_actions
    ALTER COLUMN action_key SET NOT NULL,
    ALTER COLUMN first_fetched_at SET NOT NULL,
    ADD CONSTRAINT corporate_actions_type_check CHECK (type IN (
        'split', 'stock_dividend', 'cash_dividend', 'spin_off', 'merger', 'name_change',
        'delisting', 'other')),
    ADD CONSTRAINT corporate_actions_rates_check CHECK (
        type NOT IN ('split', 'stock_dividend', 'spin_off')
        OR (new_rate IS NOT NULL AND old_rate IS NOT NULL)),
    ADD CONSTRAINT corporate_actions_cash_check CHECK (
        (type <> 'cash_dividend' OR cash IS NOT NULL)
        AND (cash IS NULL OR (cash > '-Infinity' AND cash < 'Infinity'))),
    ADD CONSTRAINT corporate_actions_other_check CHECK (
        type <> 'name_change' OR other_symbol IS NOT NULL),
    ADD CONSTRAINT corporate_actions_action_key UNIQUE (provider, symbol, type, action_key);
CREATE INDEX corporate_actions_new_name ON corporate_actions (provider, other_symbol)
    WHERE type = 'name_change';
-- Nine rows in ten are dividends; what is asked for every minute, of all symbols, is not.
CREATE INDEX corporate_actions_rare ON corporate_actions (provider, type, symbol)
    WHERE type <> 'cash_dividend';

COMMENT ON TABLE corporate_actions IS
    'What providers say happened to shares. A split has new_rate shares for old_rate, a stock '
    'dividend new_rate further shares for old_rate held, a spin-off new_rate of other_symbol for '
    'old_rate; a cash dividend pays cash a share.';
COMMENT ON COLUMN corporate_actions.symbol IS
    'The symbol before the action: of a name change the old one, of a merger the one that ends.';
COMMENT ON COLUMN corporate_actions.ex_date IS
    'Exchange midnight that begins the first session traded on the new basis, under the new name, or '
    'without the symbol.';
COMMENT ON COLUMN corporate_actions.process_date IS
    'Exchange midnight of the day the provider processes it; of a dividend the day it is paid.';
COMMENT ON COLUMN corporate_actions.cash IS
    'Dollars a share, on the share basis of the session before the ex-date.';
COMMENT ON COLUMN corporate_actions.announced_at IS 'When the public knew of it, where that is known.';
COMMENT ON COLUMN corporate_actions.provider_id IS
    'The provider''s own id, empty where it gives none. Corrections keep it.';
COMMENT ON COLUMN corporate_actions.action_key IS
    'What makes the action this one to its provider: its id, or else the ex-date and what it is.';
COMMENT ON COLUMN corporate_actions.other_symbol IS 'New name, acquirer, or what is spun off.';
COMMENT ON COLUMN corporate_actions.special IS
    'Of cash dividends: out of the usual order; capital gains of funds too.';
COMMENT ON COLUMN corporate_actions.sequence IS
    'Place among the actions of one ex-date, where the source states it: lower ones come first.';
COMMENT ON COLUMN corporate_actions.fetched_at IS
    'Market time at which the provider first said what this row says now.';
COMMENT ON COLUMN corporate_actions.first_fetched_at IS
    'Market time at which the provider first named the action at all.';
COMMENT ON COLUMN corporate_actions.corrections IS
    'Earlier versions, oldest first: the columns as they were, with fetched_at and withdrawn_at of '
    'each.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON action_checks TO marketdata_writer;
    END IF;
END
$$;
