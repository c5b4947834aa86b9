"""Adapters of the `Broker` port, one module per source, over shared plumbing.

``transport`` sends HTTP within a deadline, ``resilience`` decides whether and when to send at all
(rate budget, circuit breaker, retry). A new broker translates its own errors at one seam, maps
symbols and timestamps, and joins the parametrised suite in ``tests/contracts/test_broker.py``.
"""
