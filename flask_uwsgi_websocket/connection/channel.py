"""The hot path of a connection: the next message from its socket, the wait for it, the next message to it.

This class is the pure-Python twin, which leaves all messages to :class:`.transport.Transport`. The compiled twin, in
``_channel.pyx``, handles the common case (whole, uncompressed messages) with one system call and without the
interpreter, and leaves only the rest to the transport. This class is also the contract of both twins: it declares the
attributes that both share with the transport, and the methods that both call on the transport. The latter raise
``NotImplementedError`` here.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from sys import getsizeof as memory_of
from typing import TYPE_CHECKING, Literal, TypeVar

from ..exceptions import ConcurrencyError
from ..loops.base import BlockingLoop, Reader, allocate_rlock, run

if TYPE_CHECKING:
    from _socket import socket as RawSocket

    from _typeshed import ReadableBuffer

__all__ = ["Channel", "Lock", "find_due", "memory_of", "put_frame_to_all"]

T = TypeVar("T")

#: The most bytes of one read. Their messages are delivered before the next read.
READ_SIZE = 65536

#: Messages after which a caller that did not have to wait lets the other connections run. Slower work counts as two
#: messages: a message off the compiled path, any other frame, each KiB that is received or inflated.
RUN_LENGTH = 64

#: The most bytes of output that are held back while the handler has more messages to answer.
CORK_SIZE = 16384


#: The inbox of every connection that has had no message to keep. A deque of its own takes 600 bytes.
NO_MESSAGES: deque[str | bytes] = deque(maxlen=0)


class Wait(Enum):
    """The type of :data:`WAIT`, which is neither a message nor the end."""

    WAIT = auto()


#: :meth:`Channel.take` returns it when the caller has to wait.
WAIT: Literal[Wait.WAIT] = Wait.WAIT

TWO_RECEIVERS = (
    "receive() was called while another thread, greenlet or task waits in it: let one of them receive and pass the "
    "messages on"
)


REENTERED = (
    "a call on a WebSocket connection was made from inside another one on the same connection, by a __del__() or a "
    "signal handler: hand the work to a thread, a greenlet or a task"
)


class Lock:
    """A lock for sections that never wait. A thread that holds the lock and takes it again gets an error, no deadlock.

    That happens when a garbage collection runs a ``__del__()`` inside such a section, and it calls the connection.
    """

    __slots__ = ("_is_held", "_lock")

    def __init__(self) -> None:
        # Reentrant, so that a thread cannot deadlock even between taking the lock and setting _is_held.
        self._lock = allocate_rlock()
        self._is_held = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._is_held:
            self._lock.release()
            raise ConcurrencyError(REENTERED)
        self._is_held = True

    def __exit__(self, *exception: object) -> None:
        self._is_held = False
        self._lock.release()


class Channel:
    """The hot path of one connection.

    The transport inherits from it instead of having it, because a call from one object to another for each message
    would cost as much as the message itself.
    """

    #: Guards the input.
    read_lock: Lock
    #: Guards the output.
    write_lock: Lock
    fd: int
    #: Whether the handshake was sent. Set with the write lock.
    accepted: bool
    #: Nothing needs a look before this time, on the monotonic clock, in seconds. Set with the write lock.
    due: float
    read_size: int
    max_message_size: int
    #: Messages that the handler has not received yet; :data:`NO_MESSAGES` until the first one.
    inbox: deque[str | bytes]
    #: The bytes of memory of all messages that were put into the inbox. Set with the read lock.
    bytes_stored: int
    #: The bytes of memory of all messages that were taken out of the inbox. Set by the caller in receive().
    bytes_taken: int
    #: Output that the socket has not taken yet, or that is held back.
    outbox: bytearray
    #: The last read emptied the socket, and nobody has waited for it since.
    drained: bool
    #: Some input is read and not parsed yet, so nobody may wait for more. Set with the read lock.
    has_rest: bool
    #: Input was read since the last ping that needs an answer.
    heard: bool
    #: The work since the last wait, as RUN_LENGTH counts it.
    work: int
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    #: Input may be parsed here: the next byte starts a message, and neither compression, a rate limit nor
    #: ``text_as_bytes`` is on. Set with the read lock.
    plain_input: bool
    #: Output may be sent here: none waits, and neither compression nor ``text_as_bytes`` is on. Set with the write
    #: lock.
    plain_output: bool
    #: Neither input nor output may be handled here any more, whatever the two flags above are. Never reset.
    is_over: bool
    #: Events wait to be delivered, without a lock.
    has_events: bool
    #: Output may be held back while there are messages in the inbox.
    may_cork: bool
    #: Output is held back. Set with the write lock.
    is_corked: bool
    #: A thread, greenlet or task is in receive().
    is_receiving: bool
    #: How many threads, greenlets or tasks wait for the socket.
    waiting: int
    #: What waits for the socket in :meth:`receive_blocking`, once it has waited. Set by the caller in receive().
    reader: Reader | None
    #: The socket, when it is to be closed after the last of them has left.
    abandoned: RawSocket | None

    def __init__(self) -> None:
        self.fd = -1
        self.read_lock = Lock()
        self.write_lock = Lock()

    def receive_blocking(self, loop: BlockingLoop) -> str | bytes | None:
        """Wait for the next message and return it. Return None once at the end of the connection."""
        self.begin_receive()
        try:
            while (message := self.take()) is WAIT:
                if self.has_events:
                    self.deliver()
                elif self.is_on_a_run():
                    run(loop.sleep(0))
                elif (fd := self.enter_wait()) >= 0:
                    try:
                        if self.reader is None:
                            self.reader = loop.reader(fd)
                        self.reader.wait()
                    finally:
                        self.leave_wait()
            return message
        finally:
            self.is_receiving = False

    def begin_receive(self) -> None:
        """Note that the caller receives.

        :raises ConcurrencyError: when another thread, greenlet or task is receiving.
        """
        with self.read_lock:
            if self.is_receiving:
                raise ConcurrencyError(TWO_RECEIVERS)
            self.is_receiving = True

    def is_on_a_run(self) -> bool:
        """Return whether to let other connections run instead of waiting for input, and begin a new run."""
        is_long, self.work = self.work >= RUN_LENGTH or self.has_rest, 0
        return is_long

    def enter_wait(self) -> int:
        """Return the descriptor to wait for, or -1. It stays open during the wait, so that its number is not reused."""
        with self.write_lock:
            if self.fd >= 0:
                self.waiting += 1
            return self.fd

    def leave_wait(self) -> None:
        """End the wait that :meth:`enter_wait` has begun."""
        with self.write_lock:
            self.drained = False
            self.waiting -= 1
            if self.abandoned is not None and not self.waiting:
                self.abandoned.close()

    def take(self) -> str | bytes | Wait | None:
        """Return the next message, ``WAIT`` when the caller has to wait first, or None once at the end."""
        return self.take_slowly()

    def put(self, message: str | ReadableBuffer, binary: bool | None = None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full."""
        return self.put_slowly(message, binary)

    def flush_if_kept(self) -> bool:
        """Send the outbox, which may be empty by now; return whether some of it is left. Called by the loop."""
        return bool(self.outbox) and self.flush()

    def put_frame(self, whole: bytes) -> bool:
        """Send a frame of a broadcast; return False, having sent nothing, when the output is full."""
        return self.put_frame_slowly(whole)

    # Implemented by the transport

    def take_slowly(self) -> str | bytes | Wait | None:
        """Do the work of :meth:`take` for any message."""
        raise NotImplementedError

    def put_slowly(self, message: str | ReadableBuffer, binary: bool | None) -> bool:
        """Do the work of :meth:`put` for any message."""
        raise NotImplementedError

    def put_frame_slowly(self, whole: bytes) -> bool:
        """Do the work of :meth:`put_frame` at any time."""
        raise NotImplementedError

    def process(self, data: bytes) -> None:
        """Parse input that is not only whole, plain messages. Called with the read lock."""
        raise NotImplementedError

    def deliver(self) -> None:
        """Deliver the waiting events. Called without a lock."""
        raise NotImplementedError

    def cork(self) -> None:
        """Schedule the sending of the output that is held back. Called with the write lock."""
        raise NotImplementedError

    def keep(self, rest: bytes) -> None:
        """Put the rest of a frame into the outbox until the socket takes it. Called with the write lock."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Send the outbox; return whether some of it is left."""
        raise NotImplementedError

    def flush_now(self) -> bool:
        """Do the work of :meth:`flush`, with the write lock."""
        raise NotImplementedError


def put_frame_to_all(channels: list[Channel], whole: bytes) -> list[int]:
    """Send a frame to many channels that need nothing else. Return the indices of the others, which got nothing."""
    return list(range(len(channels)))


def find_due(connections: dict[Channel, T], now: float) -> list[T]:
    """Return the connections that need a tick, of a dictionary that has them by their channels.

    Most connections need none most of the time: somebody is in receive(), no output waits and nothing is due.

    :param now: the monotonic clock, in seconds.
    """
    return [
        connection
        for channel, connection in connections.items()
        if not channel.accepted or not channel.is_receiving or channel.is_over or channel.outbox or now >= channel.due
    ]
