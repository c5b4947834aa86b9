-- Roles: members of marketdata_reader read, members of marketdata_writer run the library. Neither
-- needs DDL rights. Roles belong to the whole server, and making them takes CREATEROLE: where that
-- is missing this says what to run, and the owner of the schema goes on without them.
DO $$
DECLARE
    role   text;
    here   text := quote_ident(current_schema());
    writer boolean;
BEGIN
    FOREACH role IN ARRAY ARRAY['marketdata_reader', 'marketdata_writer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;  -- made elsewhere just now
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'no right to create roles; as an administrator run: '
                        'CREATE ROLE % NOLOGIN, then grant it rights on schema %', role, here;
                    CONTINUE;
            END;
        END IF;
        writer := role = 'marketdata_writer';
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', here, role);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %I', here, role);
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT SELECT ON TABLES TO %I', here, role);
        IF writer THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON market_data_bars, series, symbols, '
                'corporate_actions, action_checks, flights, rate_budgets TO %I', role);
            EXECUTE format('GRANT UPDATE (provider, feed) ON store_info TO %I', role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_bar_partitions(date[]), '
                'take_request(text, integer, integer) TO %I', role);
        END IF;
    END LOOP;
END
$$;
REVOKE EXECUTE ON FUNCTION ensure_bar_partitions(date[]) FROM PUBLIC;
