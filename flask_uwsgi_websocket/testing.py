"""The test client opens the WebSockets of an app without a server, with the real middleware, handshake and protocol.

A connection is a socket pair. At one end, a thread runs the app for the request, as a server with threads does. At the
other end, another thread reads messages and keeps them for the test. It answers Pings and Close frames whatever the
test does meanwhile, as a browser does.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse, run_wsgi_app

from .connection.channel import READ_SIZE
from .exceptions import ConnectionClosed, HandshakeRejected
from .protocol.deflate import Deflate, DeflateParameters
from .protocol.handshake import parse_extensions
from .protocol.protocol import Protocol, payload_of
from .signals import websocket_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The key of the environ for the connection of an upgrade request.
_ENVIRON_KEY = "flask_uwsgi_websocket.testing"

#: The most messages that wait for the test. With more, the client stops reading, so an endless handler has to wait.
_MOST_WAITING = 10_000

#: The largest message in bytes. A test receives whatever its handler sends.
_ANY_SIZE = 2**62


class WebSocketTestClient(FlaskClient):
    """Flask's test client with :meth:`websocket`.

    ``app.test_client()`` returns one when the app has an extension of this package. If your app has a test client class
    of its own, derive it from both::

        class Client(WebSocketTestClient, FlaskLoginClient):
            pass

        app.test_client_class = Client
    """

    def websocket(
        self,
        path: str = "/",
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        origin: str | None = None,
        subprotocols: Sequence[str] = (),
        timeout: float = 5.0,
        **options: Any,
    ) -> WebSocketTestConnection:
        """Open a WebSocket. The call returns when the handler has sent the handshake, by its first send or receive.

        The request has this client's cookies, and the client stores the cookies of the response.

        :param path: the URL, as for any request, or a ``ws://`` address from ``url_for()``.
        :param headers: more headers; they replace those of the handshake.
        :param origin: the ``Origin`` that a browser would send, such as ``"https://example.com"``, or None.
        :param subprotocols: the subprotocols to offer.
        :param timeout: the most seconds to wait for the handshake, for each message, and for the handler to end.
        :param options: options of :class:`flask.testing.EnvironBuilder`, such as ``query_string`` or ``base_url``.
        :raises HandshakeRejected: when the status of the response is not 101; ``response`` is the response.
        :raises TimeoutError: when there is no response in time.
        """
        fields = Headers(
            {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            }
        )
        if origin is not None:
            fields["Origin"] = origin
        if subprotocols:
            fields["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
        fields.update(headers)
        if options.get("follow_redirects"):
            raise TypeError(
                "the handshake of a WebSocket follows no redirects: leave follow_redirects out. HandshakeRejected has "
                "the response"
            )
        if path.startswith(("ws://", "wss://")):
            path = path.replace("ws", "http", 1)
        connection = WebSocketTestConnection(self.application, timeout)
        overrides = {**options.pop("environ_overrides", {}), _ENVIRON_KEY: connection}
        response = self.open(path, headers=fields, environ_overrides=overrides, **options)
        if response.status_code != 101:
            raise HandshakeRejected(response)
        connection.response = response
        return connection

    def run_wsgi_app(self, environ: WSGIEnvironment, buffered: bool = False) -> tuple[Iterable[bytes], str, Headers]:
        """Run a request. Werkzeug's client calls this method and takes care of cookies."""
        connection: WebSocketTestConnection | None = environ.get(_ENVIRON_KEY)
        if connection is None:
            return super().run_wsgi_app(environ, buffered)
        opening = copy(self)  # the copy has the same cookies
        opening.application = partial(connection.open, self.application)  # type: ignore[assignment]
        return super(WebSocketTestClient, opening).run_wsgi_app(environ, buffered)


class WebSocketTestConnection:
    """The test's end of a WebSocket, from :meth:`WebSocketTestClient.websocket`.

    The end of a ``with`` block closes the connection and waits for the handler to end. If the app propagates
    exceptions, as it does with ``TESTING``, the test gets an exception of the handler: from :meth:`receive`,
    :meth:`send` or :meth:`close`, whichever it calls first.
    """

    #: The response to the handshake.
    response: TestResponse

    def __init__(self, app: Flask, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self._protocol = Protocol(is_client=True)
        self._writing = threading.Lock()  # held, never for long, around the output and the sending half of the protocol
        self._outbox = bytearray()  # bytes that the socket has not taken
        self._changed = threading.Condition()  # held around the attributes below
        self._running = 0  # how many of the two threads run
        self._answer: tuple[Iterable[bytes], str, Headers] | None = None
        self._failure: BaseException | None = None
        self._inbox: deque[str | bytes] = deque()
        self._is_input_over = False
        self._is_leaving = False
        self._is_end_told = False

    def __enter__(self) -> WebSocketTestConnection:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *args: object) -> None:
        try:
            self.close()
        except BaseException:
            if exc_type is None:  # otherwise the test's own exception matters more
                raise

    # The test's calls

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol of the connection, or None."""
        return self.response.headers.get("Sec-WebSocket-Protocol")

    @property
    def close_code(self) -> int | None:
        """The code of the Close frame that ended the connection, from either side; None while it is open."""
        closed = self._protocol.closed
        return None if closed is None else closed.code

    @property
    def close_reason(self) -> str | None:
        """The reason that came with :attr:`close_code`."""
        closed = self._protocol.closed
        return None if closed is None else closed.reason

    def send(self, message: str | ReadableBuffer) -> None:
        """Send a message: ``str`` as text, bytes as binary.

        :raises ConnectionClosed: when the connection has closed.
        :raises TimeoutError: when the handler leaves so much unread that the socket has no room for the message.
        """
        payload = payload_of(message)
        try:
            with self._writing:
                if isinstance(payload, str):
                    self._outbox += self._protocol.send_text(payload)
                else:
                    self._outbox += self._protocol.send_binary(payload)
        except ConnectionClosed:
            self._wait(lambda: self._is_input_over, self._timeout)
            self._raise_failure()
            raise self._end() from None
        try:
            self._flush_all()
        except TimeoutError:
            self._leave()
            raise TimeoutError(f"timed out: {self._handler()} has received nothing for {self._timeout:g} s") from None
        except OSError:  # the connection has closed meanwhile, as receive() will report
            with self._writing:
                self._outbox.clear()

    def send_json(self, value: Any) -> None:
        """Send *value* as JSON in a text message, written by ``app.json``. See :meth:`send`."""
        self.send(self._app.json.dumps(value))

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: the most seconds to wait; the connection's own ``timeout`` unless given.
        :returns: ``str`` for a text message, ``bytes`` for a binary one; None, once, when the connection has closed.
        :raises TimeoutError: when the time has passed. This loses no message.
        :raises ConnectionClosed: when the method is called again after it returned None.
        """
        timeout = self._timeout if timeout is None else timeout
        if not self._wait(lambda: self._inbox or self._is_input_over, timeout):
            raise TimeoutError(f"timed out: {self._handler()} has sent nothing for {timeout:g} s")
        with self._changed:
            if self._inbox:
                self._changed.notify_all()
                return self._inbox.popleft()
        self._raise_failure()
        if self._is_end_told:
            raise self._end()
        self._is_end_told = True
        return None

    def receive_json(self, timeout: float | None = None) -> Any:
        """Receive a message and read it as JSON, with ``app.json``. See :meth:`receive`.

        :raises ConnectionClosed: when the connection has closed, because None would mean a JSON null.
        :raises ValueError: when the message is not JSON.
        """
        message = self.receive(timeout)
        if message is None:
            raise self._end()
        return self._app.json.loads(message)

    def __iter__(self) -> Iterator[str | bytes]:
        """Receive messages until the connection closes."""
        while not self._is_end_told and (message := self.receive()) is not None:
            yield message

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait until the handler has ended. On a closed connection, this only waits.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :raises ValueError: when the code or the reason is invalid.
        :raises TimeoutError: when the handler does not end.
        """
        with self._writing:
            self._outbox += self._protocol.send_close(code, reason)
        with self._changed:
            self._is_leaving = True
            self._changed.notify_all()
        with suppress(OSError):  # the handler's end has closed, or does not read
            self._flush_all()
        has_ended = self._wait(lambda: not self._running, self._timeout)
        self._leave()
        if not has_ended:
            raise TimeoutError(f"timed out: {self._handler()} has not ended within {self._timeout:g} s of the close")
        self._raise_failure()

    def _flush_all(self) -> None:
        """Send the contents of the outbox.

        :raises TimeoutError: when the handler does not read them in time.
        """
        deadline = monotonic() + self._timeout
        while not self._flush():
            if not self._poll(select.POLLOUT, deadline - monotonic()):
                raise TimeoutError

    def _flush(self) -> bool:
        """Send as much as the socket takes, and return whether the outbox is empty."""
        with self._writing, suppress(BlockingIOError):
            while self._outbox:
                del self._outbox[: self._sock.send(self._outbox)]
        return not self._outbox

    def _poll(self, events: int, timeout: float | None) -> bool:
        """Wait for the socket, without a lock; return False when *timeout* seconds have passed."""
        poll = select.poll()
        poll.register(self._sock, events)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def _raise_failure(self) -> None:
        """Raise the handler's exception, if there is one. Called when the connection has closed."""
        if self.close_code == 1011:  # the handler has failed, or has closed with this code and may go on
            self._wait(lambda: not self._running, self._timeout)
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _end(self) -> ConnectionClosed:
        closed = self._protocol.closed
        assert closed is not None  # the input is over
        return ConnectionClosed(*closed)

    def _wait(self, condition: Callable[[], object], timeout: float) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    def _leave(self) -> None:
        """Close the socket, which ends the reading thread."""
        with self._changed:
            self._is_leaving = True
            self._changed.notify_all()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()  # the thread waits for nothing now, and must not read a descriptor that is used again
        self._sock.close()

    def _handler(self) -> str:
        """Return the name of the handler for an error that says that it hangs."""
        adapter = self._app.create_url_adapter(self._app.request_class(self._environ))
        try:
            assert adapter is not None  # there is a request
            rule, _ = adapter.match(return_rule=True)
        except HTTPException:
            return f"the app at {self._environ['PATH_INFO']}"
        view = self._app.view_functions[rule.endpoint]
        return f"the handler {view.__module__}.{view.__name__}() of {rule.rule}"

    # The threads

    def open(self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run *app* for the request in a thread, and return its response in the place of *app*.

        :raises TimeoutError: when there is no response in time.
        """
        environ.pop("werkzeug.debug.preserve_context", None)  # contexts belong to the thread and end with it
        self._environ = environ
        self._sock, theirs = socket.socketpair()
        environ.update({"werkzeug.socket": theirs, "wsgi.multithread": True})
        self._sock.setblocking(False)
        self._running = 2
        self._reader = self._start(self._read)
        self._start(self._serve, app, environ, theirs)
        if not self._wait(lambda: self._answer is not None or not self._running, self._timeout):
            self._leave()
            raise TimeoutError(
                f"timed out: {self._handler()} has neither sent nor received anything for {self._timeout:g} s. Either "
                "would send the handshake"
            )
        if self._answer is None or self._answer[1][:3] != "101":
            self._leave()
            self._raise_failure()
        assert self._answer is not None
        body, status, headers = self._answer
        start_response(status, headers.to_wsgi_list())
        return body

    def _start(self, function: Callable[..., None], *args: Any) -> threading.Thread:
        def run() -> None:
            try:
                function(*args)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name=f"WebSocket {self._environ['PATH_INFO']}", daemon=True)
        thread.start()
        return thread

    def _serve(self, app: WSGIApplication, environ: WSGIEnvironment, theirs: socket.socket) -> None:
        try:
            with theirs, websocket_error.connected_to(self._on_error):
                answer = run_wsgi_app(app, environ, buffered=True)
        except BaseException as error:
            self._failure = error
        else:
            if answer[1][:3] != "101":  # a 101 comes through the socket
                self._answer = answer

    def _on_error(self, app: Flask, ws: Any, exception: BaseException, **extra: object) -> None:
        if ws.environ.get(_ENVIRON_KEY) is not self:
            return
        propagate = app.config["PROPAGATE_EXCEPTIONS"]
        if app.testing or app.debug if propagate is None else propagate:
            self._failure = exception

    def _read(self) -> None:
        try:
            head, end, rest = b"", b"", b""
            while not end:
                data = self._receive_some()
                if not data:  # the response is not a 101
                    return
                head, end, rest = (head + data).partition(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            headers = Headers()
            for line in lines:
                headers.add(*line.split(": ", 1))
            deflate = _make_deflate(headers.get("Sec-WebSocket-Extensions", ""))
            self._protocol = Protocol(is_client=True, max_message_size=_ANY_SIZE, deflate=deflate)
            with self._changed:
                self._answer = [], status.partition(" ")[2], headers
                self._changed.notify_all()
            self._take(rest)
            while data := self._receive_some():
                self._take(data)
        finally:
            with suppress(OSError):  # the app waits for this after it has shut down its half
                self._sock.shutdown(socket.SHUT_RDWR)
            with self._changed:
                self._protocol.receive_eof()
                self._is_input_over = True

    def _receive_some(self) -> bytes:
        """Return received bytes, or none at the end. While waiting, send what the socket had no room for."""
        while True:
            try:
                return self._sock.recv(READ_SIZE)
            except BlockingIOError:
                events = select.POLLIN
            except OSError:
                return b""
            with suppress(OSError):
                if not self._flush():
                    events |= select.POLLOUT
            self._poll(events, None)

    def _take(self, data: bytes) -> None:
        events = self._protocol.receive_data(data)
        with self._writing:
            self._outbox += self._protocol.replies()
        with suppress(OSError):
            self._flush()
        with self._changed:
            self._inbox.extend(event for event in events if isinstance(event, (str, bytes)))
            self._is_input_over = self._protocol.input_ended
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._inbox) < _MOST_WAITING or self._is_leaving)


def _make_deflate(extensions: str) -> Deflate | None:
    """Return the compression that the server has accepted, for a test that offers it in its headers."""
    for _, parameters in parse_extensions(extensions):
        values: dict[str, Any] = {name: True if value is None else int(value) for name, value in parameters}
        return Deflate(DeflateParameters(**values), is_client=True)
    return None
