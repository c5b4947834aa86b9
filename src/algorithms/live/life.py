"""The course of one algorithm's life: failures, waiting, giving up. Pure; time is handed in.

::

    starting --> running --> backoff --> starting ...     each failure doubles the wait
                    |           |
                    v           v
                 stopped      error                       too many in a row: given up, until a hand
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum, auto

from algorithms.errors import ParameterError
from algorithms.live.records import Life


@dataclass(frozen=True)
class Policy:
    """How patient a runner is with its algorithms. Seconds of real time.

    Attributes
    ----------
    relief : float
        A call that lasts this long no longer holds up those who wait behind it: another worker
        takes them.
    soft : float
        A call that lasts this long is counted as slow, and the cycle goes on without it; its
        result counts once it comes.
    hard : float
        A call that lasts this long is interrupted and counts as a failure.
    backoff, longest_backoff : float
        Wait after the first failure, which doubles with each further one, and where it ends.
    attempts : int
        Failures in a row after which the algorithm is given up.

    Raises
    ------
    ParameterError
        The times do not ascend, or one of the numbers is not above 0.
    """

    relief: float = 0.05
    soft: float = 0.25
    hard: float = 10.0
    backoff: float = 1.0
    longest_backoff: float = 300.0
    attempts: int = 8

    def __post_init__(self) -> None:
        steps = (0.0, self.relief, self.soft, self.hard)
        ascending = all(low < high for low, high in itertools.pairwise(steps))
        if not ascending or not 0 < self.backoff <= self.longest_backoff or self.attempts < 1:
            raise ParameterError(
                f"a policy of {self}",
                cure="0 < relief < soft < hard, 0 < backoff, attempts above 0",
            )

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return float(min(self.backoff * 2.0 ** min(failures - 1, 60), self.longest_backoff))


class Pace(Enum):
    """What a call that has lasted for a while is worth."""

    FINE = auto()
    RELIEVE = auto()
    SLOW = auto()
    INTERRUPT = auto()


def pace(seconds: float, policy: Policy) -> Pace:
    """Return how a call that has lasted `seconds` is to be treated."""
    if seconds >= policy.hard:
        return Pace.INTERRUPT
    if seconds >= policy.soft:
        return Pace.SLOW
    return Pace.RELIEVE if seconds >= policy.relief else Pace.FINE


class Course:
    """Where one algorithm stands in its life.

    Attributes
    ----------
    life : Life
    failures : int
        In a row.
    restarts, slow_calls : int
        Ever.
    error : str or None
        Traceback of the last failure, until a step went well.
    """

    def __init__(
        self, policy: Policy, *, failures: int = 0, restarts: int = 0, slow_calls: int = 0
    ) -> None:
        self._policy = policy
        self.life = Life.STARTING
        self.failures = failures
        self.restarts = restarts
        self.slow_calls = slow_calls
        self.error: str | None = None
        self._again_at = 0.0

    def started(self) -> None:
        """It has an engine again."""
        if self.life is Life.STARTING:
            self.life = Life.RUNNING

    def went_well(self) -> None:
        """A step ended as it should."""
        self.failures = 0
        self.error = None

    def was_slow(self) -> None:
        """A step took longer than it may."""
        self.slow_calls += 1

    def failed(self, error: str, now: float) -> bool:
        """Note a failure; return whether it was the one too many.

        Parameters
        ----------
        error : str
            Its traceback.
        now : float
            Real time, seconds of any clock that only goes forward.
        """
        self.error = error
        self.failures += 1
        given_up = self.failures >= self._policy.attempts
        self.life = Life.ERROR if given_up else Life.BACKOFF
        self._again_at = now + self._policy.wait(self.failures)
        return given_up

    def give_up(self, error: str) -> None:
        """It cannot be run as it is."""
        self.error = error
        self.failures += 1
        self.life = Life.ERROR

    def revive(self) -> None:
        """Somebody has it begin again after it was given up."""
        self.failures = 0
        self.error = None
        self.life = Life.STARTING

    def retry_in(self, now: float) -> float | None:
        """Return the seconds until it may be begun again; None where it is not waiting for that."""
        return max(0.0, self._again_at - now) if self.life is Life.BACKOFF else None

    def begin_again(self, now: float) -> bool:
        """Return whether its wait is over, and if so have it start."""
        if self.retry_in(now) != 0.0:
            return False
        self.life = Life.STARTING
        self.restarts += 1
        return True

    def stop(self) -> None:
        """Nobody runs it from now on; that it was given up stays known."""
        if self.life is not Life.ERROR:
            self.life = Life.STOPPED

    @property
    def steps(self) -> bool:
        """Whether it is to be called for new bars."""
        return self.life in (Life.RUNNING, Life.KILLED)
