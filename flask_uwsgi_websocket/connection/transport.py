"""The input and output of one WebSocket connection: its socket, protocol and buffers, in any mode.

What may have to wait is a coroutine, written once: the asyncio client offers them as they are, the blocking client
runs them over a loop that blocks instead of suspending (see ``loops.py``). Nothing here knows Flask.

Who may touch what: ``_read_lock`` is held around the socket's input and the receiving half of the protocol,
``_write_lock`` around the start, the output and the sending half. Who needs both takes the first before the second.
Nobody waits while holding one, so in a greenlet or a task they are always free, and threads hold them for
microseconds. Flags that are only ever set are read without a lock.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from random import uniform
from typing import TYPE_CHECKING, Literal, TypeVar

from ..exceptions import ConnectionClosed
from ..loops.base import Loop
from ..protocol.deflate import Deflate
from ..protocol.protocol import Ping, Pong, Protocol, payload_of
from ..protocol.speedups import COMPILED
from ..servers.base import Server
from ..settings import Settings
from ..worker.stats import Counts
from .channel import CORK_SIZE, READ_SIZE, RUN_LENGTH, WAIT, Wait
from .ratelimit import Meter

if TYPE_CHECKING:
    from _socket import socket as RawSocket

    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import WSGIEnvironment

if COMPILED:
    from ._channel import Channel, memory_of
else:
    from .channel import Channel, memory_of

#: The reason with which a connection ends after a failed write.
LOST = "the connection was lost"

#: How much of what a peer has left behind is searched for its good-bye, in one go: work as ``RUN_LENGTH`` counts it.
LAST_WORK = 4096

#: ``READ_SIZE`` where a few bytes may come to much.
SMALL_READ_SIZE = 4096

T = TypeVar("T", str, bytes)

#: Who ends a connection; "error" stands for a handler that raised and for a peer that broke the protocol.
Initiator = Literal["client", "server", "timeout", "error", "shutdown"]

# Without MSG_NOSIGNAL a vanished peer would end a process in which uWSGI has reset SIGPIPE.
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Connection(Channel):
    """What every client does with its socket. Applications use :class:`WebSocketClient` and its relatives.

    :param environ: the WSGI environ of the upgrade request.
    """

    #: Unique among all connections.
    id: str
    #: The WSGI environ of the upgrade request.
    environ: WSGIEnvironment
    #: The round trip of the last ping that was answered, in seconds, or None.
    latency: float | None
    #: Whether it was dropped because the peer read too slowly.
    was_slow = False

    # Before it is attached, a connection is as good as refused.
    _sock: RawSocket | None = None
    _settings = Settings()
    _protocol = Protocol()
    _accepted = False
    _refused = True
    _refusal = "the handshake was refused"
    _handshake_error: BaseException | None = None
    # The client has left or has got its answer: the server must not send another one.
    _is_answered = False

    def __init__(self, environ: WSGIEnvironment) -> None:
        super().__init__()
        self.id = uuid.uuid4().hex
        self.environ = environ
        self.latency = None

    def _attach(self, server: Server, loop: Loop, settings: Settings, deflate: Deflate | None) -> None:
        """Take the request's socket. Nothing is sent or received before :meth:`_start`."""
        self._server = server
        self._loop = loop
        self._settings = settings
        self._protocol = Protocol(
            max_message_size=settings.max_message_size, max_fragments=settings.max_fragments, deflate=deflate
        )
        self._refused = False
        self._is_receiving = False
        self._end_told = False
        self._run = 0
        self._received = self._bytes_received = 0
        self._sent = self._bytes_sent = 0
        self._started_at = 0.0
        self._initiator: Initiator | None = None  # set before the protocol's closed, if it was not the client
        self._inbox = deque()
        self._bytes_stored = self._bytes_taken = 0
        self._outbox = bytearray()
        self._lost = False  # a write failed: the peer is gone, though there may still be something to read
        self._eof = False
        self._drained = self._has_rest = False
        self._heard = False
        self._pinged: tuple[bytes, float] | None = None
        self._meter = None if settings.rate_limit is None else Meter(settings.rate_limit, time.monotonic())
        # A compressed message may be a thousandth of its size, and what is above a rate was still read.
        self._read_size = READ_SIZE if deflate is None and self._meter is None else SMALL_READ_SIZE
        self._max_message_size = min(settings.max_message_size, sys.maxsize)  # a size in C
        self._is_plain = deflate is None and not settings.text_as_bytes
        self._plain_input = self._plain_output = self._is_corked = self._is_over = False
        self._may_cork = loop.gives_way and settings.send_buffer >= 2 * CORK_SIZE
        self._sock = server.open()
        self._fd = self._sock.fileno()
        _send_at_once(self._sock)
        self._waiting = 0
        self._abandoned = None
        # What tick() watches, on the monotonic clock. Nothing is due before _due, which changes with the write lock.
        self._due = inf
        self._next_ping = inf
        self._silent_since: float | None = None  # a ping was sent, and nothing has been heard
        self._expires_at = inf
        self._close_deadline: float | None = None
        # When the peer last took output; since when its rate is measured, and from which count of bytes.
        self._stuck_since = 0.0
        self._slow_since = 0.0
        self._slow_from = 0
        # When a new message was last noticed, and a count that had grown with the messages by then.
        self._idle_since = 0.0
        self._idle_count = 0

    # What can be asked

    @property
    def fd(self) -> int:
        """The descriptor of the connection; -1 once it is closed."""
        sock = self._sock
        return -1 if sock is None else sock.fileno()

    @property
    def connected(self) -> bool:
        """Whether messages can be exchanged: the handshake was not refused and neither side has closed."""
        return not self._refused and self._protocol.closed is None

    @property
    def timeout(self) -> float | None:
        """The seconds between two pings, as it was in 0.6.1; None when there are none."""
        return self._settings.ping_interval

    @property
    def close_code(self) -> int | None:
        """The code of the Close frame that ended the connection, whoever sent it; None while it is open.

        1005: it came without a code; 1006: there was none (RFC 6455 section 7.1.5).
        """
        closed = self._protocol.closed
        return None if closed is None else closed.code

    @property
    def close_reason(self) -> str | None:
        """The reason that came with :attr:`close_code`."""
        closed = self._protocol.closed
        return None if closed is None else closed.reason

    def counts(self) -> Counts:
        """Return how many messages and bytes have come and gone so far."""
        return Counts(self._received, self._sent, self._bytes_received, self._bytes_sent)

    # The start

    def _start(self, response: bytes) -> None:
        """Send the 101 response, after which messages may flow.

        :raises ConnectionClosed: when the handshake has been refused.
        """
        with self._write_lock:
            if self._refused:
                raise self._refused_error()
            self._started_at = self._idle_since = now = time.monotonic()
            # Many connections may start at the same moment, as after a reload: spread what is due over time.
            if self._settings.ping_interval is not None:
                self._next_ping = now + self._settings.ping_interval * uniform(0.5, 1)
            if self._settings.max_lifetime is not None:
                self._expires_at = now + self._settings.max_lifetime * uniform(0.9, 1)
            self._due = self._next_due(now)
            self._accepted = self._is_answered = True
            self._plain_input = self._is_plain and self._meter is None
            self._plain_output = self._is_plain
            self._write(response)

    def _refuse(self) -> bool:
        """Give the request back to the server for an HTTP response; False when it is too late for that."""
        with self._write_lock:
            self._refused = not self._accepted
            return self._refused

    def _refuse_unasked(self, reason: str, error: BaseException, answer: bytes = b"") -> bool:
        """End TCP in place of a handshake that was not sent. Return False if it was sent or refused already.

        :param error: the exception that takes the place of the handler's answer.
        :param answer: the HTTP response for the client.
        """
        with self._write_lock:
            if self._accepted or self._refused or self._sock is None:
                return False
            self._refusal, self._handshake_error = reason, error
            self._refused = self._is_answered = True
            with suppress(OSError):  # also a full socket, whose client has not read what came before
                self._sock.send(answer, _SEND_FLAGS)
                self._sock.shutdown(socket.SHUT_RDWR)
            return True

    def _refused_error(self) -> ConnectionClosed:
        return ConnectionClosed(1006, self._refusal, connection=self)

    # Input

    async def _receive_message(self, timeout: float | None) -> str | bytes | None:
        """Wait for the next message; see :meth:`Lifecycle._receive`."""
        self._begin_receive()
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            remaining = timeout
            while (message := self._take()) is WAIT:
                if remaining is not None and remaining < 0:
                    raise TimeoutError(f"timed out: no message within {timeout} s")
                if self._is_on_a_run():
                    await self._loop.sleep(0)
                elif (fd := self._enter_wait()) >= 0:  # as _wait() does, whose coroutine costs time
                    try:
                        await self._loop.wait_readable(fd, remaining)
                    finally:
                        self._leave_wait()
                if deadline is not None:  # Pings alone could keep it readable for ever
                    remaining = deadline - time.monotonic()
            return message
        finally:
            self._is_receiving = False

    def _take_slowly(self) -> str | bytes | Wait | None:
        """Return the next message, None once at the end, or ``WAIT`` when the caller has to wait first.

        :raises ConnectionClosed: the second time at the end.
        """
        if self._run >= RUN_LENGTH:
            return WAIT
        message = self._next()
        if message is None:
            return None if self._ended() else WAIT
        self._run += 2 + len(message) // 512
        self._received += 1
        return message

    async def _wait(self, ready: Callable[[int, float | None], Awaitable[bool]], timeout: float | None) -> bool:
        """Wait with one of the loop's coroutines, if there is still something to wait for."""
        fd = self._enter_wait()
        if fd < 0:
            return True
        try:
            return await ready(fd, timeout)
        finally:
            self._leave_wait()

    def _receive_now(self) -> str | bytes | None:
        """Return a message that is here already, or None; see :meth:`Lifecycle.recv_nb`."""
        self._begin_receive()
        try:
            self._drained = False
            message = self._next()
            # None sends some callers to wait for the descriptor, which is to end that if something is left here.
            while message is None and self._has_rest and self.connected and not self._is_readable():
                message = self._next()
            if message is not None:
                self._received += 1
            elif self._protocol.closed is not None:
                raise self._end_error()
            return message
        finally:
            self._is_receiving = False

    def _next(self) -> str | bytes | None:
        """Return the next message that is here; None when there is none yet, or when no more will come."""
        if not self._inbox:
            self._pump()  # also when it has closed: another thread may be about to put the last messages there
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._bytes_taken += memory_of(message)
        return message

    def _give_back(self, message: str | bytes) -> None:
        """Put back a message that was not delivered, as the next one. Called by the caller in receive()."""
        self._bytes_taken -= memory_of(message)
        self._inbox.appendleft(message)
        self._received -= 1

    def _ended(self) -> bool:
        """Tell whether no more messages will come, once; then raise.

        :raises ConnectionClosed: the second time.
        """
        if self._protocol.closed is None:
            return False
        if self._end_told:
            raise self._end_error()
        self._end_told = True
        return True

    def _end_error(self) -> ConnectionClosed:
        """Return what a call raises on a connection that has closed."""
        assert self._protocol.closed is not None
        return ConnectionClosed(*self._protocol.closed, connection=self)

    def _pump(self, *, ahead: bool = False) -> bool:
        """Act on some of what has arrived, for at most the length of a run. Return False if nothing has.

        What was read is parsed before more is read.

        :param ahead: leave it to the one in receive(), who would go on waiting for what is in the inbox by then.
        """
        with self._read_lock:
            sock = self._sock
            if sock is None or self._eof or (ahead and self._is_receiving):
                return False
            if self._has_rest:
                self._process(b"")
                return True
            if self._drained and not ahead:  # the system would only say so again
                return False
            try:
                data = sock.recv(self._read_size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self._meter is not None:
                    self._meter.spend(time.monotonic(), 0, 0, 0, is_behind=False)
                return False
            except OSError:  # a reset is an end, too
                data = b""
            if data:
                self._heard = True
                self._bytes_received += len(data)
                self._drained = len(data) < self._read_size
                self._process(data)
            else:
                self._end_input()
        return True

    def _end_input(self, reason: str = "the connection was lost without a Close frame") -> None:
        """Note that nothing more will come, and why. Called with the read lock."""
        self._is_over = self._eof = True
        self._has_rest = False
        self._protocol.receive_eof(reason)

    def _process(self, data: bytes) -> None:
        """Act on some of what was read: on *data*, or on what is left of it. Called with the read lock."""
        protocol = self._protocol
        as_bytes = self._settings.text_as_bytes
        replies = False
        events = protocol.receive_some(data, RUN_LENGTH // 2)
        self._has_rest = protocol.has_input
        self._run = min(self._run + 2 * protocol.work, RUN_LENGTH)
        for event in events:
            if isinstance(event, (str, bytes)):
                message = event.encode() if as_bytes and isinstance(event, str) else event
                self._bytes_stored += memory_of(message)
                self._inbox.append(message)
            elif isinstance(event, Pong):
                self._on_pong(event.payload)
            elif isinstance(event, Ping):
                replies = True
        self._plain_input = self._is_plain and self._meter is None and protocol.is_between_messages
        if replies or protocol.input_ended:
            self._reply()
        if self._meter is not None and not self._meter.spend(
            time.monotonic(),
            len(events),
            protocol.frames,
            len(data) + max(0, protocol.gained),
            is_behind=self._has_rest or not self._drained,
        ):
            self._begin_close(1008, "more was sent than the rate limit allows")

    def _on_pong(self, payload: bytes) -> None:
        pinged = self._pinged
        if pinged is not None and payload == pinged[0]:
            self.latency = time.monotonic() - pinged[1]
            self._pinged = None

    def _reply(self) -> None:
        protocol = self._protocol
        with self._write_lock:
            ending = protocol.input_ended
            replies = protocol.replies()
            # A peer that reads nothing gets no more Pongs than it has room for (RFC 6455 section 5.5.3 allows
            # to answer only the last of many Pings), so that it cannot make the output grow.
            if replies and (ending or not self._full()):
                self._write(replies)
            if ending:
                self._is_over = True
                self._set_close_deadline()
                self._shut_down_if_done()

    # Output

    async def _send_when_possible(
        self, message: str | ReadableBuffer, binary: bool | None, timeout: float | None
    ) -> None:
        """Send a message once the output is not full any more; see :meth:`Lifecycle._send`."""
        began = time.monotonic()
        while not self._put(message, binary):
            # Without a timeout of its own it waits for as long as the peer reads something now and then.
            since, most = (self._stuck_since, self._settings.send_timeout) if timeout is None else (began, timeout)
            if await self._wait(self._loop.wait_writable, since + most - time.monotonic()):
                self._flush()
            elif timeout is not None:
                self._drop_slow(f"the peer has not read enough within {timeout} s")
            elif since == self._stuck_since:
                self._drop_slow(f"the peer has read nothing for {most} s")

    def _write(self, data: bytes) -> None:
        """Send *data*, or keep what the socket does not take. Called with the write lock."""
        sock = self._sock
        if sock is None or self._lost:
            return
        if self._is_corked:
            self._is_corked = False
            data = bytes(self._outbox + data)
            self._outbox.clear()
        sent = 0
        if not self._outbox:
            try:
                sent = sock.send(data, _SEND_FLAGS)
                self._bytes_sent += sent
            except BlockingIOError:
                pass  # the socket is full
            except OSError:
                self._lose()
                return
            if sent == len(data):
                return
        self._keep(memoryview(data)[sent:])

    def _keep(self, rest: bytes | memoryview) -> None:
        """Keep what the socket has not taken until it does. Called with the write lock."""
        assert self._sock is not None
        if not self._outbox:
            self._plain_output = False
            self._stuck_since = self._slow_since = time.monotonic()
            self._slow_from = self._bytes_sent
            self._loop.call_when_writable(self._sock.fileno(), self._flush)
        self._outbox += rest

    def _cork(self) -> None:
        """Have what is held back sent soon: at the latest when the handler gives way to the loop."""
        self._stuck_since = self._slow_since = time.monotonic()
        self._slow_from = self._bytes_sent
        self._loop.call_when_writable(self._fd, self._flush)

    def _flush(self) -> bool:
        """Send what is kept; return whether there is more. Called by the loop when the socket takes some."""
        with self._write_lock:
            return self._flush_now()

    def _flush_now(self) -> bool:
        """Do the work of :meth:`_flush`, with the write lock."""
        self._is_corked = False
        sock = self._sock
        if sock is None:
            return False
        try:
            while self._outbox:
                with memoryview(self._outbox) as view:
                    sent = sock.send(view[:READ_SIZE], _SEND_FLAGS)
                self._bytes_sent += sent
                del self._outbox[:sent]
                self._stuck_since = time.monotonic()
        except BlockingIOError:
            return True
        except OSError:
            self._lose()
        self._plain_output = self._is_plain
        self._shut_down_if_done()
        return False

    def _lose(self) -> None:
        """Note that the peer is gone, and wake whoever waits for it. Called with the write lock."""
        self._lost = self._is_over = True
        self._outbox.clear()
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _full(self) -> bool:
        """Tell whether a sender has to wait for the peer to read."""
        return len(self._outbox) > self._settings.send_buffer

    def _put_slowly(self, message: str | ReadableBuffer, binary: bool | None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full.

        :raises ConnectionClosed: when it cannot be sent any more.
        """
        try:
            payload = payload_of(message)
        except TypeError:
            if self._protocol.closed is not None:  # it may be the None that receive() has returned for that reason
                raise self._end_error() from None
            raise
        if isinstance(payload, str):
            payload = payload.encode() if binary else payload
        elif binary is False or (binary is None and self._settings.text_as_bytes):
            payload = payload.decode()
        if isinstance(payload, str):
            return self._write_message(self._protocol.send_text, payload)
        return self._write_message(self._protocol.send_binary, payload)

    def _put_frame_slowly(self, whole: bytes) -> bool:
        return self._write_message(self._protocol.send_frame, whole)

    def _write_message(self, make_frame: Callable[[T], bytes], payload: T) -> bool:
        with self._write_lock:
            if not self._lost:
                if self._protocol.closed is not None:
                    raise self._end_error()
                if self._full():
                    return False
                self._write(make_frame(payload))
                if not self._lost:
                    self._sent += 1
                    self._run += 2
                    return True
        raise self._closed_error()

    def _closed_error(self) -> ConnectionClosed:
        """Find out, after a failed write, whether the peer had said good-bye."""
        self._drained = False
        work = 0
        while (may_go_on := self._has_room() and work < LAST_WORK) and self._pump():
            self._drained = False
            work += 2 * self._protocol.work
        if not may_go_on:
            self._abort(LOST)
        return ConnectionClosed(*(self._protocol.closed or (1006, LOST)), connection=self)

    def _ping_now(self) -> None:
        """Send a Ping.

        :raises ConnectionClosed: when the connection has closed.
        """
        with self._write_lock:
            if not self._lost:
                if self._protocol.closed is not None:
                    raise self._end_error()
                self._send_ping(time.monotonic())
        if self._lost:
            raise self._closed_error()

    def _send_ping(self, now: float) -> None:
        payload = struct.pack("!d", now)
        self._pinged = payload, now
        if self._silent_since is None:
            self._silent_since = now
            self._heard = False
        self._due = min(self._due, self._next_due(now))
        self._write(self._protocol.send_ping(payload))

    # The end

    async def _finish_close(self) -> None:
        """Wait for the end of the closing handshake that :meth:`_begin_close` has begun."""
        while not self._done():
            assert self._close_deadline is not None
            remaining = self._close_deadline - time.monotonic()
            # To wait also when there is something to read keeps a peer that does not stop from holding up the others.
            if remaining > 0 and self._has_rest:
                await self._loop.sleep(0)
                self._pump()
            elif remaining > 0 and await self._wait(self._loop.wait_readable, remaining):
                self._pump()
            else:
                self._abort("the closing handshake took too long")

    def _begin_close(self, code: int, reason: str, initiator: Initiator = "server") -> None:
        """Send a Close frame, unless that was done. Harmless when the connection has ended."""
        with self._write_lock:
            self._is_over = True
            if self._protocol.closed is None:
                self._initiator = initiator
                self._write(self._protocol.send_close(code, reason))
            self._set_close_deadline()
            self._shut_down_if_done()

    def _who_ended(self) -> Initiator:
        """Tell who has ended the connection."""
        closed = self._protocol.closed
        if self._initiator is None and self._protocol.close_received is None and closed and closed.code != 1006:
            return "error"  # the peer has broken the protocol
        return self._initiator or "client"

    def _set_close_deadline(self) -> None:
        if self._close_deadline is None:
            self._close_deadline = time.monotonic() + self._settings.close_timeout
            self._due = min(self._due, self._close_deadline)

    def _done(self) -> bool:
        """Tell whether the closing handshake is over (RFC 6455 section 7.1.4), or will never be."""
        protocol = self._protocol
        return (
            self._eof
            or self._sock is None
            or (protocol.close_received is not None and protocol.close_sent is not None and not self._outbox)
        )

    def _shut_down_if_done(self) -> None:
        """End TCP once nothing more is to be said, which wakes whoever waits. Called with the write lock."""
        protocol = self._protocol
        if self._outbox or protocol.close_sent is None or self._sock is None:
            return
        with suppress(OSError):
            if protocol.close_received is not None:
                self._sock.shutdown(socket.SHUT_RDWR)
            elif protocol.input_ended:
                # The connection failed. To close with input unread would reset it and could take the Close
                # frame with it, so only this half ends now; the peer has until the deadline to end the other.
                self._sock.shutdown(socket.SHUT_WR)

    def _abort(self, reason: str) -> None:
        """Drop the connection, at once and without a closing handshake."""
        with self._read_lock, self._write_lock:
            if not self._eof:  # first the reason, then the news that there is one
                if self._protocol.closed is None:
                    self._initiator = "client" if self._lost else "timeout"
                self._end_input(reason)
            if self._sock is not None:
                # Nobody reads what the kernel still holds: let it go with the descriptor.
                with suppress(OSError):
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._lose()

    def _drop_slow(self, reason: str) -> None:
        self.was_slow = True
        self._abort(reason)

    def _detach(self) -> None:
        """Give everything back: to the loop, to the operating system, to the server."""
        with self._read_lock, self._write_lock:
            sock, self._sock = self._sock, None
            self._fd, self._is_over = -1, True
            if sock is None:
                return
            if self._accepted:
                self._protocol.receive_eof()
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits
            self._loop.forget(sock.fileno())
            self._abandoned = sock
            if not self._waiting:
                sock.close()
        # uWSGI uses it again, for another request. The client in it would keep itself alive.
        self.environ = {key: value for key, value in self.environ.items() if value is not self}
        if self._is_answered:
            self._server.release()

    # Looking after

    def tick(self, *, read_ahead: bool = True) -> None:
        """Do what is due, without waiting. Called by the housekeeper about once a second.

        :param read_ahead: whether there is time to read for a handler that is not receiving.
        """
        if not self._accepted or self._sock is None or self._eof:
            return
        now = time.monotonic()
        if self._is_receiving and not self._outbox and now < self._due:
            return  # as most connections are most of the time
        if not self._is_receiving:
            if read_ahead:
                self._read_ahead()
            if not self._has_room():
                if self._lost:
                    self._abort(LOST)  # the rest of what the peer has sent does not fit
                    return
                if self._meter is not None:
                    with self._read_lock:
                        self._meter.fall_behind()
        if self._close_deadline is None:
            self._watch(now)
        elif now >= self._close_deadline and not self._done():
            self._abort("the closing handshake took too long")
        with self._write_lock:
            if now >= self._due:  # else each look would put off the next look for idleness
                self._due = self._next_due(now)

    def _watch(self, now: float) -> None:
        """Do what is due while the connection is open: drop it, close it, or ping the peer."""
        settings = self._settings
        if self._outbox and (reason := self._find_slow(now)):
            self._drop_slow(reason)
        elif now < self._due:
            return
        elif self._is_silent(now):
            self._abort(f"no answer to a ping for {settings.ping_timeout} s")
        elif now >= self._expires_at:
            self._begin_close(1012, "the connection has lasted long enough: connect again", "timeout")
        elif self._is_idle(now):
            self._begin_close(1001, f"no message for {settings.idle_timeout} s", "timeout")
        elif now >= self._next_ping:
            self._next_ping = now + (settings.ping_interval or 0.0)
            with self._write_lock, suppress(ConnectionClosed):
                if not self._outbox:
                    self._send_ping(now)

    def _next_due(self, now: float) -> float:
        """Return the time at which something is due, if nothing happens before."""
        if self._close_deadline is not None:
            return self._close_deadline if now < self._close_deadline else inf
        due = min(self._next_ping, self._expires_at)
        settings = self._settings
        if self._silent_since is not None and settings.ping_timeout is not None:
            due = min(due, self._silent_since + settings.ping_timeout)
        if settings.idle_timeout is not None:
            due = min(due, now + settings.idle_timeout / 10)
        return due

    def _read_ahead(self) -> None:
        """Read for a handler that is not receiving: Pings want answers, and the end wants to be noticed."""
        for _ in range(16):  # a flood must not hold up the other connections
            if not self._has_room() or not self._pump(ahead=True):
                return

    def _find_slow(self, now: float) -> str | None:
        """Return why the peer reads too slowly, or None when it does not."""
        self._flush()  # the system reports room only when there is much of it
        settings = self._settings
        if not self._outbox:
            return None
        if now - self._stuck_since > settings.send_timeout:
            return f"the peer has read nothing for {settings.send_timeout} s"
        elapsed = now - self._slow_since
        if elapsed > settings.send_timeout:
            if self._bytes_sent - self._slow_from < settings.min_read_rate * elapsed:
                return f"the peer has read less than {settings.min_read_rate} bytes/s for {settings.send_timeout} s"
            self._slow_since, self._slow_from = now, self._bytes_sent
        return None

    def _is_silent(self, now: float) -> bool:
        """Return whether a ping has gone unanswered for longer than ``ping_timeout``. Any input is an answer."""
        if self._silent_since is None:
            return False
        if self._heard or not self._has_room():  # unread input may hold the Pong
            self._silent_since = None
            return False
        timeout = self._settings.ping_timeout
        # What has arrived may be the Pong: what was late is this worker.
        return timeout is not None and now - self._silent_since > timeout and not self._has_input()

    def _is_idle(self, now: float) -> bool:
        """Return whether no message has come or gone for ``idle_timeout``."""
        count = self._bytes_stored + self._received + self._sent  # also of messages that wait for a busy handler
        if count != self._idle_count:
            self._idle_count, self._idle_since = count, now
        timeout = self._settings.idle_timeout
        return timeout is not None and now - self._idle_since >= timeout

    def _has_left(self) -> bool:
        """Return whether the client has closed its side, and has sent nothing before."""
        with self._read_lock:
            sock = self._sock
            try:
                return sock is not None and not sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:  # a reset
                return True

    def _has_input(self) -> bool:
        """Tell whether something has arrived that nobody has read yet."""
        return self._has_rest or self._is_readable()

    def _is_readable(self) -> bool:
        with self._read_lock:
            sock = self._sock
            try:
                return sock is not None and bool(sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
            except OSError:
                return False

    def _has_room(self) -> bool:
        """Return whether the messages that nobody has received yet leave room for more."""
        settings = self._settings
        size = self._bytes_stored - self._bytes_taken
        return size <= settings.max_message_size and len(self._inbox) < settings.max_queue


def _send_at_once(sock: RawSocket) -> None:
    """Turn Nagle's algorithm off: the second of two small messages would wait for the peer's delayed ACK, 40 ms.

    Output is gathered before it is sent, so nothing is gained by having the system wait.
    """
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):  # the client has left
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
