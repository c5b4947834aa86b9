"""A job as bytes, and back: what another process needs to run points.

A strategy of an importable module goes by name, and the other process imports the same file; one
of a script, a notebook or a local scope goes by value, code and all (cloudpickle). Arrays lie
outside of the pickle, so that processes which map the same file share one copy of the bars.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
from collections.abc import Iterator
from itertools import accumulate
from types import ModuleType
from typing import Any, Final, Protocol

from algorithms.errors import AlgorithmError
from algorithms.sweeping.fingerprint import code_of
from algorithms.sweeping.job import Job

_ALIGNED: Final = 64
_NUMBER: Final = struct.Struct("<Q")


class Sink(Protocol):
    """What can be written to."""

    def write(self, data: Any, /) -> object: ...


def write_job(job: Job, sink: Sink) -> int:
    """Write a job, and return how many bytes it took.

    First come how many parts there are and how long each is, then the parts: the places of
    modules, the pickle, and its arrays.

    Raises
    ------
    AlgorithmError
        Something of the strategy, its costs or metrics cannot be copied to another process; a
        retry does not help.
    """
    buffers: list[pickle.PickleBuffer] = []
    with _by_value(job):
        try:
            body = _pickled((code_of(job.kind), job), buffers)
        except Exception as error:
            raise AlgorithmError(
                f"{job.kind.__name__} cannot be copied to another process: {error}",
                cure="keep what cannot be pickled out of the strategy, or sweep within this "
                "process: workers=1",
            ) from error
    parts = [memoryview(pickle.dumps(sys.path)), memoryview(body)]
    parts += [buffer.raw() for buffer in buffers]
    lengths = [part.nbytes for part in parts]
    header = b"".join(_NUMBER.pack(number) for number in (len(parts), *lengths))
    written = 0
    for part in (memoryview(header), *parts):
        sink.write(part)
        sink.write(bytes(_aligned(part.nbytes) - part.nbytes))
        written += _aligned(part.nbytes)
    return written


def _aligned(length: int) -> int:
    return length + -length % _ALIGNED


def read_job(data: Any) -> Job:
    """Return the job that `write_job` wrote; its arrays are read-only views of `data`.

    Raises
    ------
    AlgorithmError
        The strategy cannot be had here, or its module has another code than where the job comes
        from.
    """
    whole = memoryview(data)
    (count,) = _NUMBER.unpack_from(whole, 0)
    lengths = [_NUMBER.unpack_from(whole, _NUMBER.size * (n + 1))[0] for n in range(count)]
    header = _NUMBER.size * (count + 1)
    places = accumulate(
        lengths[:-1], lambda at, size: at + _aligned(size), initial=_aligned(header)
    )
    parts = [whole[at : at + size].toreadonly() for at, size in zip(places, lengths, strict=True)]
    places_of_modules = pickle.loads(parts[0])  # noqa: S301 - made by the sweeping process
    sys.path.extend(place for place in places_of_modules if place not in sys.path)
    try:
        code, job = pickle.loads(parts[1], buffers=parts[2:])  # noqa: S301
    except Exception as error:
        raise AlgorithmError(
            f"the strategy cannot be had in another process: {type(error).__name__}: {error}",
            cure="let its module be importable there, or sweep within this process: workers=1",
        ) from error
    assert isinstance(job, Job)
    if code_of(job.kind) != code:
        raise AlgorithmError(
            f"the module {job.kind.__module__} has changed on disk since it was imported",
            cure="import it anew (restart the notebook's kernel), then sweep again",
        )
    return job


def _pickled(thing: object, buffers: list[pickle.PickleBuffer]) -> bytes:
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        return pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    found: bytes = cloudpickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    return found


@contextlib.contextmanager
def _by_value(job: Job) -> Iterator[None]:
    """Let modules that another process could not import go by value while this lasts."""
    costs = (job.costs.fees, job.costs.slippage, job.limits)
    named = [*job.kind.__mro__, *job.measures.values(), *(type(cost) for cost in costs)]
    modules = dict.fromkeys(getattr(thing, "__module__", None) or "" for thing in named)
    hidden = [
        sys.modules[name]
        for name in modules
        if name in sys.modules and name != "__main__" and not _importable(sys.modules[name])
    ]
    if not hidden:
        yield
        return
    try:
        import cloudpickle
    except ImportError:
        raise AlgorithmError(
            f"{hidden[0].__name__} cannot be imported by another process",
            cure="pip install cloudpickle, or let the module lie on sys.path",
        ) from None
    fresh = [
        module
        for module in hidden
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value()
    ]
    for module in fresh:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in fresh:
            cloudpickle.unregister_pickle_by_value(module)


def _importable(module: ModuleType) -> bool:
    """Return whether ``import`` of the module's name in another process finds the same file."""
    name = module.__name__
    if name in sys.builtin_module_names:
        return True
    parent, _, _ = name.rpartition(".")
    above = sys.modules.get(parent) if parent else None
    if parent and (above is None or not _importable(above)):
        return False
    places = None if above is None else getattr(above, "__path__", None)
    for finder in sys.meta_path:
        spec = finder.find_spec(name, places, None)
        if spec is not None:
            file = getattr(module, "__file__", None)
            return spec.origin == file or file is None
    return False
