"""A close above the upper band starts a trade; a trailing stop at the middle band ends it."""

from __future__ import annotations

from algorithms import Algorithm, Context, Param


class BollingerBreakout(Algorithm):
    """Buy a break out of the Bollinger bands and trail a stop order along the middle band."""

    symbols = ("TSLA",)
    indicators = {"band": "bbands_{length}_{width}"}  # band_upper, band_middle, band_lower
    length = Param(20, low=5, about="bars of the middle band")
    width = Param(2.0, low=0.5, high=5, about="standard deviations from the middle to a band")
    share = Param(0.9, low=0.01, high=1, about="share of equity in a trade")

    def on_bar(self, ctx: Context) -> None:
        price, middle = ctx.close[-1], ctx.band_middle[-1]
        if ctx.position() > 0:
            ctx.cancel_all()  # yesterday's stop; today's is given instead
            if price > middle:
                ctx.order(-ctx.position(), stop=middle, tag="trailing stop")
            else:
                ctx.close_position(tag="below the middle")
        elif price > ctx.band_upper[-1]:
            ctx.order_value(self.share * ctx.equity, stop_loss=middle, tag="breakout")
