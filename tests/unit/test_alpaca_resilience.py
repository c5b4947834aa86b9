"""Budget, breaker and retry on a clock that only the test moves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from marketdata.brokers.resilience import MAX_PAUSE, Caller, CircuitBreaker, RequestGate
from marketdata.clock import Deadline
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
    StoreUnavailableError,
)
from marketdata.protocols import Priority


class Hands:
    """A monotonic clock whose hands move when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Ledger:
    """A budget that grants `grants` requests at once and one every `every` seconds after."""

    def __init__(self, hands: Hands, grants: int, every: float) -> None:
        self.hands, self.grants, self.every = hands, grants, every
        self.asked: list[tuple[str, int]] = []
        self.paused: list[float] = []
        self.limits: list[tuple[int, int | None]] = []
        self.next = hands.now

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        self.asked.append((credential, limit_per_minute))
        if self.grants:
            self.grants -= 1
            return 0.0
        if self.hands.now < self.next:
            return self.next - self.hands.now
        self.next = self.hands.now + self.every
        return 0.0

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        self.limits.append((limit_per_minute, left))

    def pause(self, credential: str, seconds: float) -> None:
        self.paused.append(seconds)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def caller(hands: Hands, budget: Ledger | None = None, **options: int) -> Caller:
    breaker = CircuitBreaker("alpaca", monotonic=hands, **options)
    gate = RequestGate("digest", 200, budget, monotonic=hands, sleep=hands.sleep)
    return Caller(breaker, gate, sleep=hands.sleep)


def script(*outcomes: MarketDataError | str) -> Callable[[], str]:
    rest = iter(outcomes)

    def send() -> str:
        outcome = next(rest)
        if isinstance(outcome, MarketDataError):
            raise outcome
        return outcome

    return send


LONG = Deadline(3600)

# ---------------------------------------------------------------------------------------- retry


def test_invariant_24_transient_errors_are_tried_again_with_growing_jittered_waits(
    hands: Hands,
) -> None:
    send = script(BrokerUnavailableError("503"), BrokerTimeoutError("late"), "done")
    assert caller(hands).call(send, LONG) == "done"
    first, second = hands.slept
    assert 0.125 <= first <= 0.25 <= second <= 0.5


def test_invariant_24_the_last_error_is_raised_with_its_attempts(hands: Hands) -> None:
    errors = [BrokerUnavailableError(str(n)) for n in range(9)]
    with pytest.raises(BrokerUnavailableError, match="2") as caught:
        caller(hands).call(script(*errors), LONG)
    assert caught.value.facts["attempts"] == 3


@pytest.mark.parametrize(
    "error",
    [AuthenticationError("401"), DataUnavailableError("403"), BrokerResponseError("400")],
)
def test_invariant_24_permanent_errors_are_not(hands: Hands, error: MarketDataError) -> None:
    with pytest.raises(type(error)) as caught:
        caller(hands).call(script(error, "never"), LONG)
    assert caught.value.facts["attempts"] == 1
    assert hands.slept == []


def test_a_retry_that_would_start_after_the_deadline_is_not_waited_for(hands: Hands) -> None:
    with pytest.raises(BrokerUnavailableError):
        caller(hands).call(script(BrokerUnavailableError("503"), "never"), Deadline(0.05))
    assert hands.slept == []


def test_an_expired_deadline_sends_nothing(hands: Hands) -> None:
    with pytest.raises(BrokerTimeoutError):
        caller(hands).call(script(), Deadline(0))


def test_other_exceptions_pass_through_untouched(hands: Hands) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caller(hands).call(interrupted, LONG)


# -------------------------------------------------------------------------------------- breaker


def test_the_breaker_opens_after_failures_in_a_row_and_fails_fast(hands: Hands) -> None:
    calls = caller(hands, threshold=4)
    with pytest.raises(BrokerUnavailableError):
        calls.call(script(*[BrokerUnavailableError("503")] * 3), LONG)
    with pytest.raises(BrokerUnavailableError) as caught:
        calls.call(script(BrokerUnavailableError("503")), LONG)
    assert calls.breaker.state == "open"
    assert caught.value.facts["circuit_open"]
    slept = len(hands.slept)
    with pytest.raises(BrokerUnavailableError, match="in a row") as caught:
        calls.call(script(), LONG)
    assert 0 < float(str(caught.value.facts["retry_after"])) <= 5
    assert len(hands.slept) == slept


def test_success_in_between_starts_the_count_anew(hands: Hands) -> None:
    calls = caller(hands, threshold=2)
    for _ in range(5):
        assert calls.call(script(BrokerUnavailableError("503"), "done"), LONG) == "done"
    assert calls.breaker.state == "closed"


def test_one_probe_decides_after_the_pause(hands: Hands) -> None:
    breaker = CircuitBreaker("alpaca", threshold=1, monotonic=hands)
    breaker.admit()
    breaker.failed()
    hands.now += 4.9
    with pytest.raises(BrokerUnavailableError):
        breaker.admit()
    hands.now += 0.2
    assert breaker.state == "half-open"
    breaker.admit()
    with pytest.raises(BrokerUnavailableError):
        breaker.admit()  # the probe is out
    breaker.failed()
    assert breaker.state == "open"
    hands.now += 5.1
    breaker.admit()
    breaker.succeeded()
    assert breaker.state == "closed"


def test_an_abandoned_probe_lets_the_next_one_out(hands: Hands) -> None:
    breaker = CircuitBreaker("alpaca", threshold=1, monotonic=hands)
    breaker.failed()
    hands.now += 6
    breaker.admit()
    breaker.abandoned()
    breaker.admit()


def test_refusals_and_hasty_callers_do_not_open_it(hands: Hands) -> None:
    calls = caller(hands, threshold=1)
    for error in (
        AuthenticationError("401"),
        BrokerTimeoutError("late", cut_by_deadline=True, transient=False),
        BrokerTimeoutError("late", cut_by_deadline=True),
    ):
        with pytest.raises(MarketDataError):
            calls.call(script(error), Deadline(0.05))
        assert calls.breaker.state == "closed"


def test_a_fork_does_not_inherit_a_held_lock(hands: Hands) -> None:
    breaker = CircuitBreaker("alpaca", monotonic=hands)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with breaker._lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    child = _fork(breaker.admit)
    release.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def _fork(action: Callable[[], object]) -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
        child = os.fork()
    if child == 0:
        import signal

        signal.alarm(5)
        action()
        os._exit(0)
    return child


# --------------------------------------------------------------------------------------- budget


def test_a_budget_that_cannot_be_asked_raises_at_once(hands: Hands) -> None:
    class Down(Ledger):
        def take(
            self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
        ) -> float:
            raise StoreUnavailableError("no connection")

    calls = caller(hands, Down(hands, 0, 0))
    with pytest.raises(StoreUnavailableError):
        calls.call(script("never"), LONG)
    assert hands.slept == []
    assert calls.breaker.state == "closed"


def test_every_attempt_is_taken_from_the_budget(hands: Hands) -> None:
    ledger = Ledger(hands, grants=100, every=1)
    caller(hands, ledger).call(script(BrokerUnavailableError("503"), "done"), LONG)
    assert ledger.asked == [("digest", 200)] * 2


def test_the_budget_is_waited_for_inside_the_deadline(hands: Hands) -> None:
    ledger = Ledger(hands, grants=0, every=2.0)
    calls = caller(hands, ledger)
    assert [calls.call(script("done"), LONG) for _ in range(3)] == ["done"] * 3
    assert hands.now >= 1004.0


def test_a_wait_past_the_deadline_is_a_rate_limit_error_at_once(hands: Hands) -> None:
    ledger = Ledger(hands, grants=1, every=30.0)
    ledger.next = hands.now + 30
    calls = caller(hands, ledger)
    calls.call(script("done"), LONG)
    with pytest.raises(RateLimitError) as caught:
        calls.call(script("never"), Deadline(5))
    assert caught.value.facts["retry_after"] == 30.0
    assert hands.slept == []


def test_invariant_22_after_429_nothing_goes_out_before_the_moment_named(hands: Hands) -> None:
    ledger = Ledger(hands, grants=100, every=0)
    calls = caller(hands, ledger)
    sent: list[float] = []
    outcomes = script(RateLimitError("429", retry_after=7.0), "done")

    def send() -> str:
        sent.append(hands.now)
        return outcomes()

    assert calls.call(send, LONG) == "done"
    assert sent[1] >= sent[0] + 7.0
    assert ledger.paused == [7.0]  # for every process


def test_429_beyond_the_deadline_is_raised_with_its_wait(hands: Hands) -> None:
    calls = caller(hands)
    with pytest.raises(RateLimitError) as caught:
        calls.call(script(RateLimitError("429", retry_after=40.0), "never"), Deadline(5))
    assert caught.value.facts["retry_after"] == 40.0
    assert calls.breaker.state == "closed"


def test_429_for_ever_ends(hands: Hands) -> None:
    calls = caller(hands)
    with pytest.raises(RateLimitError):
        calls.call(script(*[RateLimitError("429", retry_after=1.0)] * 50), LONG)
    assert hands.now < 1010


def test_an_absurd_pause_is_capped(hands: Hands) -> None:
    ledger = Ledger(hands, grants=9, every=0)
    caller(hands, ledger).gate.pause(1e9)
    assert ledger.paused == [MAX_PAUSE]


def test_the_limit_the_broker_states_is_used(hands: Hands) -> None:
    ledger = Ledger(hands, grants=9, every=0)
    calls = caller(hands, ledger)
    calls.gate.learn(10_000, 9_990)
    calls.gate.learn(0)
    calls.call(script("done"), LONG)
    assert ledger.asked == [("digest", 10_000)]
    assert ledger.limits == [(10_000, 9_990)]
