"""On the first session of each month: hold the strongest of fifty companies in equal parts."""

from __future__ import annotations

import math

from algorithms import Algorithm, Context, Param

FIFTY = (
    "AAPL", "ABNB", "ADBE", "AMD", "AMZN", "AVGO", "BA", "BAC", "BRK.B", "C", "CAT", "COIN",
    "COST", "CRM", "CSCO", "CVX", "DIS", "F", "GE", "GOOGL", "GS", "HD", "IBM", "INTC", "JNJ",
    "JPM", "KO", "MA", "MCD", "META", "MRK", "MS", "MSFT", "NFLX", "NVDA", "ORCL", "PEP", "PFE",
    "PG", "PLTR", "PYPL", "QCOM", "T", "TSLA", "TXN", "UNH", "V", "VZ", "WMT", "XOM",
)  # fmt: skip


class MonthlyMomentum(Algorithm):
    """Rank fifty symbols by their rate of change and rebalance monthly into the first `top`."""

    symbols = FIFTY
    indicators = {"momentum": "roc_{length}"}
    length = Param(126, low=5, about="sessions that the rate of change spans")
    top = Param(10, low=1, about="how many are held")
    invested = Param(0.98, low=0.1, high=1, about="share of equity that is invested")

    def on_bar(self, ctx: Context) -> None:
        month = ctx.now.tz_convert("America/New_York").strftime("%Y-%m")
        last, self.state["month"] = self.state.get("month"), month
        if month == last:
            return
        scores = {s: ctx[s].momentum[-1] for s in ctx.symbols if ctx[s].has_bar}
        ranked = sorted((s for s in scores if not math.isnan(scores[s])), key=lambda s: -scores[s])
        best = [s for s in ranked[: self.top] if scores[s] > 0]
        for symbol in ctx.positions:
            if symbol not in best:
                ctx.close_position(symbol, tag="out")
        for symbol in best:
            ctx.order_target_percent(self.invested / self.top, symbol, tag="in")
