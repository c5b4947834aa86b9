"""Buy what fell too fast, in the direction of the long trend, and sell the rebound."""

from __future__ import annotations

from algorithms import Algorithm, Context, Param


class RsiReversion(Algorithm):
    """Buy a low RSI above the long average; sell at a high RSI, or at a stop-loss."""

    symbols = ("MSFT",)
    indicators = {"rsi": "rsi_{length}", "trend": "sma_{trend_length}"}
    length = Param(5, low=2, about="bars of the RSI")
    trend_length = Param(100, low=10, about="bars of the average that says where the trend goes")
    low = Param(35.0, low=0, high=100, about="buy below this RSI")
    high = Param(65.0, low=0, high=100, about="sell above this RSI")
    stop = Param(0.08, low=0.005, high=0.5, about="loss at which to give up, as a share of price")

    def on_bar(self, ctx: Context) -> None:
        price = ctx.close[-1]
        if ctx.position():
            if ctx.rsi[-1] > self.high:
                ctx.close_position(tag="rebound")
        elif ctx.rsi[-1] < self.low and price > ctx.trend[-1]:
            # Sized below the whole account: the next open may be higher than this close.
            ctx.order_value(0.95 * ctx.equity, stop_loss=price * (1 - self.stop), tag="dip")
