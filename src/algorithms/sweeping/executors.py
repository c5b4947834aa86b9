"""Running a job over a `concurrent.futures` executor: threads, processes, Dask, others.

The job goes to each process once. In this process it is there already. Another process of this
machine maps a temporary file; a Dask cluster has it scattered to all its workers first; a process
that sees neither says so, and is sent the job with its points. Points travel in batches of some
tenths of a second, a few batches at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from typing import Any, Final, NamedTuple

from algorithms.errors import AlgorithmError
from algorithms.sweeping.job import Job, Outcome, Task, share_memory_of
from algorithms.sweeping.shipping import read_job, write_job
from algorithms.sweeping.workers import cores

_BATCH_SECONDS: Final = 0.3
_MOST: Final = 512
_KEPT: Final = 2


class Ticket(NamedTuple):
    """What a batch needs to find its job."""

    id: str
    path: str
    processes: int


_known: OrderedDict[str, Job] = OrderedDict()
_lock = threading.Lock()


def run_batch(
    ticket: Ticket, tasks: Sequence[Task], payload: bytes | None = None
) -> list[Outcome] | None:
    """Run tasks where this is called; None where the job cannot be had here."""
    job = _job(ticket, payload)
    return None if job is None else [job.outcome(task) for task in tasks]


def _job(ticket: Ticket, payload: bytes | None) -> Job | None:
    with _lock:
        job = _known.get(ticket.id)
        if job is not None:
            return job
        data: Any = payload
        if data is None:
            try:
                with open(ticket.path, "rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError:
                return None
        share_memory_of(ticket.processes)
        job = read_job(data)
        # A process that serves one sweep after another keeps none but the newest.
        _known[ticket.id] = job
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        return job


def outcomes(executor: Executor, job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run tasks on an executor, and yield each outcome as it comes; leaves the executor running.

    Raises
    ------
    AlgorithmError
        The strategy cannot be had in another process, or the executor broke: a process of a
        `ProcessPoolExecutor` that dies takes the pool with it.
    """
    if not hasattr(executor, "submit"):
        raise AlgorithmError(
            f"{type(executor).__name__} is no executor",
            cure="give a concurrent.futures executor; of a Dask client its get_executor()",
        )
    with contextlib.ExitStack() as stack:
        link = _Link(executor, job, stack)
        yield from _Batches(link, tasks).outcomes()


class _Link:
    """How a job and its batches reach an executor's processes."""

    def __init__(self, executor: Executor, job: Job, stack: contextlib.ExitStack) -> None:
        self._executor = executor
        self._job = job
        self._payload: Any = None
        self._extra: tuple[Any, ...] = ()
        client = getattr(executor, "_client", None)
        path = ""
        if client is not None and hasattr(client, "scatter"):
            self.count = sum(client.ncores().values()) or 1
            self._extra = (client.scatter(self.payload(), broadcast=True, hash=False),)
            self._payload = None
        else:
            self.count = int(getattr(executor, "_max_workers", None) or cores())
            with _lock:
                _known[job.id] = job
            stack.callback(_forget, job.id)
            if not isinstance(executor, ThreadPoolExecutor):
                file = stack.enter_context(_temporary())
                write_job(job, file)
                file.flush()
                path = file.name
        self._ticket = Ticket(job.id, path, self.count)

    def payload(self) -> bytes:
        """Return the job as bytes."""
        if self._payload is None:
            sink = io.BytesIO()
            write_job(self._job, sink)
            self._payload = sink.getvalue()
        found: bytes = self._payload
        return found

    def submit(self, tasks: Sequence[Task], *, whole: bool = False) -> Future[Any]:
        """Send tasks; `whole` sends the job along, for a process that sees no file of ours."""
        extra = (self.payload(),) if whole else self._extra
        try:
            return self._executor.submit(run_batch, self._ticket, list(tasks), *extra)
        except BrokenExecutor as error:
            raise _broken(error) from error


class _Batches:
    """Hands out tasks in batches, and takes what comes back."""

    def __init__(self, link: _Link, tasks: Sequence[Task]) -> None:
        self._link = link
        self._waiting = deque(tasks)
        self._sent: dict[Future[Any], list[Task]] = {}
        self._seconds = 0.0
        self._done = 0

    def outcomes(self) -> Iterator[Outcome]:
        try:
            while self._waiting or self._sent:
                self._send()
                done, _ = wait(self._sent, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from self._taken(future)
        finally:
            for future in self._sent:
                future.cancel()

    def _send(self) -> None:
        while self._waiting and len(self._sent) < 2 * self._link.count:
            size = min(self._size(), len(self._waiting))
            tasks = [self._waiting.popleft() for _ in range(size)]
            self._sent[self._link.submit(tasks)] = tasks

    def _size(self) -> int:
        if not self._done:
            return 1
        each = max(self._seconds / self._done, 1e-6)
        fair = math.ceil(len(self._waiting) / (2 * self._link.count))
        return max(1, min(int(_BATCH_SECONDS / each), fair, _MOST))

    def _taken(self, future: Future[Any]) -> Iterator[Outcome]:
        tasks = self._sent.pop(future)
        try:
            found = future.result()
        except BrokenExecutor as error:
            raise _broken(error) from error
        except AlgorithmError:
            raise
        except Exception as error:
            if len(tasks) == 1:
                text = f"its process failed: {type(error).__name__}: {error}"
                yield Outcome(tasks[0].number, {}, text)
                return
            for task in tasks:
                self._sent[self._link.submit([task])] = [task]
            return
        if found is None:
            self._sent[self._link.submit(tasks, whole=True)] = tasks
            return
        for outcome in found:
            self._seconds += outcome.seconds
            self._done += 1
            yield outcome


def _temporary() -> Any:
    return tempfile.NamedTemporaryFile(prefix="sweep-")


def _forget(job: str) -> None:
    with _lock:
        _known.pop(job, None)


def _broken(error: BaseException) -> AlgorithmError:
    return AlgorithmError(
        f"the executor broke: {error}",
        cure="leave executor= out: the default replaces a process that dies, and reports its point",
    )
