"""stub"""
from marketdata.sandbox.view import MarketView
class YahooChart:
    def __init__(self, view: MarketView, *, live_row: bool) -> None: ...
    def routes(self): return []
