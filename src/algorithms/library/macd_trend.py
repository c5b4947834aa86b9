"""MACD above its signal and above zero: long; the mirror image: short, where shorting is wanted."""

from __future__ import annotations

from algorithms import Algorithm, Context, Param


class MacdTrend(Algorithm):
    """Hold a trend while the MACD line and its signal agree on it."""

    symbols = ("NVDA",)
    indicators = {"macd": "macd_{fast}_{slow}_{signal}"}  # and macd_signal, macd_hist
    fast = Param(12, low=2, about="bars of the fast average")
    slow = Param(26, low=3, about="bars of the slow average")
    signal = Param(9, low=2, about="bars of the signal line")
    short = Param(False, about="whether falling trends are sold short")

    def on_bar(self, ctx: Context) -> None:
        macd, signal = ctx.macd[-1], ctx.macd_signal[-1]
        if macd > signal and macd > 0:
            wanted = 1
        elif macd < signal and macd < 0 and self.short:
            wanted = -1
        else:
            wanted = 0
        held = ctx.position()
        # Only when the direction changes: rebalancing every day would pay the spread every day.
        if (held > 0) - (held < 0) != wanted:
            ctx.order_target_percent(0.98 * wanted)
