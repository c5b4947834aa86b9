"""A way to PostgreSQL over TCP that can fall silent, also to an embedded server on its socket."""

from __future__ import annotations

import select
import socket
import threading

from psycopg.conninfo import conninfo_to_dict


class BlackHole:
    """A way to PostgreSQL that can stop carrying anything, without a word to either end."""

    def __init__(self, url: str) -> None:
        self._to = conninfo_to_dict(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = threading.Event()
        self.swallows = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        port = self._listener.getsockname()[1]
        user, password = self._to.get("user", "postgres"), self._to.get("password")
        login = f"{user}:{password}" if password else user
        self.url = f"postgresql://{login}@127.0.0.1:{port}/{self._to['dbname']}"

    def _server(self) -> socket.socket:
        host, port = str(self._to.get("host") or "127.0.0.1"), int(self._to.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)  # the embedded one
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            server = None if self.swallows.is_set() else self._server()
            thread = threading.Thread(target=self._carry, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, server: socket.socket | None) -> None:
        ends = [s for s in (client, server) if s is not None]
        try:
            while not self._closed.is_set():
                readable, _, _ = select.select(ends, [], [], 0.05)
                for one in readable:
                    if self.swallows.is_set():
                        self._closed.wait(0.05)  # nothing is read, nothing answered
                        continue
                    data = one.recv(1 << 16)
                    other = server if one is client else client
                    if not data or other is None:
                        return
                    other.sendall(data)
        except OSError:
            return
        finally:
            for each in ends:
                each.close()

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
