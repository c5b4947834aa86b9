-- Chunks now grow to a quarter; the table's comment says so. Their layout is unchanged.
COMMENT ON TABLE bar_chunks IS
    'Sealed bars: one compressed block per series and stretch of whole New York days: a week, once '
    'wholly sealed a month, and then a quarter. Chunks of one series never overlap. Only the '
    'library can decode them: see market_data_holdings for what is sealed, use `marketdata export` '
    'for Parquet or CSV and `marketdata db unseal` to have rows again.';
