"""The whole stack against a dictionary: a stateful model of what may be stored and answered.

A market that changes its mind (`market`), the stack with everything that can go wrong in it
(`world`), a dictionary of what the market has said and the stack must hold (`ledger`), and a
machine that takes random steps and compares after each (`machine`). ``python -m tests.faults.model``
runs it for as long as asked.
"""
