-- Which instrument a symbol means, and since when: derived from corporate_actions and from what
-- providers list, rebuilt whenever one of them says something new. Bars stay under the symbol they
-- were traded under; reads join them.

CREATE TABLE assets (
    provider    text NOT NULL,
    symbol      text NOT NULL,
    name        text,
    exchange    text,
    status      text NOT NULL CHECK (status IN ('active', 'inactive')),
    first_observed_at timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    PRIMARY KEY (provider, symbol)
);
COMMENT ON TABLE assets IS 'What providers list, by symbol, as they last said it.';
COMMENT ON COLUMN assets.status IS
    'active: traded under this symbol when observed. inactive: not any more, or no longer listed.';
COMMENT ON COLUMN assets.first_observed_at IS
    'Market time at which the provider first listed the symbol to us.';
COMMENT ON COLUMN assets.observed_at IS 'Market time at which the provider was last asked.';

CREATE TABLE asset_checks (
    provider   text PRIMARY KEY,
    checked_at timestamptz NOT NULL
);
COMMENT ON TABLE asset_checks IS 'When a provider last gave its whole list of assets (market time).';

CREATE TABLE instruments (
    provider   text NOT NULL,
    instrument text NOT NULL,
    symbol     text NOT NULL,
    name       text,
    exchange   text,
    status     text NOT NULL CHECK (status IN ('active', 'inactive', 'ended', 'unknown')),
    ended_at   timestamptz,
    ended_by   text,
    rebuilt_at timestamptz NOT NULL,
    PRIMARY KEY (provider, instrument)
);
COMMENT ON TABLE instruments IS
    'Securities by whoever held which symbol when. Derived: it can be emptied and is made anew.';
COMMENT ON COLUMN instruments.instrument IS
    'Its first symbol, with the day from which it held it where somebody else held it before.';
COMMENT ON COLUMN instruments.symbol IS 'Its newest symbol.';
COMMENT ON COLUMN instruments.status IS
    'As listed by the provider; ended: merged, delisted, or its symbol taken by another; unknown: '
    'never listed to us.';
COMMENT ON COLUMN instruments.ended_at IS
    'Exchange midnight of the first session without it; NULL while it trades.';
COMMENT ON COLUMN instruments.ended_by IS 'merger or delisting.';

CREATE TABLE instrument_symbols (
    provider   text      NOT NULL,
    symbol     text      NOT NULL,
    valid      tstzrange NOT NULL,
    instrument text      NOT NULL,
    FOREIGN KEY (provider, instrument) REFERENCES instruments ON DELETE CASCADE
);
CREATE INDEX instrument_symbols_symbol ON instrument_symbols (provider, symbol);
CREATE INDEX instrument_symbols_changed ON instrument_symbols (symbol)
    WHERE NOT (lower_inf(valid) AND upper_inf(valid));
CREATE INDEX instrument_symbols_instrument ON instrument_symbols (provider, instrument);
COMMENT ON TABLE instrument_symbols IS
    'Under which symbol an instrument traded when. The times of one symbol never overlap; bars of a '
    'symbol inside such a time are the instrument''s.';
COMMENT ON COLUMN instrument_symbols.valid IS
    'Half-open, from exchange midnight to exchange midnight; an open end means always.';

COMMENT ON TABLE symbols IS 'What symbols are called, from what providers list.';
COMMENT ON COLUMN symbols.name IS 'NULL where no provider has said.';
COMMENT ON COLUMN symbol_metadata.name IS 'NULL where no provider has said.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON assets, asset_checks, instruments, instrument_symbols
            TO marketdata_writer;
    END IF;
END
$$;
