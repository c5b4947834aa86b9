"""The durable tier: PostgreSQL behind the ports of `marketdata.protocols`."""

from marketdata.store.holdings import Holding, StoreStatus, SymbolMetadata
from marketdata.store.postgres import PostgresStore

__all__ = ["Holding", "PostgresStore", "StoreStatus", "SymbolMetadata"]
