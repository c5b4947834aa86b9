"""What a corporate action does to an account, its waiting orders and the records of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithms.run_record import AppliedAction
from algorithms.series import ShareAction

if TYPE_CHECKING:
    from algorithms.engine import Engine


def book(engine: Engine, symbol: str, action: ShareAction) -> None:
    """Book an action whose ex-date has come."""
    account, ratio = engine.account, action.ratio
    held = account.positions.get(symbol, 0.0)
    # A dividend is counted in shares of before the ex-date.
    paid = account.dividend(symbol, action.cash) if action.cash else 0.0
    gone = 0.0
    if ratio != 1.0:
        price = engine.mark(symbol)
        paid += account.split(symbol, ratio, price, fractional=engine.fractional)
        engine.blotter.split(symbol, ratio)
        after = account.positions.get(symbol, 0.0)
        gone = held * ratio - after
        if after != held:
            engine.share_changes.append((engine.now, symbol, after - held))
    if paid:
        engine.cash_flows.append((engine.now, paid))
    gone = gone if abs(gone) > 1e-9 else 0.0
    engine.actions.append(AppliedAction(action.time, symbol, action.kind, paid, ratio, gone))
