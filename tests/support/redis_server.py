"""Redis servers of the tests' own, which can be stopped, killed, frozen and started again."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
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
