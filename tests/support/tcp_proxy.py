"""A TCP proxy between clients and a server, which a test stalls, cuts, and takes away."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from .inprocess import DEADLINE


class TcpProxy:
    """Carries bytes between clients and a server on this machine, until it is told not to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._allowed: int | None = None
        self._cuts = False
        self._is_away = False
        #: How many connections it has turned away.
        self.refused = 0
        #: Set when it has stalled.
        self.stalled = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stall_after(self, count: int) -> None:
        """Pass on no more than so many bytes from the server."""
        self._allowed = count

    def cut_after(self, count: int) -> None:
        """Pass on so many bytes from the server, then end the connection that has them. Later ones are whole."""
        self._cuts = True
        self._allowed = count

    def leave(self) -> None:
        """End all connections, also those that are made until it is back."""
        self.turn_away()
        self.cut()

    def turn_away(self) -> None:
        """End connections that are made until it is back."""
        self._is_away = True

    def come_back(self) -> None:
        self._is_away = False

    def inject(self, data: bytes) -> None:
        """Send bytes to the clients that the server has not sent."""
        for client in self._sockets[::2]:
            client.sendall(data)

    def flow(self) -> None:
        """Pass on everything again. Connections that have stalled have a hole: cut them."""
        self._allowed = None

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._is_away:
                    client.close()
                    self.refused += 1
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += (client, server)
                if self._is_away:  # since a moment ago
                    self.cut()
                for source, sink in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._carry, args=(source, sink, source is server))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, may_stall: bool) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if may_stall and self._allowed is not None:
                    data = data[: self._allowed]
                    self._allowed -= len(data)
                sink.sendall(data)
                if may_stall and self._allowed == 0:
                    if self._cuts:
                        self._allowed = None
                        for each in (sink, source):
                            with suppress(OSError):  # it has ended by itself
                                each.shutdown(socket.SHUT_RDWR)
                    self.stalled.set()
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End all connections."""
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE)
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)
        for sock in (self._listener, *self._sockets):
            sock.close()
