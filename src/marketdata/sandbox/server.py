"""The sandbox as a running server: on a thread of this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from marketdata.clock import Clock, SystemClock, parse_clock
from marketdata.errors import ConfigurationError
from marketdata.sandbox.alpaca import AlpacaData
from marketdata.sandbox.app import Guard, RequestLog, SandboxApp
from marketdata.sandbox.control import control_routes
from marketdata.sandbox.faults import FaultPlan
from marketdata.sandbox.files import FileMarket
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.sandbox.source import Basis, MarketSource
from marketdata.sandbox.trading import AlpacaTrading
from marketdata.sandbox.view import MarketView
from marketdata.sandbox.yahoo import YahooChart

_log = logging.getLogger(__name__)
# A response that a fault withholds or cuts short is no error of the server.
_log.addFilter(lambda record: not record.getMessage().startswith("ASGI callable returned without"))


class Sandbox:
    """A local market-data server that speaks Alpaca's REST API and Yahoo's chart API.

    The port is bound when the object is made, so that `url` is known at once; requests are
    answered between `start` and `stop`. It serves simulated or replayed prices: nothing it says
    is a quotation.

    Parameters
    ----------
    source : MarketSource, optional
        Where prices come from; a `GeneratedMarket` of `seed` and `symbols` by default.
    clock : Clock, optional
        Market time: bars that have not closed by it are not served. The machine's by default.
    host, port : str, int
        Where to listen; port 0 takes a free one.
    seed : int
        Which generated market.
    rate_limit : int, optional
        Requests a key may send per `rate_window` seconds; None refuses none, and says 10,000.
    rate_window : float
        Seconds of real time.
    entitled_sip : bool
        False is the free plan: SIP data of the last 15 minutes is refused with 403.
    symbols : sequence of str, optional
        What the assets endpoint lists, for a generated market.
    api_keys : iterable of str, optional
        Key ids that are accepted; any by default.
    seconds : callable, optional
        Seconds since 1970 for rate limits, and for when requests came; real time by default.
    live_row : bool
        Whether Yahoo's answers end with a live row stamped mid-interval while the market is open.

    Attributes
    ----------
    url : str
        Base of all three services: Alpaca data, Alpaca trading and Yahoo.
    requests : RequestLog
        What has been asked so far, `count` by path prefix.
    faults : FaultPlan
        What goes wrong, and when.
    trading : AlpacaTrading
        The paper accounts, one for each API key: ``trading.desk(key)``.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on.

    Examples
    --------
    >>> with Sandbox(seed=3) as sandbox:
    ...     sandbox.requests.count("/v2/stocks/bars")
    0
    """

    def __init__(
        self,
        source: MarketSource | None = None,
        *,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 7,
        rate_limit: int | None = None,
        rate_window: float = 60.0,
        entitled_sip: bool = True,
        symbols: Sequence[str] | None = None,
        api_keys: Iterable[str] | None = None,
        live_row: bool = True,
        seconds: Callable[[], float] = time.time,
    ) -> None:
        self.view = MarketView(source or GeneratedMarket(seed, symbols), clock or SystemClock())
        self.requests = RequestLog()
        self.faults = FaultPlan(seconds)
        self.guard = Guard(
            None if api_keys is None else frozenset(api_keys), rate_limit, rate_window, seconds
        )
        self.alpaca = AlpacaData(self.view, entitled_sip=entitled_sip)
        self.trading = AlpacaTrading(self.view)
        self.yahoo = YahooChart(self.view, live_row=live_row)
        self._connections = _Connections()
        self._app = SandboxApp(
            [
                *control_routes(self),
                *self.alpaca.routes(),
                *self.trading.routes(),
                *self.yahoo.routes(),
            ],
            self.requests,
            self.faults,
            self.guard,
            self._connections.reset,
            lambda: self.clock.now_us(),  # noqa: PLW0108  the clock may be swapped
        )
        self._socket = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> MarketSource:
        return self.view.source

    @source.setter
    def source(self, source: MarketSource) -> None:
        self.view.source = source

    @property
    def clock(self) -> Clock:
        """Market time; may be swapped while the server runs."""
        return self.view.clock

    @clock.setter
    def clock(self, clock: Clock) -> None:
        self.view.clock = clock

    # ---------------------------------------------------------------------------- running

    def start(self) -> Self:
        """Serve on a thread of this process; return once requests are answered."""
        if self._thread is not None:
            return self
        server = self._make_server()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[self._socket])),
            name="marketdata-sandbox",
            daemon=True,
        )
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Serve on the calling thread until SIGINT or SIGTERM."""
        server = self._make_server()
        try:
            asyncio.run(server.serve(sockets=[self._socket]))
        finally:
            self._release()

    def stop(self) -> None:
        """Stop within a fraction of a second, stalled requests or not. Idempotent."""
        server, thread = self._server, self._thread
        self._release()
        if server is not None:
            server.end()
        if thread is not None:
            thread.join(10)
        self._thread = None
        with contextlib.suppress(OSError):
            self._socket.close()

    def _release(self) -> None:
        self._app.stop()
        self.faults.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Sandbox({self.url}, clock={self.clock!r})"

    def _make_server(self) -> _Server:
        if self._server is not None:
            raise ConfigurationError("a sandbox is started once", cure="make another Sandbox")
        config = uvicorn.Config(
            self._app,
            http=self._connections.protocol(),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,  # it says the market's time, not this machine's
            # A stalled request must not hold up the end.
            timeout_graceful_shutdown=1,
            # Requests name hundreds of symbols in their query.
            h11_max_incomplete_event_size=1 << 20,
        )
        self._server = _Server(config, self._connections)
        return self._server


class _Server(uvicorn.Server):
    """Ends at once when told to: uvicorn looks ten times a second, then waits a tenth for the
    connections. Clients and tests that start a sandbox of their own would wait for that."""

    def __init__(self, config: uvicorn.Config, connections: _Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._told = threading.Event()
        self._wake: Callable[[], None] | None = None

    def end(self) -> None:
        """Stop serving, and drop every connection; callable from any thread."""
        self.should_exit = self.force_exit = True
        self._told.set()
        if self._wake is not None:
            self._wake()

    async def main_loop(self) -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself meanwhile
                loop.call_soon_threadsafe(woken.set)

        self._wake = wake
        counter = 0
        while not await self.on_tick(counter) and not self._told.is_set():
            counter = (counter + 1) % 864_000
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._told.is_set():
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self._connections.abort_all()
        await asyncio.sleep(0)  # the aborted ones are taken leave of


class _Connections:
    """The open connections by client address, so that a fault can reset one."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def protocol(self) -> type[asyncio.Protocol]:
        """Return uvicorn's HTTP protocol with our book-keeping added."""
        connections = self

        class Protocol(H11Protocol):
            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **settings)
                self.logger = _log

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if self.client is not None:
                    connections._open[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    connections._open.pop(self.client, None)

        return Protocol

    def reset(self, client: tuple[str, int]) -> None:
        """Close with RST: the client sees a connection reset."""
        transport = self._open.get(client)
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        # Linger of zero seconds discards what is unsent and sends RST.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def abort_all(self) -> None:
        """Drop every connection; on the loop's own thread."""
        for transport in list(self._open.values()):
            transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio sets this only on sockets made with a protocol number; without it small answers
        # wait tens of milliseconds for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        # Clients may connect before the thread has come up: the kernel keeps them waiting.
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"the sandbox cannot listen on {host}:{port}: {error.strerror}",
            cure="choose another --port, or 0 for a free one",
        ) from None
    return listener


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    seed: int = 7,
    data: Sequence[str | Path] = (),
    basis: Basis = "raw",
    clock: str = "system",
    rate_limit: int | None = None,
    free_plan: bool = False,
    ready: Callable[[Sandbox], None] | None = None,
) -> None:
    """Run a sandbox on this thread until SIGINT or SIGTERM; for the command line.

    Parameters
    ----------
    data : sequence of paths
        Files or folders of a `FileMarket`; none serves the generated market of `seed`.
    basis : {"raw", "split"}
        Share basis of `data`.
    clock : str
        As ``MARKETDATA_CLOCK``: ``system``, an instant, or ``replay:START@SPEED``.
    free_plan : bool
        The free plan: 200 requests a minute unless `rate_limit` says otherwise, and no SIP data
        of the last 15 minutes.
    ready : callable, optional
        Called with the sandbox, its port bound, before it serves.

    Raises
    ------
    ConfigurationError
        Unreadable clock or data, or an address that cannot be listened on.
    """
    limit = 200 if free_plan and rate_limit is None else rate_limit
    sandbox = Sandbox(
        FileMarket(data, basis=basis) if data else None,
        clock=parse_clock(clock),
        host=host,
        port=port,
        seed=seed,
        rate_limit=limit,
        entitled_sip=not free_plan,
    )
    if ready is not None:
        ready(sandbox)
    sandbox.serve_forever()
