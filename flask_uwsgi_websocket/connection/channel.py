"""The hot path of a connection: the next message from its socket, the wait for it, the next message to it.

This is the pure-Python twin, which leaves the messages to :class:`.connection.Connection`. The compiled one, in
``_channel.pyx``, does the common case (whole messages, nothing compressed) with one system call and without the
interpreter, and leaves only the rest.
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
    """What the hot path of a connection needs to know, and its calls."""

    # Held around the input and the output.
    _read_lock: Lock
    _write_lock: Lock
    _fd: int
    _read_size: int
    _max_message_size: int
    #: Messages that nobody has received yet.
    _inbox: deque[str | bytes]
    # The bytes of memory of all messages that were put into the inbox, counted with the read lock, and of those taken
    # out, counted by the caller in receive().
    _bytes_stored: int
    _bytes_taken: int
    #: What the socket has not taken, or what is held back to go out together.
    _outbox: bytearray
    #: The last read took all there was, and nobody has waited since.
    _drained: bool
    #: Some of what was read is not parsed yet, so that nobody may wait for more. With the read lock.
    _has_rest: bool
    #: Something was read since the last look.
    _heard: bool
    #: The work since the last wait, as RUN_LENGTH counts it.
    _run: int
    #: All messages that were received and sent.
    _received: int
    _sent: int
    _bytes_received: int
    _bytes_sent: int
    # Whether whole frames, uncompressed, may be read and written as they come: the one is set with the read lock, the
    # other with the write lock, and the third is only ever set.
    _plain_input: bool
    _plain_output: bool
    _is_over: bool
    # Whether output may be held back while there are messages in the inbox, and whether it is, with the write lock.
    _may_cork: bool
    _is_corked: bool
    #: Somebody is in receive().
    _is_receiving: bool
    # How many wait for the socket, and the socket when it is to be closed as soon as the last one has left.
    _waiting: int
    _abandoned: RawSocket | None

    def __init__(self) -> None:
        self._fd = -1
        self._read_lock = Lock()
        self._write_lock = Lock()

    def _receive_blocking(self, loop: BlockingLoop) -> str | bytes | None:
        """Return the next message, or None once at the end."""
        self._begin_receive()
        try:
            while (message := self._take()) is WAIT:
                if self._is_on_a_run():
                    run(loop.sleep(0))
                elif (fd := self._enter_wait()) >= 0:
                    try:
                        loop.block_until_readable(fd)
                    finally:
                        self._leave_wait()
            return message
        finally:
            self._is_receiving = False

    def _begin_receive(self) -> None:
        with self._read_lock:
            if self._is_receiving:
                raise ConcurrencyError(TWO_RECEIVERS)
            self._is_receiving = True

    def _is_on_a_run(self) -> bool:
        """Tell whether to let the others run instead of waiting for input, and begin a new run."""
        is_long, self._run = self._run >= RUN_LENGTH or self._has_rest, 0
        return is_long

    def _enter_wait(self) -> int:
        """Return the descriptor to wait for, or -1. It stays open until nobody waits: its number could be another's."""
        with self._write_lock:
            if self._fd >= 0:
                self._waiting += 1
            return self._fd

    def _leave_wait(self) -> None:
        with self._write_lock:
            self._drained = False
            self._waiting -= 1
            if self._abandoned is not None and not self._waiting:
                self._abandoned.close()

    def _take(self) -> str | bytes | Wait | None:
        """Return the next message, None once at the end, or ``WAIT`` when the caller has to wait first."""
        return self._take_slowly()

    def _put(self, message: str | ReadableBuffer, binary: bool | None = None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full."""
        return self._put_slowly(message, binary)

    def _put_frame(self, whole: bytes) -> bool:
        """Send a frame that was built for many; return False, having sent nothing, when the output is full."""
        return self._put_frame_slowly(whole)

    def _take_slowly(self) -> str | bytes | Wait | None:
        raise NotImplementedError

    def _put_slowly(self, message: str | ReadableBuffer, binary: bool | None) -> bool:
        raise NotImplementedError

    def _put_frame_slowly(self, whole: bytes) -> bool:
        raise NotImplementedError
