"""Two moving averages: long from when the fast one crosses above the slow one until it is below."""

from __future__ import annotations

from algorithms import Algorithm, Context, Param, crossed_above, crossed_below


class SmaCross(Algorithm):
    """Follow the trend of one symbol with two simple moving averages."""

    symbols = ("AAPL",)
    indicators = {"fast_average": "sma_{fast}", "slow_average": "sma_{slow}"}
    fast = Param(10, low=2, about="bars of the fast average")
    slow = Param(30, low=3, about="bars of the slow average")

    def on_bar(self, ctx: Context) -> None:
        if crossed_above(ctx.fast_average, ctx.slow_average):
            ctx.order_target_percent(1.0)
        elif crossed_below(ctx.fast_average, ctx.slow_average):
            ctx.close_position()
