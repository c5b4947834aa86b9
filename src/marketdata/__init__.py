"""One call for market data: Redis, else PostgreSQL, else the broker."""
