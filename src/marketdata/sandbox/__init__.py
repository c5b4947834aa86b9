"""A local server that speaks Alpaca's market-data REST API and what yfinance asks of Yahoo.

It serves generated or recorded prices, so that the installed alpaca-py and yfinance run against
it unchanged: in tests, in the demo, and wherever there are no keys. All of it is SIMULATED.
"""

from marketdata.sandbox.app import RecordedRequest
from marketdata.sandbox.faults import Fault, FaultPlan
from marketdata.sandbox.files import FileMarket
from marketdata.sandbox.generated import GeneratedMarket, simulated
from marketdata.sandbox.server import Sandbox, serve
from marketdata.sandbox.source import Action, Asset, MarketSource

__all__ = [
    "Action",
    "Asset",
    "Fault",
    "FaultPlan",
    "FileMarket",
    "GeneratedMarket",
    "MarketSource",
    "RecordedRequest",
    "Sandbox",
    "serve",
    "simulated",
]
