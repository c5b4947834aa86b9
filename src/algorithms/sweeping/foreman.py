"""The process that starts a sweep's workers, as ``python -c`` of `algorithms.sweeping.workers`.

It has no threads, no connections and no user's ``__main__``: forking it is safe where forking a
notebook is not. It reads the job once, and each worker is a fork of it, so that all of them share
one copy of the bars. Whoever sweeps sends one byte for each thing wanted:

``w``  and a socket: a new worker that answers on it; its process id is the answer
``s``  and nothing else: how the workers that ended since ended

When that connection ends, however it ends, all workers are killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any, Final, NoReturn

from algorithms.errors import AlgorithmError
from algorithms.sweeping.job import Job, share_memory_of

FORK: Final = b"w"
STATUS: Final = b"s"
LENGTH: Final = struct.Struct("<Q")


def main(descriptor: int, workers: int) -> NoReturn:
    """Serve one sweep on an inherited socket, and end with it."""
    control = socket.socket(fileno=descriptor)
    children: dict[int, None] = {}
    try:
        with contextlib.suppress(OSError, EOFError):
            _serve(control, workers, children)
    finally:
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        # What strategies may have started.
        os.killpg(0, signal.SIGKILL)
    raise SystemExit


def _serve(control: socket.socket, workers: int, children: dict[int, None]) -> None:
    _say(control, "ready")
    job = _received(control)
    if isinstance(job, str):
        _say(control, job)
        return
    share_memory_of(workers)
    # A collection would write to the pages that all workers share.
    gc.collect()
    gc.freeze()
    _say(control, None)
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not command:
            return
        if command == FORK:
            child = os.fork()
            if child == 0:
                control.close()
                _work(job, descriptors[0])
            os.close(descriptors[0])
            children[child] = None
            _say(control, child)
        else:
            _say(control, _ended(children))


def _received(control: socket.socket) -> Job | str:
    from algorithms.sweeping.shipping import read_job

    (length,) = LENGTH.unpack(_exactly(control, LENGTH.size))
    try:
        return read_job(_exactly(control, length))
    except AlgorithmError as error:
        return f"{error.message}\n{error.cure}"


def _exactly(control: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = control.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _ended(children: dict[int, None]) -> dict[int, int]:
    """Return the exit codes of children that ended: below 0 for a signal."""
    found = {}
    for child in list(children):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            del children[child]
            found[child] = os.waitstatus_to_exitcode(status)
    return found


def _say(control: socket.socket, what: Any) -> None:
    data = pickle.dumps(what)
    control.sendall(LENGTH.pack(len(data)) + data)


def hear(control: socket.socket) -> Any:
    """Return the foreman's next answer.

    Raises
    ------
    EOFError
        It has ended.
    """
    (length,) = LENGTH.unpack(_exactly(control, LENGTH.size))
    # From our own child, over a socket that nobody else has.
    return pickle.loads(_exactly(control, length))  # noqa: S301


def _work(job: Job, descriptor: int) -> NoReturn:
    """Answer lists of tasks, each task as soon as it is done, until the connection ends."""
    code = 1
    try:
        connection: Connection[Any, Any] = Connection(descriptor)
        with contextlib.suppress(EOFError, OSError):
            while True:
                for task in connection.recv():
                    outcome = job.outcome(task)
                    # What the strategy printed is seen even if this process is killed.
                    sys.stdout.flush()
                    connection.send(outcome)
        code = 0
    finally:
        os._exit(code)
