"""Machines for the tests of the fronts, on which the unchanged files of ``deploy`` are installed.

A machine is a namespace of processes, mounts and networks. It has its own ``/run``, its own ports 80 and 443 and an
address, and it uses the programs of this system. When the tests end, in any way, it vanishes with all of its processes.
"""

from __future__ import annotations

import asyncio
import configparser
import http.client
import ipaddress
import itertools
import json
import os
import re
import resource
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import websockets.asyncio.client

import flask_uwsgi_websocket
from support.live import DEADLINE, wait_until
from support.paths import APPS

T = TypeVar("T")

PACKAGE = Path(flask_uwsgi_websocket.__file__).parent
DEPLOY = PACKAGE / "cli" / "deploy"

#: The host name in the configuration files, and in the certificate.
NAME = "chat.example.com"

MODES = ["threads", "gevent", "asyncio"]


class Front(NamedTuple):
    """A way from the client to uWSGI.

    :param setup: the key of its machines' setup.
    :param is_secure: whether clients use TLS.
    """

    setup: str
    is_secure: bool


FRONTS = {
    "nginx-uwsgi": Front("nginx-uwsgi", False),
    "nginx-uwsgi-tls": Front("nginx-uwsgi", True),
    "nginx-proxy": Front("nginx-proxy", False),
    "nginx-proxy-tls": Front("nginx-proxy", True),
    "haproxy": Front("haproxy", False),
    "haproxy-tls": Front("haproxy", True),
    "router-http": Front("router-http", False),
    "router-https": Front("router-https", True),
}

#: The user of the services needs no name, only a number. This one is in the range that systemd itself assigns.
_UID = 61184

_INSTALL = """\
set -eu
echo entered
ip link set lo up
mount -t tmpfs none /run
replace() {  # mounts a writable copy over a directory, with the same subdirectories
    mkdir -p "/run/replaced$1"
    mount --rbind "$1" "/run/replaced$1"
    mount -t tmpfs -o mode=755 none "$1"
    find "/run/replaced$1" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | while read -r name; do
        mkdir "$1/$name"
        mount --rbind "/run/replaced$1/$name" "$1/$name"
    done
}
replace /srv
# Python checks its files with access(2), which ignores capabilities. Only root may be able to read their directories.
directory=$PREFIX
while [ "$directory" != / ]; do
    directory=$(dirname "$directory")
    case $(stat --format %A "$directory") in *[xt]) ;; *) replace "$directory" ;; esac
done
mkdir -p /srv/chat/venv
mount --rbind "$PREFIX" /srv/chat/venv
cp "$APPS/fronts_app.py" /srv/chat/app.py
cp "$DEPLOY/$MODE.ini" /srv/chat/uwsgi.ini
install --group www-data --mode 640 "$CERTIFICATE" /srv/chat/tls.pem
"""

# As the package of Debian installs it, except for files of logs.
_NGINX = """\
for directory in /etc/nginx/sites-enabled /var/log/nginx /var/lib/nginx; do mount -t tmpfs none $directory; done
ln -s "$LOG" /var/log/nginx/error.log
cp "$DEPLOY/$SETUP.conf" /etc/nginx/sites-enabled/chat.conf
nginx
"""

_HAPROXY = """\
mount --bind "$DEPLOY/haproxy.cfg" /etc/haproxy/haproxy.cfg
haproxy -Ws -f /etc/haproxy/haproxy.cfg &
"""

_ROUTER = """\
cp "$DEPLOY/$SETUP.ini" /srv/chat/router.ini
"""


def _settings(unit: Path) -> configparser.SectionProxy:
    """Return the settings of a service for systemd."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Service"]


def _start(unit: Path) -> str:
    """Return the shell commands that start a service as systemd does."""
    service = _settings(unit)
    group = service["Group"]
    # This system's Python may be in a directory that only root may read.
    capabilities = ",".join(
        f"+{name.lower().removeprefix('cap_')}"
        for name in ["CAP_DAC_READ_SEARCH", *service.get("AmbientCapabilities", "").split()]
    )
    identity = f"--reuid {_UID} --regid {group} --clear-groups --no-new-privs"
    files = min(int(service["LimitNOFILE"]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    commands = []
    if directory := service.get("RuntimeDirectory"):
        commands.append(f"install --directory --owner {_UID} --group {group} --mode 755 /run/{directory}")
    assert (service["Type"], service["NoNewPrivileges"]) == ("notify", "yes")
    commands.append(
        f"(ulimit -n {files}; exec setpriv {identity} --inh-caps {capabilities} --ambient-caps {capabilities}"
        f" {service['ExecStart']}) & echo $! >/run/{unit.name}.pid"
    )
    return "\n".join([*commands, ""])


_SETUPS = {
    "nginx-uwsgi": _NGINX,
    "nginx-proxy": _NGINX,
    "haproxy": _HAPROXY,
    "router-http": _ROUTER,
    "router-https": _ROUTER,
}


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the loop, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, DEADLINE), self._loop).result()

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """A WebSocket of the websockets library.

    It does not use the library's client for threads: if two threads use one TLS connection of Python, one to read and
    one to write, written data is lost now and then.
    """

    def __init__(self, loop: Loop, connection: websockets.asyncio.client.ClientConnection) -> None:
        self._loop = loop
        self._connection = connection

    def send(self, message: str | bytes) -> None:
        """Send a message."""
        self._loop.run(self._connection.send(message))

    def receive(self) -> str | bytes:
        """Return the next message."""
        return self._loop.run(self._connection.recv())

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""

        async def close() -> None:
            await self._connection.close(code, reason)
            self._connection.transport.abort()  # for Python 3.10 a TLS connection that the peer has ended is open

        self._loop.run(close())

    @property
    def ending(self) -> tuple[int | None, str | None]:
        """The code and reason with which the connection was closed."""
        return self._connection.close_code, self._connection.close_reason


class Machine:
    """A machine with one front and uWSGI in one mode.

    :param number: the number of this machine within this process.
    :param certificate: a file with the certificate and its key, for all servers and clients that use TLS.
    :param loop: the event loop of its clients.
    :param deploy: the directory with the configuration.
    """

    def __init__(
        self, number: int, setup: str, mode: str, directory: Path, *, certificate: Path, loop: Loop, deploy: Path
    ) -> None:
        self.mode = mode
        self._service = _settings(deploy / "chat.service")
        self._loop = loop
        self._log = directory / "log"
        self._tls = ssl.create_default_context(cafile=certificate)
        self._tokens = map("t{}".format, itertools.count())
        # Part of 198.18.0.0/15, which is for tests (RFC 2544). The other live tests use the other half.
        network = ipaddress.ip_network("198.19.0.0/16")[os.getpid() % 1024 * 64 + number * 4]
        self.host, self.client = str(network + 1), str(network + 2)

        # Services notify systemd when they are ready. Here they notify this socket.
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = directory / "notify"
        self._notifications.bind(str(notify))
        self._notifications.settimeout(3 * DEADLINE)  # many machines may start at the same time
        notify.chmod(0o777)
        services = ["chat.service"] + ["chat-router.service"] * setup.startswith("router")
        self._services = len(services)

        starts = [_start(deploy / service) for service in services]
        script = "".join([_INSTALL, _SETUPS[setup], *starts, "exec cat >/dev/null"])
        environ = {
            **os.environ,
            "SETUP": setup,
            "MODE": mode,
            "APPS": str(APPS),
            "DEPLOY": str(deploy),
            "PREFIX": sys.prefix,
            "LOG": str(self._log),
            "CERTIFICATE": str(certificate),
            "NOTIFY_SOCKET": str(notify),
            "PYTHONPATH": str(PACKAGE.parent),
        }
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ)
        self._interface = f"fr{os.getpid()}x{number}"

    def connect_network(self) -> None:
        """Connect this system and the machine by a virtual cable."""
        wait_until(lambda: "entered" in self.log, lambda: f"the machine does not start: {self.log}")
        pid = str(self._process.pid)
        inside = ["nsenter", "--target", pid, "--net"]
        link = ["ip", "link", "add", self._interface, "type", "veth", "peer", "name", "eth0", "netns", pid]
        for command in (
            link,
            ["ip", "address", "add", f"{self.client}/30", "dev", self._interface],
            ["ip", "link", "set", self._interface, "up"],
            [*inside, "ip", "address", "add", f"{self.host}/30", "dev", "eth0"],
            [*inside, "ip", "link", "set", "eth0", "up"],
        ):
            subprocess.run(command, check=True)

    def wait_until_ready(self) -> None:
        """Wait until the services report that they are ready, as systemd does, and until the front answers."""
        try:
            for _ in range(self._services):
                while b"READY=1" not in self._notifications.recv(4096):
                    pass
        except TimeoutError:
            raise AssertionError(f"a service does not become ready:\n{self.log}") from None

        def answers() -> bool:
            with suppress(OSError, http.client.HTTPException):
                return self.get("/").status in {200, 301}
            return False

        wait_until(answers, lambda: f"the front does not answer:\n{self.log}")

    def reload_service(self) -> None:
        """Reload uWSGI as systemd does."""
        self._signal_service(self._service["ExecReload"])

    def stop_service(self) -> None:
        """Stop uWSGI as systemd does, and wait for its end."""
        assert (self._service["KillMode"], self._service.get("KillSignal", "SIGTERM")) == ("mixed", "SIGTERM")
        self._signal_service("/bin/kill -TERM $MAINPID")
        wait_until(lambda: "goodbye to uWSGI" in self.log, lambda: f"uWSGI does not stop:\n{self.log}")

    def _signal_service(self, command: str) -> None:
        result = self.run("sh", "-c", f"MAINPID=$(cat /run/chat.service.pid); {command}")
        assert (result.returncode, result.stdout) == (0, ""), self.log

    def stop(self) -> None:
        """Stop the machine."""
        # The system would remove the cable with the network at its other end, but later, when a new one may exist.
        subprocess.run(["ip", "link", "delete", self._interface], capture_output=True)
        self._process.kill()
        self._process.communicate()
        self._notifications.close()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, and return its output."""
        pid = str(self._process.pid)
        enter = ["nsenter", "--target", pid, "--mount", "--net", f"--pid=/proc/{pid}/ns/pid_for_children"]
        return subprocess.run([*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def log(self) -> str:
        """The output of the services and of the front."""
        return self._log.read_text(errors="replace")

    # Clients

    def open(self, *, is_secure: bool) -> socket.socket:
        """Open a connection to the front."""
        sock = socket.create_connection((self.host, 443 if is_secure else 80), DEADLINE)
        return self._tls.wrap_socket(sock, server_hostname=NAME) if is_secure else sock

    def token(self) -> str:
        """Return the address that distinguishes this connection from others."""
        return next(self._tokens)

    @contextmanager
    def connect(self, path: str, *, is_secure: bool, **options: Any) -> Iterator[Client]:
        """Open a WebSocket through the front."""

        async def connect() -> websockets.asyncio.client.ClientConnection:
            return await websockets.asyncio.client.connect(
                f"{'wss' if is_secure else 'ws'}://{NAME}{path}",
                sock=sock,
                ssl=self._tls if is_secure else None,
                **{"compression": None, "open_timeout": None, "max_size": None, "ping_interval": None, **options},
            )

        sock = socket.create_connection((self.host, 443 if is_secure else 80), DEADLINE)
        sock.setblocking(False)
        client = Client(self._loop, self._loop.run(connect()))
        try:
            yield client
        finally:
            client.close()

    def get(self, path: str, *, is_secure: bool = False, **headers: str) -> http.client.HTTPResponse:
        """Request a page through the front, and return the response, whose body has been read."""
        connection = http.client.HTTPConnection(NAME, timeout=DEADLINE)
        connection.sock = self.open(is_secure=is_secure)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.body = response.read()  # type: ignore[attr-defined]
            return response
        finally:
            connection.close()

    def json(self, path: str, *, is_secure: bool) -> Any:
        """Request a page of JSON."""
        return json.loads(self.get(path, is_secure=is_secure).body)  # type: ignore[attr-defined]

    def check_log(self) -> None:
        """Check that the log has no unnoticed errors."""
        log = re.sub(r"^\[uwsgi-http .*\n", "", self.log, flags=re.MULTILINE)  # about clients that have left the router
        noise = re.search(r"Traceback|\[BUG\]|Segmentation|DAMN|Broken pipe|[Rr]espawn|\[(warn|error|ALERT)", log)
        assert noise is None, f"{noise[0]}:\n{self.log}"


def make_certificate(directory: Path) -> Path:
    """Create a certificate for :data:`NAME`, and return the file with it and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        f" -subj /CN={NAME} -addext subjectAltName=DNS:{NAME} -addext keyUsage=critical,digitalSignature,keyCertSign"
    )
    subprocess.run(
        [*shlex.split(command), "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True
    )
    both = directory / "tls.pem"
    both.write_text(certificate.read_text() + key.read_text())
    return both


#: All machines, each by its setup and its mode.
ALL = list(itertools.product(_SETUPS, MODES))


@contextmanager
def running(
    directory: Path, kinds: Sequence[tuple[str, str]], *, first: int = 0, deploy: Path = DEPLOY
) -> Iterator[dict[tuple[str, str], Machine]]:
    """Run machines of these *kinds*, all at the same time.

    :param first: the number of the first machine. The numbers in one process must differ. The last number is 15.
    :param deploy: the directory with their configuration.
    """
    certificate = make_certificate(directory)
    loop = Loop()
    machines: dict[tuple[str, str], Machine] = {}
    try:
        for number, (setup, mode) in enumerate(kinds, first):
            own = directory / f"{setup}-{mode}"
            own.mkdir()
            machines[setup, mode] = Machine(number, setup, mode, own, certificate=certificate, loop=loop, deploy=deploy)
        for machine in machines.values():
            machine.connect_network()
        for machine in machines.values():
            machine.wait_until_ready()
        yield machines
        for machine in machines.values():
            machine.check_log()
    finally:
        for machine in machines.values():
            machine.stop()
        loop.stop()
