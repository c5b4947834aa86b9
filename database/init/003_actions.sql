-- Corporate actions. Bars are stored raw; reads adjust them with these.

CREATE TABLE corporate_actions (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider     text   NOT NULL,
    symbol       text   NOT NULL,
    type         text   NOT NULL CHECK (type IN ('split', 'dividend')),
    ex_date      timestamptz NOT NULL,
    process_date date,
    new_rate     double precision CHECK (new_rate > 0 AND new_rate < 'Infinity'),
    old_rate     double precision CHECK (old_rate > 0 AND old_rate < 'Infinity'),
    cash         double precision,
    announced_at timestamptz,
    fetched_at   timestamptz NOT NULL,
    withdrawn_at timestamptz,
    corrections  jsonb  NOT NULL DEFAULT '[]',
    UNIQUE (provider, symbol, type, ex_date),
    CHECK (type <> 'split' OR (new_rate IS NOT NULL AND old_rate IS NOT NULL))
);
COMMENT ON TABLE corporate_actions IS
    'What providers say happened to shares. A split has new_rate shares for old_rate.';
COMMENT ON COLUMN corporate_actions.ex_date IS
    'Exchange midnight that begins the first session traded on the new basis.';
COMMENT ON COLUMN corporate_actions.withdrawn_at IS
    'Set when a later answer over the same dates no longer has the action; it then counts for nothing.';
COMMENT ON COLUMN corporate_actions.corrections IS
    'Earlier versions, oldest first: new_rate, old_rate, withdrawn_at, and fetched_at of each.';

CREATE TABLE action_checks (
    provider   text      NOT NULL,
    symbol     text      NOT NULL,
    type       text      NOT NULL CHECK (type IN ('split', 'dividend')),
    asked      tstzrange NOT NULL,
    checked_at timestamptz NOT NULL,
    PRIMARY KEY (provider, symbol, type)
);
COMMENT ON TABLE action_checks IS
    'For which ex-dates a provider was asked about a symbol''s actions of one type, and when (market '
    'time).';
