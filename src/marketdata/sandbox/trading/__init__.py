"""Alpaca's trading API on simulated or replayed prices: accounts, orders, positions, fills.

Every API key has a paper account of its own, kept in memory. Nothing runs in the background: an
account catches up with the market's clock whenever it is asked something.

Source: Alpaca Trading API reference (OpenAPI "Trading API" 2.0.1) and "Placing Orders". Error
bodies that these do not give are as users have published them; what is neither is said where it
stands.
"""

from marketdata.sandbox.trading.desk import Desk
from marketdata.sandbox.trading.routes import AlpacaTrading

__all__ = ["AlpacaTrading", "Desk"]
