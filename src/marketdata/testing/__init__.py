"""A fault lab for tests: a proxy that makes trouble, pause points, kills, and clocks that jump.

Everything works on real servers and real processes, over their ordinary addresses. Nothing here is
used by the library itself.

=====================  ============================================================================
`FlakyProxy`           stands before PostgreSQL, Redis or an HTTP server: delays, refuses, cuts,
                       loses answers, falls silent, by script (`Script`) or from a seed (`Seeded`)
`lab`                  such a proxy before each server of one set of settings
`Pause`, `acting_at`,  stop a thread at a point named in `marketdata.pausing`, do something there,
`raising_at`           raise there
`Process`              a child process: killed, frozen or failed at such a point, or at once
`JumpingClock`,        market time that is set off or skewed; the nights in which clocks change
`SkewedClock`
=====================  ============================================================================
"""

from marketdata.testing.clocks import JumpingClock, SkewedClock
from marketdata.testing.lab import Lab, lab
from marketdata.testing.pauses import Pause, acting_at, environment, raising_at
from marketdata.testing.processes import Process
from marketdata.testing.proxy import FlakyProxy
from marketdata.testing.troubles import COMMIT, Plan, Rates, Script, Seeded, Trouble

__all__ = [
    "COMMIT",
    "FlakyProxy",
    "JumpingClock",
    "Lab",
    "Pause",
    "Plan",
    "Process",
    "Rates",
    "Script",
    "Seeded",
    "SkewedClock",
    "Trouble",
    "acting_at",
    "environment",
    "lab",
    "raising_at",
]
