"""The hot path of a connection: the next message from its socket, the next message to it.

This is the pure-Python twin, which does nothing by itself. The compiled one, in ``_speedups.pyx``, does the common case
(whole messages, nothing waiting, nothing compressed) with one system call and without the interpreter, and leaves
all else to :class:`.connection.Connection`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from threading import Lock
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: The most bytes taken from the socket at once. What they hold is delivered before more are taken.
READ_SIZE = 65536

#: After so many messages without having to wait, whoever receives or sends lets the other connections run.
RUN_LENGTH = 64


#: Messages that are sent while the handler has more to answer go out together, with at most so many bytes more.
CORK_SIZE = 16384


class Wait(Enum):
    """Neither a message nor the end."""

    WAIT = auto()


#: What :meth:`Channel._take` returns when its caller has to wait.
WAIT: Literal[Wait.WAIT] = Wait.WAIT


class Channel:
    """What the hot path of a connection needs to know, and its calls."""

    # Held around the input and the output; taken by the one that receives.
    _read_lock: Lock
    _write_lock: Lock
    _fd: int
    _read_size: int
    _max_message_size: int
    #: Messages that nobody has received yet.
    _inbox: deque[str | bytes]
    #: What the socket has not taken, or what is held back to go out together.
    _outbox: bytearray
    #: The last read took all there was, and nobody has waited since.
    _drained: bool
    #: Something was read since the last look.
    _heard: bool
    #: Messages without a wait, and all that were received and sent.
    _run: int
    _received: int
    _sent: int
    # Whether whole frames, uncompressed, may be read and written as they come: the one is set with the read lock, the
    # other with the write lock, and the third is only ever set.
    _plain_input: bool
    _plain_output: bool
    _is_over: bool
    # Whether output may be held back while there are messages in the inbox, and whether it is, with the write lock.
    _may_cork: bool
    _is_corked: bool

    def _take(self) -> str | bytes | Wait | None:
        """Return the next message, None once at the end, or ``WAIT`` when the caller has to wait first."""
        return self._take_slowly()

    def _put(self, message: str | ReadableBuffer, binary: bool | None = None) -> bool:
        """Send a message; return False, having sent nothing, when the output is full."""
        return self._put_slowly(message, binary)

    def _put_frame(self, whole: bytes) -> bool:
        """Send an unmasked, uncompressed frame; return False, having sent nothing, when the output is full."""
        return self._put_frame_slowly(whole)

    def _take_slowly(self) -> str | bytes | Wait | None:
        raise NotImplementedError

    def _put_slowly(self, message: str | ReadableBuffer, binary: bool | None) -> bool:
        raise NotImplementedError

    def _put_frame_slowly(self, whole: bytes) -> bool:
        raise NotImplementedError
