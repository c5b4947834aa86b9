"""Running a job in processes of this machine: the default of a sweep.

Works alike from a script without a ``__main__`` guard, a notebook and a thread: the processes are
forks of a `foreman` of their own, never of the caller, and the strategy travels by value where it
cannot be imported. Each worker has a few points waiting and answers each when it is done, so that
a process that dies costs the one point it died of.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any, Final

from algorithms.errors import AlgorithmError
from algorithms.sweeping import foreman
from algorithms.sweeping.job import Job, Outcome, Task, forget_rooms
from algorithms.sweeping.shipping import write_job

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from algorithms.sweeping.foreman import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_SHORT: Final = 200_000
"""Bars of a run that takes no longer than starting a process: the caller begins with such ones."""
_AHEAD: Final = 0.1
"""Seconds of work that wait at each worker."""
_MOST_AHEAD: Final = 64
_PATIENCE: Final = 5.0


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def here(job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run tasks one after the other in this thread."""
    try:
        for task in tasks:
            yield job.outcome(task)
    finally:
        forget_rooms()


def outcomes(job: Job, tasks: Sequence[Task], count: int) -> Iterator[Outcome]:
    """Run tasks in `count` processes, and yield each outcome as it comes.

    The processes are gone when this ends, however it ends: close the generator where not all of
    it is taken.

    Raises
    ------
    AlgorithmError
        The strategy cannot be had in another process; a retry does not help.
    """
    waiting = deque(tasks)
    crew = Crew(job, min(count, len(tasks)))
    try:
        # Starting takes half a second, in which many a sweep is done.
        while waiting and job.market.bars <= _SHORT and not crew.ready(0.0):
            yield job.outcome(waiting.popleft())
        forget_rooms()
        if waiting:
            yield from crew.outcomes(waiting)
    finally:
        crew.close()


class _Worker:
    """One process: what it was given and has not answered, oldest first."""

    def __init__(self, process: int, channel: Connection[Any, Any]) -> None:
        self.process = process
        self.channel = channel
        self.given: deque[Task] = deque()


class Crew:
    """A foreman and its workers, as the sweeping process sees them."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._count = count
        self._workers: list[_Worker] = []
        self._seconds = 0.0
        self._done = 0
        self._ended: dict[int, int] = {}
        ours, theirs = socket.socketpair()
        self._control = ours
        with theirs:
            self._foreman = _started(theirs, count)

    # ----------------------------------------------------------------------------- starting

    def ready(self, timeout: float | None) -> bool:
        """Return whether the foreman can take the job."""
        return bool(select.select([self._control], [], [], timeout)[0])

    def _ship(self) -> None:
        self._heard()
        parts = _Parts()
        length = write_job(self._job, parts)
        try:
            self._control.sendall(foreman.LENGTH.pack(length))
            for part in parts.held:
                self._control.sendall(part)
        except OSError:
            raise _gone() from None
        refusal = self._heard()
        if refusal is not None:
            message, _, cure = str(refusal).partition("\n")
            raise AlgorithmError(message, cure=cure)

    def _hire(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [foreman.FORK], [theirs.fileno()])
                process = self._heard()
        except OSError:
            ours.close()
            raise _gone() from None
        self._workers.append(_Worker(process, Connection(ours.detach())))

    def _heard(self) -> Any:
        try:
            return foreman.hear(self._control)
        except (EOFError, OSError):
            raise _gone() from None

    # ------------------------------------------------------------------------------ running

    def outcomes(self, waiting: deque[Task]) -> Iterator[Outcome]:
        """Run what waits."""
        self.ready(None)
        self._ship()
        while len(self._workers) < min(self._count, len(waiting)):
            self._hire()
        while waiting or any(worker.given for worker in self._workers):
            for worker in self._workers:
                self._give(worker, waiting)
            busy = {worker.channel: worker for worker in self._workers if worker.given}
            for channel in connections.wait(list(busy)):
                yield from self._taken(busy[channel], waiting)  # type: ignore[index]

    def _give(self, worker: _Worker, waiting: deque[Task]) -> None:
        depth = 2
        if self._done:
            depth = max(2, min(_MOST_AHEAD, int(_AHEAD * self._done / max(self._seconds, 1e-9))))
        wanted = depth - len(worker.given)
        # Never one by one while there are many, and the last ones evenly.
        fair = -(-len(waiting) // max(1, len(self._workers)))
        wanted = min(wanted, fair)
        if not waiting or (wanted < depth // 2 and worker.given):
            return
        tasks = [waiting.popleft() for _ in range(min(wanted, len(waiting)))]
        worker.given.extend(tasks)
        # One that has just died is found when it is asked for its answers.
        with contextlib.suppress(OSError):
            worker.channel.send(tasks)

    def _taken(self, worker: _Worker, waiting: deque[Task]) -> Iterator[Outcome]:
        try:
            while worker.given and worker.channel.poll():
                outcome: Outcome = worker.channel.recv()
                worker.given.popleft()
                self._seconds += outcome.seconds
                self._done += 1
                yield outcome
        except (EOFError, OSError):
            worker.channel.close()
            self._workers.remove(worker)
            culprit = worker.given.popleft()
            waiting.extendleft(reversed(worker.given))
            yield Outcome(culprit.number, {}, f"its process ended: {self._end_of(worker.process)}")
            if waiting:
                self._hire()

    def _end_of(self, process: int) -> str:
        """Return how a worker ended."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                self._control.sendall(foreman.STATUS)
            except OSError:
                raise _gone() from None
            # Several may have ended; each is told of once.
            self._ended.update(self._heard())
            if process in self._ended:
                break
            time.sleep(0.001)
        else:
            return "it gave no answer"
        code = self._ended[process]
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name} (out of memory?)" if name == "SIGKILL" else name

    # ------------------------------------------------------------------------------- ending

    def close(self) -> None:
        """End all processes; those that are in the middle of a point are killed."""
        self._control.close()
        for worker in self._workers:
            worker.channel.close()
        if not self._workers:
            # It has nobody to look after, and may still be importing.
            self._foreman.kill()
        try:
            self._foreman.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._foreman.pid, signal.SIGKILL)
            self._foreman.wait()


class _Parts:
    """Collects what is to be sent, without copying it."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def write(self, data: Any) -> None:
        self.held.append(data)


def _started(control: socket.socket, count: int) -> subprocess.Popen[bytes]:
    import json

    # One thread each: the workers are as many as there are cores.
    alone = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        "1",
    )
    arguments = [json.dumps(sys.path), str(control.fileno()), str(count)]
    # A session of its own: Ctrl-C reaches the sweeping process alone, which then ends this one.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", _START, *arguments],
        env={**os.environ, **alone},
        pass_fds=[control.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _gone() -> AlgorithmError:
    return AlgorithmError(
        "the sweep's processes were ended from outside",
        cure="sweep again; with store= it goes on where it was",
        transient=True,
    )
