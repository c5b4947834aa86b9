"""The breaker: when it lets calls through, and who may probe."""

from __future__ import annotations

from marketdata.cache import Breaker


class Timer:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_failure_opens_and_one_success_closes():
    breaker = Breaker(monotonic=Timer())
    assert breaker.is_closed()
    assert breaker.open()
    assert not breaker.is_closed()
    breaker.close()
    assert breaker.is_closed()


def test_only_one_caller_probes_each_interval():
    timer = Timer()
    breaker = Breaker(first=1.0, most=5.0, monotonic=timer)
    assert not breaker.claim_probe()
    breaker.open()
    assert not breaker.claim_probe()
    timer.now += 1.0
    assert [breaker.claim_probe() for _ in range(3)] == [True, False, False]


def test_the_wait_doubles_to_its_limit_and_starts_small_again():
    timer = Timer()
    breaker = Breaker(first=1.0, most=5.0, monotonic=timer)
    breaker.open()
    waits = []
    for _ in range(5):
        before = timer.now
        while not breaker.claim_probe():
            timer.now += 0.5
        waits.append(timer.now - before)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    breaker.close()
    breaker.open()
    timer.now += 1.0
    assert breaker.claim_probe()


def test_failures_while_open_do_not_put_the_probe_off():
    timer = Timer()
    breaker = Breaker(first=1.0, monotonic=timer)
    assert breaker.open()
    timer.now += 0.9
    assert not breaker.open()
    timer.now += 0.1
    assert breaker.claim_probe()


def test_a_forked_child_starts_closed_with_the_same_settings():
    timer = Timer()
    breaker = Breaker(first=3.0, monotonic=timer)
    breaker.open()
    child = breaker.renew()
    assert child.is_closed()
    child.open()
    timer.now += 2.9
    assert not child.claim_probe()
