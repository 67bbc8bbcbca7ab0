"""The hot path of a connection: the next message from its socket, the wait for it, the next message to it.

The class here is the pure-Python twin, which leaves all messages to :class:`.transport.Transport`. The compiled twin,
in ``_channel.pyx``, handles the common case (whole messages, nothing compressed) with one system call and without the
interpreter, and leaves only the rest. The class here is also their contract: its attributes are those that both share
with the transport, and its methods that raise ``NotImplementedError`` are what both call on the transport.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from sys import getsizeof as memory_of
from typing import TYPE_CHECKING, Literal

from ..exceptions import ConcurrencyError
from ..loops.base import BlockingLoop, allocate_rlock, run

if TYPE_CHECKING:
    from _socket import socket as RawSocket

    from _typeshed import ReadableBuffer

__all__ = ["Channel", "Lock", "memory_of"]

#: The most bytes taken from the socket at once. What they hold is delivered before more are taken.
READ_SIZE = 65536

#: Messages after which a caller that did not have to wait lets the other connections run. What is slower counts as two:
#: a message off the compiled path, any other frame, each KiB that is received or inflated.
RUN_LENGTH = 64

#: Messages that are sent while the handler has more to answer go out together, with at most so many bytes more.
CORK_SIZE = 16384


class Wait(Enum):
    """Neither a message nor the end."""

    WAIT = auto()


#: What :meth:`Channel._take` returns when its caller has to wait.
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
    """A lock for sections that never wait. A thread that holds it already gets an error, as it would wait for ever.

    A garbage collection may run a ``__del__()`` in the midst of a section, and that may call the connection.
    """

    __slots__ = ("_is_held", "_lock")

    def __init__(self) -> None:
        # One that its own thread may take again: there is no moment at which that would wait for itself, also before it
        # has noted that it holds the lock.
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

    It is inherited by the transport, and no part of it: a call from one object to another for each message would cost
    as much as the message itself.
    """

    # Held around the input, and around the output.
    read_lock: Lock
    write_lock: Lock
    fd: int
    read_size: int
    max_message_size: int
    #: Messages that nobody has received yet.
    inbox: deque[str | bytes]
    # The bytes of memory of all messages that were put into the inbox, counted with the read lock, and of those taken
    # out, counted by the caller in receive().
    bytes_stored: int
    bytes_taken: int
    #: What the socket has not taken, or what is held back to go out together.
    outbox: bytearray
    #: The last read took all there was, and nobody has waited since.
    drained: bool
    #: Some of what was read is not parsed yet, so that nobody may wait for more. With the read lock.
    has_rest: bool
    #: Something was read since the last look.
    heard: bool
    #: The work since the last wait, as RUN_LENGTH counts it.
    work: int
    #: All messages that were received and sent.
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    # Whether whole frames, uncompressed, may be read and written as they come: the first is set with the read lock, the
    # second with the write lock. Neither counts once the third is set, which stays set.
    plain_input: bool
    plain_output: bool
    is_over: bool
    #: Events wait to be delivered, without a lock.
    has_events: bool
    # Whether output may be held back while there are messages in the inbox, and whether it is, with the write lock.
    may_cork: bool
    is_corked: bool
    #: Somebody is in receive().
    is_receiving: bool
    # How many wait for the socket, and the socket when it is to be closed as soon as the last one has left.
    waiting: int
    abandoned: RawSocket | None

    def __init__(self) -> None:
        self.fd = -1
        self.read_lock = Lock()
        self.write_lock = Lock()

    def receive_blocking(self, loop: BlockingLoop) -> str | bytes | None:
        """Return the next message, or None once at the end."""
        self.begin_receive()
        try:
            while (message := self.take()) is WAIT:
                if self.has_events:
                    self.deliver()
                elif self.is_on_a_run():
                    run(loop.sleep(0))
                elif (fd := self.enter_wait()) >= 0:
                    try:
                        loop.block_until_readable(fd)
                    finally:
                        self.leave_wait()
            return message
        finally:
            self.is_receiving = False

    def begin_receive(self) -> None:
        """Note that somebody receives.

        :raises ConcurrencyError: when somebody else does.
        """
        with self.read_lock:
            if self.is_receiving:
                raise ConcurrencyError(TWO_RECEIVERS)
            self.is_receiving = True

    def is_on_a_run(self) -> bool:
        """Return whether to let the others run instead of waiting for input, and begin a new run."""
        is_long, self.work = self.work >= RUN_LENGTH or self.has_rest, 0
        return is_long

    def enter_wait(self) -> int:
        """Return the descriptor to wait for, or -1. It stays open until nobody waits: its number could be another's."""
        with self.write_lock:
            if self.fd >= 0:
                self.waiting += 1
            return self.fd

    def leave_wait(self) -> None:
        """Give the descriptor of :meth:`enter_wait` back."""
        with self.write_lock:
            self.drained = False
            self.waiting -= 1
            if self.abandoned is not None and not self.waiting:
                self.abandoned.close()

    def take(self) -> str | bytes | Wait | None:
        """Return the next message, None once at the end, or ``WAIT`` when the caller has to wait first."""
        return self.take_slowly()

    def put(self, message: str | ReadableBuffer, binary: bool | None = None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full."""
        return self.put_slowly(message, binary)

    def put_frame(self, whole: bytes) -> bool:
        """Send a frame that was built for many; return False, having sent nothing, when the output is full."""
        return self.put_frame_slowly(whole)

    # The transport's part

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
        """Act on input that is more than whole messages. Called with the read lock."""
        raise NotImplementedError

    def deliver(self) -> None:
        """Deliver the events that wait. Called without a lock."""
        raise NotImplementedError

    def cork(self) -> None:
        """Have the output that is held back sent soon. Called with the write lock."""
        raise NotImplementedError

    def keep(self, rest: bytes) -> None:
        """Keep what the socket has not taken until it does. Called with the write lock."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Send what is kept; return whether there is more."""
        raise NotImplementedError

    def flush_now(self) -> bool:
        """Do the work of :meth:`flush`, with the write lock."""
        raise NotImplementedError
