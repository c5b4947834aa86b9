"""A proxy that stands between a client and its server and makes trouble on demand.

One kind for PostgreSQL, Redis and HTTP, over TCP or in front of a Unix socket: it carries bytes and
knows nothing of a protocol but that client and server take turns. Encrypted connections pass, but
nothing inside them can be matched.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

from marketdata.testing.addresses import through, upstream_of
from marketdata.testing.troubles import Plan, Script, Trouble

_CHUNK: Final = 1 << 16
_MOST_WAITING: Final = 1 << 22
"""Bytes held for a side that does not read; then the other side is not read either."""
_TAIL: Final = 256
"""Bytes of a request that are looked at once more with its next ones."""
_RESET: Final = struct.pack("ii", 1, 0)


class FlakyProxy:
    """Carries connections to one server, through whatever its plan has in store for them.

    Thread-safe; a context manager. What it does by its own methods happens at once and to all
    connections; what its plan says happens to single ones, see `marketdata.testing.troubles`.

    Parameters
    ----------
    url : str
        Where the server is, as its clients spell it: ``postgresql://``, ``redis://``, ``unix://``
        or ``http://``.
    plan : Plan, optional
        What goes wrong; a `Script` to add troubles to by default (`FlakyProxy.script`).
    only, spare : bytes
        Connections whose clients have not sent the first, or begin with the second, are carried
        faithfully: so a test can leave its own connections out.

    Examples
    --------
    >>> proxy = FlakyProxy("postgresql://me@127.0.0.1:5432/db")  # doctest: +SKIP
    >>> proxy.script.add("lose_reply", match=COMMIT)             # doctest: +SKIP
    >>> store = PostgresStore(proxy.url)                         # doctest: +SKIP
    """

    def __init__(
        self, url: str, plan: Plan | None = None, *, only: bytes = b"", spare: bytes = b""
    ) -> None:
        self._upstream = upstream_of(url)
        self.script = Script()
        """Troubles to meet; without effect where another plan was given."""
        self._plan: Plan = self.script if plan is None else plan
        self._only = only
        self._spare = spare
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.url = through(url, self.port)
        """The same server, by way of this proxy."""
        self.connections = 0
        """Connections taken so far, refused ones among them."""
        self.requests = 0
        """Requests seen so far."""
        self._frozen = self._refusing = self._closed = False
        self._lines: set[_Line] = set()
        self._orders: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._obey)
        self._thread = threading.Thread(target=self._run, name="flaky-proxy", daemon=True)
        self._thread.start()
        _proxies.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FlakyProxy(port={self.port}, {len(self._lines)} connections)"

    # ------------------------------------------------------------------------------ at once

    def freeze(self) -> None:
        """Carry nothing any more, without a word to either end; connections stay open."""
        self._do(lambda: self._set_frozen(True))

    def thaw(self) -> None:
        """Carry again, first what has been waiting."""
        self._do(lambda: self._set_frozen(False))

    def refuse(self) -> None:
        """Reset every new connection; those there are go on."""
        self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    def cut(self) -> int:
        """Reset every connection there is; return how many these were."""
        found: list[int] = []

        def cut_all() -> None:
            found.append(len(self._lines))
            for line in list(self._lines):
                line.reset()

        self._do(cut_all)
        return found[0] if found else 0

    def close(self) -> None:
        """End everything; clients find their connections closed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._thread.join(10)

    # --------------------------------------------------------------------------- the thread

    def _do(self, order: Callable[[], None]) -> None:
        """Have the proxy's thread do something, and wait until it has."""
        done = threading.Event()

        def ordered() -> None:
            order()
            done.set()

        self._orders.append(ordered)
        self._wake()
        if not done.wait(10) and not self._closed:
            raise RuntimeError("the proxy's thread does not answer")

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def _run(self) -> None:
        try:
            while not self._closed:
                for key, events in self._selector.select(self._next_due()):
                    if isinstance(key.data, _Line):
                        key.data.ready(key.fileobj, events)
                    else:
                        key.data()
                now = time.monotonic()
                for line in [line for line in self._lines if line.due <= now]:
                    line.on_time(now)
        finally:
            for line in list(self._lines):
                line.close()
            for each in (self._listener, self._waker, self._woken):
                each.close()
            self._selector.close()

    def _next_due(self) -> float | None:
        if self._frozen:
            return None
        due = min((line.due for line in self._lines), default=_NEVER)
        return None if due == _NEVER else max(0.0, due - time.monotonic())

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_CHUNK)
        while self._orders:
            self._orders.popleft()()

    def _set_frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        for line in list(self._lines):
            line.watch()

    def _accept(self) -> None:
        try:
            near = self._listener.accept()[0]
        except OSError:
            return
        self.connections += 1
        chosen = self._only or self._spare  # known by what it sends
        trouble = None if chosen else self._plan.for_connection(self.connections)
        if trouble is not None:
            trouble.note_fired()
        if trouble is not None or self._refusing:
            _reset(near)
            return
        _Line(self, near)

    def after_fork_in_child(self) -> None:
        """Let go of the sockets a forked child has inherited: they are the parent's."""
        for line in self._lines:
            line.abandon()
        for each in (self._listener, self._waker, self._woken):
            each.close()


_NEVER: Final = float("inf")


class _Side:
    """One end of a connection: what is to be written to it, and whether more will come."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.last_due = 0.0
        self.ended = False
        """Nothing more is to be written once what waits has been."""
        self.shut = False
        self.blocked = False

    def add(self, data: bytes, due: float) -> None:
        self.last_due = max(self.last_due, due)
        self.waiting.append((self.last_due, data))
        self.size += len(data)

    def write(self, now: float) -> None:
        """Write what is due, as far as the other end takes it; raise OSError where it is gone."""
        self.blocked = False
        while self.waiting and self.waiting[0][0] <= now:
            due, data = self.waiting.popleft()
            try:
                sent = self.end.send(data)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            if sent < len(data):
                self.waiting.appendleft((due, data[sent:]))
                self.blocked = True
                return
        if self.ended and not self.waiting and not self.shut:
            self.shut = True
            self.end.shutdown(socket.SHUT_WR)


class _Line:
    """One connection, client to server; everything happens on the proxy's thread."""

    def __init__(self, proxy: FlakyProxy, near: socket.socket) -> None:
        self._proxy = proxy
        self.due = _NEVER
        self._watched: dict[socket.socket, int] = {}
        self._asking = False
        """Whether the last bytes came from the client."""
        self._tail = b""
        self._number = 0
        self._subject: bool | None = None if proxy._only or proxy._spare else True
        """Whether the plan is asked; None while nobody knows."""
        self._hang_up_at = _NEVER
        self._trouble: Trouble | None = None
        self._left = 0
        self._silent = False
        self._over = False
        near.setblocking(False)
        self._near = _Side(near)
        try:
            far = proxy._upstream.connect()
        except OSError:
            _reset(near)
            return
        for end in (near, far):
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._far = _Side(far)
        proxy._lines.add(self)
        self.watch()

    # -------------------------------------------------------------------------------- reading

    def ready(self, end: object, events: int) -> None:
        """Carry what can be read from or written to one end."""
        if self._over:
            return
        try:
            if events & selectors.EVENT_READ:
                self._read(from_client=end is self._near.end)
            if not self._over:
                self.flush()
        except OSError:
            self.close()

    def _read(self, *, from_client: bool) -> None:
        source, target = (self._near, self._far) if from_client else (self._far, self._near)
        try:
            data = source.end.recv(_CHUNK)
        except BlockingIOError:
            return
        if not data:
            target.ended = True
            return
        if from_client:
            self._on_request(data)
        else:
            self._on_reply(data)

    def _on_request(self, data: bytes) -> None:
        proxy = self._proxy
        if not self._asking:
            self._asking = True
            self._tail = b""
            self._trouble = None
            self._number = 0
        seen = self._tail + data
        self._tail = seen[-_TAIL:]
        if self._silent:
            return
        self._hang_up_at = _NEVER
        if self._subject is None:
            self._look_at(seen)
            if self._over:
                return
        if self._subject and self._trouble is None:
            if not self._number:
                proxy.requests += 1
                self._number = proxy.requests
            self._meet(proxy._plan.for_request(self._number, seen))
            if self._over or self._silent:
                return
        delay = 0.0
        if self._trouble is not None and self._trouble.kind == "delay":
            delay = self._trouble.seconds
        self._far.add(data, time.monotonic() + delay)

    def _look_at(self, sent: bytes) -> None:
        """Find out whether this is a connection to be troubled, and refuse it late if it must."""
        proxy = self._proxy
        if proxy._spare and proxy._spare in sent:
            self._subject = False
        if self._subject is False or proxy._only not in sent:
            return
        self._subject = True
        trouble = self._proxy._plan.for_connection(self._proxy.connections)
        if trouble is not None:
            trouble.note_fired()
            self.reset()

    def _meet(self, trouble: Trouble | None) -> None:
        if trouble is None:
            return
        self._trouble = trouble
        trouble.note_fired()
        if trouble.kind == "cut":
            self.reset()
        elif trouble.kind == "swallow":
            self._silent = True
        elif trouble.kind == "cut_after":
            self._left = trouble.size

    def _on_reply(self, data: bytes) -> None:
        self._asking = False
        trouble = self._trouble
        due = time.monotonic()
        if trouble is not None and trouble.kind == "lose_reply":
            self.reset()
            return
        if trouble is not None and trouble.kind == "cut_after":
            data = data[: self._left]
            self._left -= len(data)
            if not self._left:
                self._near.add(data, due)
                with contextlib.suppress(OSError):
                    self._near.write(due)
                self.reset()
                return
        elif trouble is not None and trouble.kind == "slow":
            due += trouble.seconds
        elif trouble is not None and trouble.kind == "hang_up":
            self._hang_up_at = due + trouble.seconds
        self._near.add(data, due)

    # -------------------------------------------------------------------------------- writing

    def on_time(self, now: float) -> None:
        """Do what has become due."""
        if now >= self._hang_up_at and not self._near.waiting and not self._proxy._frozen:
            self.close()
        else:
            self.flush()

    def flush(self) -> None:
        """Write what is due on both sides."""
        if self._over or self._proxy._frozen:
            return
        now = time.monotonic()
        try:
            self._near.write(now)
            self._far.write(now)
        except OSError:
            self.close()
            return
        if self._near.shut and self._far.shut:
            self.close()
            return
        self.watch()

    def watch(self) -> None:
        """Tell the selector what this connection waits for now."""
        if self._over:
            return
        frozen = self._proxy._frozen
        due = self._hang_up_at
        for side, other in ((self._near, self._far), (self._far, self._near)):
            wanted = 0
            if not frozen:
                if not other.ended and other.size < _MOST_WAITING:
                    wanted |= selectors.EVENT_READ
                if side.blocked:
                    wanted |= selectors.EVENT_WRITE
                elif side.waiting:
                    due = min(due, side.waiting[0][0])
            self._register(side.end, wanted)
        self.due = due

    def _register(self, end: socket.socket, wanted: int) -> None:
        known = self._watched.get(end, 0)
        if wanted == known:
            return
        if not known:
            self._proxy._selector.register(end, wanted, self)
        elif not wanted:
            self._proxy._selector.unregister(end)
        else:
            self._proxy._selector.modify(end, wanted, self)
        self._watched[end] = wanted

    # --------------------------------------------------------------------------------- ending

    def reset(self) -> None:
        """End the connection as a broken network does."""
        self._end(_reset)

    def close(self) -> None:
        """End the connection in good order."""
        self._end(_close)

    def abandon(self) -> None:
        """Close our copies of the sockets, in a forked child."""
        self._near.end.close()
        self._far.end.close()

    def _end(self, how: Callable[[socket.socket], None]) -> None:
        if self._over:
            return
        self._over = True
        for end, wanted in self._watched.items():
            if wanted:
                self._proxy._selector.unregister(end)
        self._watched.clear()
        self._proxy._lines.discard(self)
        how(self._near.end)
        # The server is told in any case: it need not go on with what nobody waits for.
        _close(self._far.end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # also where a forked child holds a copy
    end.close()


_proxies: WeakSet[FlakyProxy] = WeakSet()


def _after_fork_in_child() -> None:
    for proxy in _proxies:
        if not proxy._closed:
            proxy.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
