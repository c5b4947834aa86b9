"""The daemon's HTTP answers: ``/livez``, ``/readyz``, ``/health`` and ``/metrics``, on a thread.

No answer asks a server: each tells what the daemon knows already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from marketdata.errors import ConfigurationError
from marketdata.metrics import CONTENT_TYPE

log = logging.getLogger("marketdata.health")

_SLOWEST_END: Final = 3.0


@dataclass(frozen=True, slots=True)
class State:
    """Whether something is so, and what there is to say about it."""

    good: bool
    detail: Mapping[str, Any]


class HealthServer:
    """Serves from when it is made until `close`.

    Parameters
    ----------
    listen : str
        ``host:port``; port 0 takes a free one.
    live, ready : callable
        Tell whether the scheduler's loop turns, and whether the daemon can do its work: 200 or 503.
    detail : callable
        Returns what ``/health`` shows, JSON-representable.
    metrics : callable
        Returns the exposition.

    Attributes
    ----------
    url : str
        Where it listens.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on; a retry does not help.
    """

    def __init__(
        self,
        listen: str,
        *,
        live: Callable[[], State],
        ready: Callable[[], State],
        detail: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], bytes],
    ) -> None:
        self._socket = _listen(listen)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        # Not async: each answer runs on a worker thread, so that none holds up the others.
        def livez(_: Request) -> Response:
            return _answer(live())

        def readyz(_: Request) -> Response:
            return _answer(ready())

        def health(_: Request) -> Response:
            return JSONResponse(dict(detail()))

        def exposition(_: Request) -> Response:
            return Response(metrics(), media_type=CONTENT_TYPE)

        routes = {"livez": livez, "readyz": readyz, "health": health, "metrics": exposition}
        app = Starlette(routes=[Route(f"/{name}", each) for name, each in routes.items()])
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="marketdata-health", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._server.should_exit = True
        self._thread.join(_SLOWEST_END)
        with contextlib.suppress(OSError):
            self._socket.close()


def _answer(state: State) -> Response:
    return JSONResponse(dict(state.detail), status_code=200 if state.good else 503)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(128)
    except (OSError, OverflowError, ValueError) as error:
        listener.close()
        if isinstance(error, ValueError):
            raise ConfigurationError(
                f"{address!r} is not an address", cure="write host:port, such as 127.0.0.1:9464"
            ) from None
        raise ConfigurationError(
            f"the daemon cannot listen on {address}: {getattr(error, 'strerror', None) or error}",
            cure="end what uses the port, or set MARKETDATA_LISTEN to another host:port; port 0 "
            "takes a free one",
        ) from None
    return listener
