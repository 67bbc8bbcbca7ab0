"""Redis servers of the tests' own, which can be stopped, killed, frozen and started again."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from .inprocess import DEADLINE, wait_until
from .ports import reserved_port


class RedisServer:
    """A Redis server with a Unix socket and a port.

    It saves nothing, except by :meth:`save`: what was saved is there again after a restart.

    :param directory: an empty directory for its files. Its path is short, as that of a Unix socket has to be.
    :param tls: whether the port speaks TLS. :attr:`certificate` is what clients trust.
    :param password: what clients have to send.
    :param sentinel: whether the server is a Sentinel.
    :param options: more lines of its configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tls: bool = False,
        password: str | None = None,
        sentinel: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.socket = directory / "socket"
        self.certificate = directory / "certificate.pem"
        self._tls, self._password, self._sentinel, self._options = tls, password, sentinel, options
        self._reservation = ExitStack()
        self.port = self._reservation.enter_context(reserved_port())
        self._process: subprocess.Popen[bytes] | None = None
        if tls:
            self._make_certificate()

    def _make_certificate(self) -> None:
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
            " -addext subjectAltName=IP:127.0.0.1 -addext keyUsage=critical,digitalSignature,keyCertSign"
            " -out certificate.pem -keyout key.pem"
        )
        subprocess.run(shlex.split(command), cwd=self.directory, check=True, capture_output=True)

    @property
    def url(self) -> str:
        """The URL of the port, with the password."""
        scheme = "rediss" if self._tls else "redis"
        user = f":{self._password}@" if self._password else ""
        trust = f"?ssl_ca_certs={self.certificate}" if self._tls else ""
        return f"{scheme}://{user}127.0.0.1:{self.port}{trust}"

    @property
    def unix_url(self) -> str:
        """The URL of the Unix socket, without a password."""
        return f"unix://{self.socket}"

    def _configuration(self) -> str:
        port = "0" if self._tls else str(self.port)
        lines = ["bind 127.0.0.1", f"port {port}", f"dir {self.directory}", f"unixsocket {self.socket}"]
        if self._tls:
            files = f"tls-cert-file {self.certificate}", f"tls-key-file {self.directory / 'key.pem'}"
            lines += [f"tls-port {self.port}", *files, "tls-auth-clients no"]
        if self._password:
            lines.append(f"requirepass {self._password}")
        if not self._sentinel:
            lines += ['save ""', "repl-diskless-sync-delay 0"]
        return "\n".join([*lines, *self._options, ""])

    def start(self, *, wait: bool = True) -> None:
        """Start it, with what was saved.

        :param wait: whether to wait until it has read its data.
        """
        file = self.directory / "redis.conf"
        file.write_text(self._configuration())
        arguments = ["redis-server", str(file), *["--sentinel"] * self._sentinel]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers if wait else self._listens, lambda: (self.directory / "log").read_text())

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):  # BusyLoadingError, too
            return bool(self.run("PING"))
        return False

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            sock.connect(str(self.socket))
            return True
        return False

    def run(self, *words: str | bytes | int) -> Any:
        """Run a command, and return the reply as it is: text is bytes."""
        make: Any = redis.UnixDomainSocketConnection
        connection = make(path=str(self.socket), password=self._password, protocol=2)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()

    def save(self) -> None:
        """Save all data, which the next start then reads."""
        self.run("SAVE")

    def forget(self) -> None:
        """Forget what was saved."""
        (self.directory / "dump.rdb").unlink(missing_ok=True)

    def pause(self) -> None:
        """Freeze it: the system accepts connections and bytes for it, and it does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it as an administrator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, also when it is frozen."""
        self._end(signal.SIGKILL)

    def _end(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(DEADLINE)
            self._process = None

    def restart(self) -> None:
        """Kill it, and start it with what was saved."""
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()
        self._reservation.close()


class TcpProxy:
    """Carries bytes between clients and a server on this machine, until it is told not to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._allowed: int | None = None
        self._is_away = False
        #: Set when it has stalled.
        self.stalled = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stall_after(self, count: int) -> None:
        """Pass on no more than so many bytes from the server."""
        self._allowed = count

    def leave(self) -> None:
        """End all connections, also those that are made until it is back."""
        self._is_away = True
        self.cut()

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
                    self.stalled.set()

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


#: Starts a server with options of its own, which ends with the test.
StartServer = Callable[..., RedisServer]


@contextmanager
def running(server: RedisServer) -> Iterator[RedisServer]:
    """Start a server, and end it afterwards."""
    try:
        server.start()
        yield server
    finally:
        server.close()
