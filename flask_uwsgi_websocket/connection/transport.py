"""The transport of one WebSocket connection: its socket, protocol and buffers, in any mode.

Every method that may have to wait is a coroutine, written once. The asyncio client awaits it. The blocking client runs
it over a loop that blocks instead of suspending (see ``loops/``). Nothing here knows Flask.

Who may touch what: ``read_lock`` guards the socket's input and the receiving half of the protocol, ``write_lock`` the
start, the output and the sending half. Code that needs both takes the read lock first. Nobody waits while holding one
of them: in a greenlet or a task they are always free, and threads hold them for microseconds. Flags that are never
reset are read without a lock.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar
from typing import Protocol as StructuralType

from ..exceptions import ConnectionClosed
from ..loops.base import Loop
from ..protocol.deflate import Deflate
from ..protocol.protocol import ABNORMAL_CLOSURE, POLICY_VIOLATION, Close, Ping, Pong, Protocol, payload_of
from ..protocol.speedups import COMPILED
from ..settings import Settings
from .channel import CORK_SIZE, NO_MESSAGES, READ_SIZE, RUN_LENGTH, WAIT, Wait
from .heartbeat import Heartbeat
from .lifespan import Lifespan
from .pace import Pace
from .ratelimit import Meter

if TYPE_CHECKING:
    from _socket import socket as RawSocket

    from _typeshed import ReadableBuffer


if COMPILED:
    from ._channel import Channel, find_due, memory_of, put_frame_to_all
else:
    from .channel import Channel, find_due, memory_of, put_frame_to_all


__all__ = ["Answered", "Initiator", "Owner", "Transport", "put_frame_to_all"]


class Answered(NamedTuple):
    """An event: the peer has answered a ping.

    :param latency: the round trip in seconds.
    """

    latency: float


class Owner(StructuralType):
    """The part of a client that its transport knows."""

    def on_event(self, event: Answered) -> None:
        """Take an event. Called without a lock, by the caller of receive() or beside the housekeeper."""


#: The reason with which a connection ends after a failed write.
LOST = "the connection was lost"

#: The most input that is searched for a Close frame after a failed write, in work as ``RUN_LENGTH`` counts it.
LAST_WORK = 4096

#: Read size for input that may inflate or is rate-limited.
SMALL_READ_SIZE = 4096

T = TypeVar("T", str, bytes)

C = TypeVar("C")

#: Who ends a connection; "error" stands for a handler that raised and for a peer that broke the protocol.
Initiator = Literal["client", "server", "timeout", "error", "shutdown"]

# Without MSG_NOSIGNAL a vanished peer would end a process in which uWSGI has reset SIGPIPE.
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Transport(Channel):
    """What one connection does with its socket. It knows neither Flask nor the application.

    :param sock: a duplicate of the request's socket, which is closed by :meth:`detach`; None for a request that was
        refused.
    :param release: called at the end, if the server must send no response of its own.
    :param loop: how the connection waits.
    :param deflate: permessage-deflate as it was negotiated, or None.
    """

    #: The round trip of the last ping that was answered, in seconds, or None.
    latency: float | None = None
    #: Whether the connection was dropped because the peer read too slowly.
    was_slow = False
    #: Whether the handshake will never be sent. With the write lock.
    refused = False
    #: Why the handshake was refused, and the exception that takes the place of the handler's answer.
    refusal = "the handshake was refused"
    handshake_error: BaseException | None = None
    #: Whether the client has left or has got its answer: the server must not send another one.
    is_answered = False
    #: When the handshake was sent, on the monotonic clock.
    started_at = 0.0

    def __init__(
        self,
        sock: RawSocket | None,
        release: Callable[[], None],
        loop: Loop,
        settings: Settings,
        deflate: Deflate | None = None,
    ) -> None:
        super().__init__()
        self._sock = sock
        self._release = release
        self.loop = loop
        self.settings = settings
        self.protocol = Protocol(
            max_message_size=settings.max_message_size, max_fragments=settings.max_fragments, deflate=deflate
        )
        #: The client that has this transport: exceptions name it, and it gets the events. A weak reference, because the
        #: client refers to the transport.
        self.owner: Callable[[], Owner | None] = lambda: None
        self.is_receiving = self.has_events = False
        self._end_told = False
        self.work = 0
        self.messages_received = self.bytes_received = 0
        self.messages_sent = self.bytes_sent = 0
        self._initiator: Initiator | None = None  # set before the protocol's closed, if it was not the client
        self.inbox = NO_MESSAGES
        self.bytes_stored = self.bytes_taken = 0
        self.outbox = bytearray()
        self._events: list[Answered] = []  # one for each ping of ours at most
        self._lost = False  # a write failed: the peer is gone, though there may still be something to read
        self._is_shut_down = False  # TCP has ended in both directions, which has woken all waiters
        self._eof = False
        self.drained = self.has_rest = False
        self.heard = False
        self._pinged: tuple[bytes, float] | None = None
        self._meter = None if settings.rate_limit is None else Meter(settings.rate_limit, time.monotonic())
        # A compressed message may inflate a thousandfold, and input above a rate limit was still read.
        self.read_size = READ_SIZE if deflate is None and self._meter is None else SMALL_READ_SIZE
        self.max_message_size = min(settings.max_message_size, sys.maxsize)  # a size in C
        self._is_plain = deflate is None and not settings.text_as_bytes
        self.accepted = self.plain_input = self.plain_output = self.is_corked = self.is_over = False
        self.may_cork = loop.gives_way and settings.send_buffer >= 2 * CORK_SIZE
        self.waiting = 0
        self.reader = self.abandoned = None
        # What tick() watches, on the monotonic clock.
        self.due = inf
        self._close_deadline: float | None = None
        self._pace = Pace(settings.send_timeout, settings.min_read_rate)
        self._heartbeat = Heartbeat(settings.ping_interval, settings.ping_timeout)
        self._lifespan = Lifespan(settings.max_lifetime, settings.idle_timeout)
        if sock is None:
            self.refused = True
        else:
            self.fd = sock.fileno()
            _send_at_once(sock)

    # What can be asked

    @property
    def is_open(self) -> bool:
        """Whether messages can be exchanged: the handshake was not refused and neither side has closed."""
        return not self.refused and self.protocol.closed is None

    # The start

    def start(self, response: bytes) -> None:
        """Send the 101 response, after which messages may flow.

        :raises ConnectionClosed: when the handshake has been refused.
        """
        with self.write_lock:
            if self.refused:
                raise self.refused_error()
            self.started_at = now = time.monotonic()
            self._heartbeat.start(now)
            self._lifespan.start(now)
            self.due = self._next_due(now)
            self.accepted = self.is_answered = True
            self.plain_input = self._is_plain and self._meter is None
            self.plain_output = self._is_plain
            self._write(response)

    def refuse(self) -> bool:
        """Give the request back to the server for an HTTP response; False when it is too late for that."""
        with self.write_lock:
            self.refused = not self.accepted
            return self.refused

    def refuse_unasked(self, reason: str, error: BaseException, answer: bytes = b"") -> bool:
        """End TCP instead of sending the handshake. Return False if the handshake was sent or refused already.

        :param error: the exception that takes the place of the handler's answer.
        :param answer: the HTTP response for the client.
        """
        with self.write_lock:
            if self.accepted or self.refused or self._sock is None:
                return False
            self.refusal, self.handshake_error = reason, error
            self.refused = self.is_answered = True
            with suppress(OSError):  # also a full socket, whose client has not read what came before
                self._sock.send(answer, _SEND_FLAGS)
                self._sock.shutdown(socket.SHUT_RDWR)
            return True

    def refused_error(self) -> ConnectionClosed:
        return ConnectionClosed(ABNORMAL_CLOSURE, self.refusal, connection=self.owner())

    # Input

    async def receive(self, timeout: float | None) -> str | bytes | None:
        """Wait for the next message; see :meth:`BaseClient._receive`."""
        self.begin_receive()
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            remaining = timeout
            while (message := self.take()) is WAIT:
                if remaining is not None and remaining < 0:
                    raise TimeoutError(f"timed out: no message within {timeout} s")
                if self.has_events:
                    self.deliver()
                elif self.is_on_a_run():
                    await self.loop.sleep(0)
                elif (fd := self.enter_wait()) >= 0:  # as _wait() does, whose coroutine costs time
                    try:
                        await self.loop.wait_readable(fd, remaining)
                    finally:
                        self.leave_wait()
                if deadline is not None:  # Pings alone could keep it readable for ever
                    remaining = deadline - time.monotonic()
            return message
        finally:
            self.is_receiving = False

    def take_slowly(self) -> str | bytes | Wait | None:
        """Return the next message, None once at the end, or ``WAIT`` when the caller has to wait first.

        :raises ConnectionClosed: the second time at the end.
        """
        if self.work >= RUN_LENGTH:
            return WAIT
        message = self._next()
        if message is None:
            return None if self._ended() else WAIT
        self.work += 2 + len(message) // 512
        self.messages_received += 1
        return message

    async def _wait(self, ready: Callable[[int, float | None], Awaitable[bool]], timeout: float | None) -> bool:
        """Wait with one of the loop's coroutines, if there is still something to wait for."""
        fd = self.enter_wait()
        if fd < 0:
            return True
        try:
            return await ready(fd, timeout)
        finally:
            self.leave_wait()

    def receive_now(self) -> str | bytes | None:
        """Return a message that is here already, or None; see :meth:`BaseClient.recv_nb`."""
        self.begin_receive()
        try:
            self.drained = False
            message = self._next()
            # None sends some callers to wait for the descriptor, which is to end that if something is left here.
            while message is None and self.has_rest and self.is_open and not self._is_readable():
                message = self._next()
            if message is not None:
                self.messages_received += 1
            elif self.protocol.closed is not None:
                raise self.end_error()
            return message
        finally:
            self.is_receiving = False

    def _next(self) -> str | bytes | None:
        """Return the next message that is here; None when there is none yet, or when no more will come."""
        if not self.inbox:
            self.pump()  # also when it has closed: another thread may be about to put the last messages there
        if not self.inbox:
            return None
        message = self.inbox.popleft()
        self.bytes_taken += memory_of(message)
        return message

    def has_message(self) -> bool:
        """Return whether a message is here that the caller of receive() has not taken yet. It does not wait."""
        if not self.inbox:
            self.pump(ahead=True)
        return bool(self.inbox)

    def give_back(self, message: str | bytes) -> None:
        """Put back a message that was not delivered, as the next one. Called by the caller in receive()."""
        self.bytes_taken -= memory_of(message)
        if self.inbox is NO_MESSAGES:
            self.inbox = deque()
        self.inbox.appendleft(message)
        self.messages_received -= 1

    def _ended(self) -> bool:
        """Return whether no more messages will come. The second time, raise instead.

        :raises ConnectionClosed: the second time.
        """
        if self.protocol.closed is None:
            return False
        if self._end_told:
            raise self.end_error()
        self._end_told = True
        return True

    def end_error(self) -> ConnectionClosed:
        """Return what a call raises on a connection that has closed."""
        assert self.protocol.closed is not None
        return ConnectionClosed(*self.protocol.closed, connection=self.owner())

    def pump(self, *, ahead: bool = False) -> bool:
        """Parse some of the input, for at most the length of a run. Return False if there is none.

        All that was read is parsed before more is read.

        :param ahead: do nothing while somebody is in receive(), who would go on waiting for a message that is in the
            inbox by then.
        """
        with self.read_lock:
            sock = self._sock
            if sock is None or self._eof or (ahead and self.is_receiving):
                return False
            if self.has_rest:
                self.process(b"")
                return True
            if self.drained and not ahead:  # the system would only say so again
                return False
            try:
                data = sock.recv(self.read_size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self._meter is not None:
                    self._meter.spend(time.monotonic(), 0, 0, 0, is_behind=False)
                return False
            except OSError:  # a reset is an end, too
                data = b""
            if data:
                self.heard = True
                self.bytes_received += len(data)
                self.drained = len(data) < self.read_size
                self.process(data)
            else:
                self._end_input()
        return True

    def _end_input(self, reason: str = "the connection was lost without a Close frame") -> None:
        """Note that no more input will come, and why. Called with the read lock."""
        self.is_over = self._eof = True
        self.has_rest = False
        self.protocol.receive_eof(reason)

    def process(self, data: bytes) -> None:
        """Parse some input: *data*, or the rest of an earlier call. Called with the read lock."""
        protocol = self.protocol
        as_bytes = self.settings.text_as_bytes
        replies = False
        events = protocol.receive_some(data, RUN_LENGTH // 2)
        self.has_rest = protocol.has_input
        self.work = min(self.work + 2 * protocol.work, RUN_LENGTH)
        for event in events:
            if isinstance(event, (str, bytes)):
                message = event.encode() if as_bytes and isinstance(event, str) else event
                self.bytes_stored += memory_of(message)
                if self.inbox is NO_MESSAGES:
                    self.inbox = deque()
                self.inbox.append(message)
            elif isinstance(event, Pong):
                self._on_pong(event.payload)
            elif isinstance(event, Ping):
                replies = True
        self.plain_input = self._is_plain and self._meter is None and protocol.is_between_messages
        if replies or protocol.input_ended:
            self._reply()
        if self._meter is not None and not self._meter.spend(
            time.monotonic(),
            len(events),
            protocol.frames,
            len(data) + max(0, protocol.gained),
            is_behind=self.has_rest or not self.drained,
        ):
            self.begin_close(POLICY_VIOLATION, "more was sent than the rate limit allows")

    def _on_pong(self, payload: bytes) -> None:
        pinged = self._pinged
        if pinged is not None and payload == pinged[0]:
            self.latency = time.monotonic() - pinged[1]
            self._pinged = None
            self._events.append(Answered(self.latency))
            self.has_events = True

    def deliver(self) -> None:
        """Hand the events that wait to the owner. Called without a lock, by the one in receive() or the housekeeper."""
        self.has_events = False
        owner = self.owner()
        while self._events and owner is not None:
            with suppress(IndexError):  # the other one was faster
                owner.on_event(self._events.pop(0))

    def _reply(self) -> None:
        protocol = self.protocol
        with self.write_lock:
            ending = protocol.input_ended
            replies = protocol.replies()
            # A peer that reads nothing gets no more Pongs than it has room for (RFC 6455 section 5.5.3 allows
            # to answer only the last of many Pings), so that it cannot make the output grow.
            if replies and (ending or not self._full()):
                self._write(replies)
            if ending:
                self.is_over = True
                self._set_close_deadline()
                self._shut_down_if_done()

    # Output

    async def send_when_possible(
        self, message: str | ReadableBuffer, binary: bool | None, timeout: float | None
    ) -> None:
        """Send a message once the output is not full any more; see :meth:`BaseClient._send`."""
        began = time.monotonic()
        while not self.put(message, binary):
            # Without a timeout of its own it waits for as long as the peer reads something now and then.
            since, most = (self._pace.stuck_since, self.settings.send_timeout) if timeout is None else (began, timeout)
            if await self._wait(self.loop.wait_writable, since + most - time.monotonic()):
                self.flush()
            elif timeout is not None:
                self._drop_slow(f"the peer has not read enough within {timeout} s")
            elif since == self._pace.stuck_since:
                self._drop_slow(f"the peer has read nothing for {most} s")

    def _write(self, data: bytes) -> None:
        """Send *data*, or keep what the socket does not take. Called with the write lock."""
        sock = self._sock
        if sock is None or self._lost:
            return
        if self.is_corked:
            self.is_corked, self.plain_output = False, self._is_plain
            data = bytes(self.outbox + data)
            self.outbox.clear()
        sent = 0
        if not self.outbox:
            try:
                sent = sock.send(data, _SEND_FLAGS)
                self.bytes_sent += sent
            except BlockingIOError:
                pass  # the socket is full
            except OSError:
                self.lose()
                return
            if sent == len(data):
                return
        self.keep(memoryview(data)[sent:])

    def keep(self, rest: bytes | memoryview) -> None:
        """Keep what the socket has not taken until it does. Called with the write lock."""
        assert self._sock is not None
        if not self.outbox:
            self.plain_output = False
            self._pace.begin(time.monotonic(), self.bytes_sent)
            self.loop.call_when_writable(self._sock.fileno(), self.flush)
        self.outbox += rest

    def cork(self) -> None:
        """Send the output that is held back soon: at the latest when the handler gives way to the loop."""
        self.loop.call_when_writable(self.fd, self.flush_if_kept)

    def flush(self) -> bool:
        """Send what is kept; return whether there is more. Called by the loop when the socket takes some."""
        with self.write_lock:
            return self.flush_now()

    def flush_now(self) -> bool:
        """Do the work of :meth:`flush`, with the write lock."""
        was_corked, self.is_corked = self.is_corked, False
        sock = self._sock
        if sock is None:
            return False
        try:
            while self.outbox:
                with memoryview(self.outbox) as view:
                    sent = sock.send(view[:READ_SIZE], _SEND_FLAGS)
                self.bytes_sent += sent
                del self.outbox[:sent]
                self._pace.stuck_since = time.monotonic()
        except BlockingIOError:
            if was_corked:  # from now on the output waits for the peer
                self._pace.begin(time.monotonic(), self.bytes_sent)
            return True
        except OSError:
            self.lose()
        self.plain_output = self._is_plain
        self._shut_down_if_done()
        return False

    def lose(self) -> None:
        """Note that the peer is gone, and wake all waiters. Called with the write lock."""
        self._lost = self.is_over = True
        self.outbox.clear()
        self._shut_down()

    def _shut_down(self) -> None:
        """End TCP in both directions, which wakes all waiters. Called with the write lock."""
        if self._sock is not None and not self._is_shut_down:
            self._is_shut_down = True
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _full(self) -> bool:
        """Return whether a sender has to wait for the peer to read."""
        return len(self.outbox) > self.settings.send_buffer

    def put_slowly(self, message: str | ReadableBuffer, binary: bool | None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full.

        :raises ConnectionClosed: when it cannot be sent any more.
        """
        try:
            payload = payload_of(message)
        except TypeError:
            if self.protocol.closed is not None:  # it may be the None that receive() has returned for that reason
                raise self.end_error() from None
            raise
        if isinstance(payload, str):
            payload = payload.encode() if binary else payload
        elif binary is False or (binary is None and self.settings.text_as_bytes):
            payload = payload.decode()
        if isinstance(payload, str):
            return self._write_message(self.protocol.send_text, payload)
        return self._write_message(self.protocol.send_binary, payload)

    def put_frame_slowly(self, whole: bytes) -> bool:
        return self._write_message(self.protocol.send_frame, whole)

    def _write_message(self, make_frame: Callable[[T], bytes], payload: T) -> bool:
        with self.write_lock:
            if not self._lost:
                if self.protocol.closed is not None:
                    raise self.end_error()
                if self._full():
                    return False
                self._write(make_frame(payload))
                if not self._lost:
                    self.messages_sent += 1
                    self.work += 2
                    return True
        raise self._closed_error()

    def _closed_error(self) -> ConnectionClosed:
        """Return the error of a failed write, with the code of the peer's Close frame if it has sent one before."""
        self.drained = False
        work = 0
        while (may_go_on := self._has_room() and work < LAST_WORK) and self.pump():
            self.drained = False
            work += 2 * self.protocol.work
        if not may_go_on:
            self.abort(LOST)
        return ConnectionClosed(*(self.protocol.closed or (ABNORMAL_CLOSURE, LOST)), connection=self.owner())

    def ping(self) -> None:
        """Send a Ping.

        :raises ConnectionClosed: when the connection has closed.
        """
        with self.write_lock:
            if not self._lost:
                if self.protocol.closed is not None:
                    raise self.end_error()
                now = time.monotonic()
                self._send_ping(now)
                self.due = min(self.due, self._next_due(now))
        if self._lost:
            raise self._closed_error()

    def _send_ping(self, now: float) -> None:
        payload = struct.pack("!d", now)
        self._pinged = payload, now
        if self._heartbeat.ping_sent(now):
            self.heard = False
        self._write(self.protocol.send_ping(payload))

    # The end

    async def finish_close(self) -> None:
        """Wait for the end of the closing handshake that :meth:`begin_close` has begun."""
        while not self.is_done():
            assert self._close_deadline is not None
            remaining = self._close_deadline - time.monotonic()
            # To wait also when there is something to read keeps a peer that does not stop from holding up the others.
            if remaining > 0 and self.has_rest:
                await self.loop.sleep(0)
                self.pump()
            elif remaining > 0 and await self._wait(self.loop.wait_readable, remaining):
                self.pump()
            else:
                self.abort("the closing handshake took too long")

    def begin_close(self, code: int, reason: str, initiator: Initiator = "server") -> None:
        """Send a Close frame, unless that was done. Harmless when the connection has ended."""
        with self.write_lock:
            self.is_over = True
            if self.protocol.closed is None:
                self._initiator = initiator
                self._write(self.protocol.send_close(code, reason))
            self._set_close_deadline()
            self._shut_down_if_done()

    def who_ended(self) -> Initiator:
        """Return who has ended the connection."""
        closed = self.protocol.closed
        if (
            self._initiator is None
            and self.protocol.close_received is None
            and closed
            and closed.code != ABNORMAL_CLOSURE
        ):
            return "error"  # the peer has broken the protocol
        return self._initiator or "client"

    def _set_close_deadline(self) -> None:
        if self._close_deadline is None:
            self._close_deadline = time.monotonic() + self.settings.close_timeout
            self.due = min(self.due, self._close_deadline)

    def is_done(self) -> bool:
        """Return whether the closing handshake is over (RFC 6455 section 7.1.4), or will never be."""
        protocol = self.protocol
        return (
            self._eof
            or self._sock is None
            or (protocol.close_received is not None and protocol.close_sent is not None and not self.outbox)
        )

    def _shut_down_if_done(self) -> None:
        """End TCP once all output is sent, which wakes all waiters. Called with the write lock."""
        protocol = self.protocol
        if self.outbox or protocol.close_sent is None or self._sock is None:
            return
        if protocol.close_received is not None:
            self._shut_down()
        elif protocol.input_ended:
            # The connection failed. To close with input unread would reset it and could take the Close frame with it,
            # so only this half ends now; the peer has until the deadline to end the other.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def abort(self, reason: str) -> None:
        """Drop the connection, at once and without a closing handshake."""
        with self.read_lock, self.write_lock:
            if not self._eof:  # first the reason, then the news that there is one
                if self.protocol.closed is None:
                    self._initiator = "client" if self._lost else "timeout"
                self._end_input(reason)
            if self._sock is not None:
                # Nobody reads what the kernel still holds: let it go with the descriptor.
                with suppress(OSError):
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.lose()

    def _drop_slow(self, reason: str) -> None:
        self.was_slow = True
        self.abort(reason)

    def leave_request(self) -> None:
        """Let the server end the request, which the connection outlives."""
        release, self._release = self._release, _do_nothing
        release()

    def detach(self) -> None:
        """Give the socket back to the loop, the operating system and the server. Harmless when that was done."""
        with self.read_lock, self.write_lock:
            sock = self._sock
            self.fd, self.is_over = -1, True
            if sock is None:
                return
            if self.accepted:
                self.protocol.receive_eof()
                self._shut_down()
            self._sock = None
            self.loop.forget(sock.fileno())
            self.reader = None
            self.abandoned = sock
            if not self.waiting:
                sock.close()
        if self.is_answered:
            self._release()

    # Looking after

    @staticmethod
    def find_due(connections: dict[Channel, C]) -> list[C]:
        """Return the connections that need a :meth:`tick` now, of a dictionary that has them by their channels."""
        return find_due(connections, time.monotonic())

    def tick(self, *, read_ahead: bool = True) -> None:
        """Do what is due, without waiting. The housekeeper looks once a second whether :meth:`find_due` asks for it.

        :param read_ahead: whether to read for a handler that is not receiving.
        """
        if not self.accepted or self._sock is None or self._eof:
            return
        now = time.monotonic()
        if self.is_receiving and not self.outbox and now < self.due:
            return  # the caller of receive() does the rest
        if not self.is_receiving:
            if read_ahead:
                self._read_ahead()
            if not self._has_room():
                if self._lost:
                    self.abort(LOST)  # the rest of what the peer has sent does not fit
                    return
                if self._meter is not None:
                    with self.read_lock:
                        self._meter.fall_behind()
        if self._close_deadline is None:
            self._watch(now)
        elif now >= self._close_deadline and not self.is_done():
            self.abort("the closing handshake took too long")
        if self.has_events:
            self.loop.run_aside(self.deliver)
        with self.write_lock:
            if now >= self.due:  # else each look would put off the next look for idleness
                self.due = self._next_due(now)

    def _watch(self, now: float) -> None:
        """Do what is due while the connection is open: drop it, close it, or ping the peer."""
        if self.outbox and self._is_slow(now):
            return
        if now < self.due:
            return
        beat = self._heartbeat.check(now, self.heard, self._has_input)
        if isinstance(beat, Close):
            self._end(*beat)
        elif close := self._lifespan.check(now, self.bytes_stored + self.messages_received + self.messages_sent):
            self._end(*close)
        elif beat is not None:
            with self.write_lock, suppress(ConnectionClosed):
                if not self.outbox:
                    self._send_ping(now)

    def _end(self, code: int, reason: str) -> None:
        """End the connection because of a deadline: with a Close frame, or at once for 1006."""
        if code == ABNORMAL_CLOSURE:
            self.abort(reason)
        else:
            self.begin_close(code, reason, "timeout")

    def _next_due(self, now: float) -> float:
        """Return the time at which something is due, if nothing happens before."""
        if self._close_deadline is not None:
            return self._close_deadline if now < self._close_deadline else inf
        return min(self._heartbeat.due, self._lifespan.due(now))

    def _read_ahead(self) -> None:
        """Read for a handler that is not receiving, to answer Pings and to notice the end."""
        for _ in range(16):  # a flood must not hold up the other connections
            if not self._has_room() or not self.pump(ahead=True):
                return

    def _is_slow(self, now: float) -> bool:
        """Drop the connection, and return True, if the peer reads the output too slowly."""
        self.flush()  # the system reports room only when there is much of it
        if not self.outbox or (reason := self._pace.check(now, self.bytes_sent)) is None:
            return False
        self._drop_slow(reason)
        return True

    def has_left(self) -> bool:
        """Return whether the client has closed its side, and has sent nothing before."""
        with self.read_lock:
            sock = self._sock
            try:
                return sock is not None and not sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:  # a reset
                return True

    def _has_input(self) -> bool:
        """Return whether there is input that nobody has read yet, here or in the socket."""
        return self.has_rest or not self._has_room() or self._is_readable()

    def _is_readable(self) -> bool:
        with self.read_lock:
            sock = self._sock
            try:
                return sock is not None and bool(sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
            except OSError:
                return False

    def _has_room(self) -> bool:
        """Return whether the messages that nobody has received yet leave room for more."""
        settings = self.settings
        size = self.bytes_stored - self.bytes_taken
        return size <= settings.max_message_size and len(self.inbox) < settings.max_queue


def _do_nothing() -> None:
    pass


def _send_at_once(sock: RawSocket) -> None:
    """Turn Nagle's algorithm off: the second of two small messages would wait for the peer's delayed ACK, 40 ms.

    Output is gathered before it is sent, so nothing is gained by having the system wait.
    """
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):  # the client has left
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
