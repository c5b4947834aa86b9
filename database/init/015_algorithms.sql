-- The algorithms that run live: what is wanted of them, who runs them, and what they have done. All
-- of one cycle of a runner, of every algorithm it steps, is one transaction: what an algorithm
-- decided, and the moment up to which it has decided, are never apart.

CREATE TABLE algorithms (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL UNIQUE CHECK (name <> ''),
    source     text        NOT NULL,
    params     jsonb       NOT NULL DEFAULT '{}',
    symbols    text[]      NOT NULL,
    timeframe  text        NOT NULL,
    venue      text        NOT NULL DEFAULT 'paper',
    cash       double precision NOT NULL,
    options    jsonb       NOT NULL DEFAULT '{}',
    desired    text        NOT NULL DEFAULT 'running' CHECK (desired IN ('running', 'stopped', 'killed')),
    flatten    boolean     NOT NULL DEFAULT false,
    reason     text        NOT NULL DEFAULT '',
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE algorithms IS
    'The algorithms that are to run live: their code, parameters and what is wanted of them.';
COMMENT ON COLUMN algorithms.source IS 'Where the class is: FILE.py:Class or module:Class.';
COMMENT ON COLUMN algorithms.params IS 'Values of its parameters, as the class takes them.';
COMMENT ON COLUMN algorithms.timeframe IS 'Of the bars it is called for; it may read others too.';
COMMENT ON COLUMN algorithms.venue IS 'paper: filled by the engine on live bars; else the broker''s name.';
COMMENT ON COLUMN algorithms.cash IS 'What a run begins with, in the currency of the listings.';
COMMENT ON COLUMN algorithms.options IS 'Risk limits, fees and slippage, by name.';
COMMENT ON COLUMN algorithms.desired IS
    'What somebody wants: running; stopped: ends after its cycle and keeps orders and positions; '
    'killed: open orders are cancelled, and it makes none until it is released.';
COMMENT ON COLUMN algorithms.flatten IS 'Whether a killed one also closes its positions.';
COMMENT ON COLUMN algorithms.reason IS 'Why it was stopped or killed, for people.';
COMMENT ON COLUMN algorithms.changed_at IS 'When what is wanted was last changed.';

CREATE TABLE algorithm_runners (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    holder      text        NOT NULL,
    token       text        NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL,
    market_time timestamptz,
    details     jsonb       NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);  -- renewed in place every few seconds
COMMENT ON TABLE algorithm_runners IS
    'The processes that run algorithms, one row each; a row whose lease has run out is of a process '
    'that ended or vanished, and never comes back to life: its process begins a new one.';
COMMENT ON COLUMN algorithm_runners.holder IS 'User, host and process, for people.';
COMMENT ON COLUMN algorithm_runners.token IS 'Random; only who knows it renews or ends the lease.';
COMMENT ON COLUMN algorithm_runners.lease_until IS 'By this server''s clock: the process'' heartbeat.';
COMMENT ON COLUMN algorithm_runners.market_time IS 'Market time at the last heartbeat, which differs in a replay.';
COMMENT ON COLUMN algorithm_runners.details IS 'What the process says of itself: algorithms, cycles, seconds.';

CREATE TABLE algorithm_states (
    algorithm_id bigint PRIMARY KEY REFERENCES algorithms ON DELETE CASCADE,
    state        text        NOT NULL DEFAULT 'stopped' CHECK (state IN (
        'starting', 'running', 'backoff', 'error', 'killed', 'stopped')),
    runner_id    bigint,
    epoch        bigint      NOT NULL DEFAULT 0,
    run          integer     NOT NULL DEFAULT 1,
    cursor       timestamptz,
    fills        bigint      NOT NULL DEFAULT 0,
    cash         double precision,
    equity       double precision,
    failures     integer     NOT NULL DEFAULT 0,
    restarts     bigint      NOT NULL DEFAULT 0,
    slow_calls   bigint      NOT NULL DEFAULT 0,
    error        text,
    error_at     timestamptz,
    stepped_at   timestamptz
) WITH (fillfactor = 40);  -- rewritten in place with every cycle
COMMENT ON TABLE algorithm_states IS
    'Where each algorithm stands. Rewritten with every cycle, in the transaction of its orders.';
COMMENT ON COLUMN algorithm_states.state IS
    'starting: its history is being read; running; backoff: it failed and is tried again; error: given '
    'up after too many failures; killed: it makes no orders; stopped: nobody runs it.';
COMMENT ON COLUMN algorithm_states.runner_id IS
    'The row of algorithm_runners that may write here, while its lease lasts; NULL: free to anybody.';
COMMENT ON COLUMN algorithm_states.epoch IS
    'Grows by 1 with every change of hands: a write under an older number is refused.';
COMMENT ON COLUMN algorithm_states.run IS
    'Grows by 1 when it begins anew with nothing; orders, fills and equity are of one run.';
COMMENT ON COLUMN algorithm_states.cursor IS
    'The moment up to which it has seen every bar and decided; it goes on after it. NULL: not yet begun.';
COMMENT ON COLUMN algorithm_states.fills IS 'How many fills this run has had.';
COMMENT ON COLUMN algorithm_states.equity IS 'At the cursor, at the newest raw closes.';
COMMENT ON COLUMN algorithm_states.failures IS 'Failures in a row; 0 after a bar that went well.';
COMMENT ON COLUMN algorithm_states.restarts IS 'How often it was begun again after a failure, ever.';
COMMENT ON COLUMN algorithm_states.slow_calls IS 'How often a call exceeded its time, ever.';
COMMENT ON COLUMN algorithm_states.error IS 'Traceback of the last failure; NULL once it went well again.';
COMMENT ON COLUMN algorithm_states.stepped_at IS 'When its last cycle was stored, by this server''s clock.';

CREATE TABLE algorithm_snapshots (
    algorithm_id bigint PRIMARY KEY REFERENCES algorithms ON DELETE CASCADE,
    run          integer     NOT NULL,
    taken_at     timestamptz NOT NULL,
    snapshot     text        NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE algorithm_snapshots IS
    'What an algorithm goes on from: account, open orders, counters and its own state. Written when it '
    'changes, so it may be older than the cursor; nothing but time has passed between.';
COMMENT ON COLUMN algorithm_snapshots.taken_at IS 'The cursor at which it was taken.';
COMMENT ON COLUMN algorithm_snapshots.snapshot IS 'JSON, kept as written so that every number comes back bit for bit.';

CREATE TABLE algorithm_orders (
    algorithm_id bigint      NOT NULL REFERENCES algorithms ON DELETE CASCADE,
    run          integer     NOT NULL,
    order_id     text        NOT NULL,
    symbol       text        NOT NULL,
    quantity     double precision NOT NULL,
    limit_price  double precision,
    stop_price   double precision,
    time_in_force text       NOT NULL,
    created      timestamptz NOT NULL,
    expires      timestamptz,
    parent       text,
    twin         text,
    tag          text        NOT NULL DEFAULT '',
    state        text        NOT NULL,
    filled       double precision NOT NULL DEFAULT 0,
    filled_price double precision,
    triggered    boolean     NOT NULL DEFAULT false,
    reason       text        NOT NULL DEFAULT '',
    delivery     text        NOT NULL DEFAULT 'paper' CHECK (delivery IN (
        'paper', 'intent', 'sent', 'refused', 'cancel', 'done')),
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (algorithm_id, run, order_id)
) WITH (fillfactor = 80);
CREATE INDEX algorithm_orders_open ON algorithm_orders (algorithm_id)
    WHERE state IN ('held', 'open');
CREATE INDEX algorithm_orders_due ON algorithm_orders (algorithm_id)
    WHERE delivery IN ('intent', 'cancel');
COMMENT ON TABLE algorithm_orders IS
    'Every order of every run. Of an algorithm that makes refused orders without end, the first of a '
    'cycle only.';
COMMENT ON COLUMN algorithm_orders.order_id IS 'Unique in its run and the same in every repetition of it.';
COMMENT ON COLUMN algorithm_orders.quantity IS 'Shares, above 0 buys, below 0 sells; splits change it while it waits.';
COMMENT ON COLUMN algorithm_orders.created IS 'Close of the bar it was decided on.';
COMMENT ON COLUMN algorithm_orders.expires IS 'Last instant of a day order.';
COMMENT ON COLUMN algorithm_orders.parent IS 'The order whose fill brings this one to life.';
COMMENT ON COLUMN algorithm_orders.twin IS 'The order that is cancelled when this one fills, and the other way round.';
COMMENT ON COLUMN algorithm_orders.state IS 'held, open, filled, canceled, expired or rejected.';
COMMENT ON COLUMN algorithm_orders.filled_price IS 'Mean price of what was filled; NULL before the first.';
COMMENT ON COLUMN algorithm_orders.reason IS 'Why it was cancelled, rejected or reduced.';
COMMENT ON COLUMN algorithm_orders.delivery IS
    'paper: the engine fills it. At a broker: intent: decided and stored, perhaps sent; sent: the broker '
    'has it; refused: the broker did not take it; cancel: to be cancelled there; done: nothing left to say.';

CREATE TABLE algorithm_fills (
    algorithm_id bigint      NOT NULL REFERENCES algorithms ON DELETE CASCADE,
    run          integer     NOT NULL,
    number       bigint      NOT NULL,
    order_id     text        NOT NULL,
    symbol       text        NOT NULL,
    time         timestamptz NOT NULL,
    quantity     double precision NOT NULL,
    price        double precision NOT NULL,
    fee          double precision NOT NULL DEFAULT 0,
    tag          text        NOT NULL DEFAULT '',
    PRIMARY KEY (algorithm_id, run, number)
);
COMMENT ON TABLE algorithm_fills IS 'What was traded, in order; each fill once.';
COMMENT ON COLUMN algorithm_fills.number IS 'From 1 in each run, without gaps.';
COMMENT ON COLUMN algorithm_fills.time IS 'Open of the bar it happened in; at a broker the moment it reports.';
COMMENT ON COLUMN algorithm_fills.quantity IS 'Shares, signed as the order is.';
COMMENT ON COLUMN algorithm_fills.price IS 'Raw price of a share, slippage included.';

CREATE TABLE algorithm_positions (
    algorithm_id bigint NOT NULL REFERENCES algorithms ON DELETE CASCADE,
    symbol       text   NOT NULL,
    quantity     double precision NOT NULL,
    price        double precision,
    PRIMARY KEY (algorithm_id, symbol)
) WITH (fillfactor = 70);
COMMENT ON TABLE algorithm_positions IS 'What each algorithm holds at its cursor; no row: nothing.';
COMMENT ON COLUMN algorithm_positions.quantity IS 'Shares; below 0 sold short.';
COMMENT ON COLUMN algorithm_positions.price IS 'The newest raw close when the position last changed.';

CREATE TABLE algorithm_equity (
    algorithm_id bigint NOT NULL REFERENCES algorithms ON DELETE CASCADE,
    run          integer NOT NULL,
    session      date   NOT NULL,
    cash         double precision NOT NULL,
    equity       double precision NOT NULL,
    PRIMARY KEY (algorithm_id, run, session)
);
COMMENT ON TABLE algorithm_equity IS
    'Cash and equity at the end of each exchange session that is over; today''s is in algorithm_states.';

CREATE TABLE algorithm_switches (
    name   text PRIMARY KEY CHECK (name = 'kill'),
    active boolean     NOT NULL,
    flatten boolean    NOT NULL DEFAULT false,
    reason text        NOT NULL DEFAULT '',
    set_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE algorithm_switches IS
    'What holds for every algorithm at once: "kill" stops them all from trading until it is released.';
COMMENT ON COLUMN algorithm_switches.flatten IS 'Whether positions are closed too.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketdata_writer') THEN
        GRANT INSERT, UPDATE, DELETE ON algorithms, algorithm_runners, algorithm_states,
            algorithm_snapshots, algorithm_orders, algorithm_fills, algorithm_positions,
            algorithm_equity, algorithm_switches TO marketdata_writer;
    END IF;
END
$$;
