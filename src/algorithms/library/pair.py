"""Two companies of one trade: sell the dear one and buy the cheap one until they meet again."""

from __future__ import annotations

from typing import Any

import numpy as np

from algorithms import Algorithm, Context, Param


class Pair(Algorithm):
    """Trade the spread of two symbols, hedged by a regression over the bars before this one."""

    symbols = ("KO", "PEP")
    length = Param(60, low=10, about="bars that the hedge ratio is taken from")
    entry = Param(2.0, low=0.5, about="standard deviations at which the spread is traded")
    leave = Param(0.5, low=0.0, about="standard deviations at which the trade is closed")
    share = Param(0.4, low=0.01, high=0.5, about="share of equity in the first symbol")

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.warm_up = self.length

    def on_bar(self, ctx: Context) -> None:
        one, two = (ctx[symbol] for symbol in ctx.symbols)
        if not (one.has_bar and two.has_bar) or min(one.bars, two.bars) <= self.length:
            return
        prices = np.log(np.stack([v.close.values(self.length + 1) for v in (one, two)]))
        past, now = prices[:, :-1], prices[:, -1]
        # The newest bar is measured with a ratio that does not know it.
        ratio, level = np.polyfit(past[1], past[0], 1)
        errors = past[0] - ratio * past[1] - level
        score = (now[0] - ratio * now[1] - level) / errors.std()
        if not one.position and abs(score) > self.entry and 0.2 < ratio < 2:
            side = -1 if score > 0 else 1
            ctx.order_target_percent(side * self.share, one.symbol, tag="spread")
            ctx.order_target_percent(-side * self.share * ratio, two.symbol, tag="hedge")
        elif one.position and (abs(score) < self.leave or (score < 0) == (one.position < 0)):
            ctx.close_position(one.symbol)
            ctx.close_position(two.symbol)
