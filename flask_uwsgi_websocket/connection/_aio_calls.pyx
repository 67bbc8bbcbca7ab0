# cython: language_level=3, nonecheck=True
"""The compiled twin of ``aio_calls.py``, which has the documentation.

``receive()`` and ``send()`` return objects that asyncio and ``await`` take for coroutines: what a coroutine would do,
they do step by step. While such an object waits for input, it yields the ``Reader`` of its connection, a future of the
event loop that is used again for each wait. When the descriptor is readable, the event loop calls the reader, which
wakes the task at once instead of in the next round of the event loop. The message is taken from the connection in the
task, as the last step of the call, so a task that is cancelled meanwhile loses none.
"""

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit

from ._channel cimport Channel

import inspect
import sys
import warnings
from asyncio import CancelledError, InvalidStateError
from contextvars import copy_context

from ..exceptions import ConnectionClosed
from ..signals import websocket_message, websocket_sent
from .aio_calls import AsyncioCalls as PureCalls
from .aio_calls import MessageIterator
from .channel import RUN_LENGTH, WAIT

cdef extern from "Python.h":
    # Declared as if it raised nothing, for a caller that returns NULL next, without a traceback.
    void PyErr_SetObject(object type, object value)

cdef int run_length = RUN_LENGTH
cdef object wait = WAIT
# blinker never replaces them.
cdef dict message_receivers = websocket_message.receivers
cdef dict sent_receivers = websocket_sent.receivers

cdef enum CallState:
    CREATED
    SUSPENDED
    RUNNING
    CLOSED

cdef enum WaitState:
    IDLE  # nobody waits
    PENDING
    READY
    CANCELLED


cdef class Call:
    """What one call returns: it behaves as a coroutine."""

    cdef AsyncioCalls client
    cdef object rest  # the coroutine that does the rest of the work, once there is one
    cdef CallState state

    @property
    def __name__(self):
        return self.__class__.__name__.lower()

    @property
    def __qualname__(self):
        return f"{self.client.__class__.__qualname__}.{self.__name__}"

    @property
    def cr_running(self):
        return self.state == RUNNING

    def __await__(self):
        if self.state == SUSPENDED or self.state == RUNNING:
            raise RuntimeError("coroutine is being awaited already")
        return self

    def __iter__(self):
        return self.__await__()  # for yield from

    def send(self, value):
        return next(self)  # no step needs the value

    def throw(self, kind, value=None, traceback=None):
        self.check_state()
        if self.rest is not None:
            try:
                return self.rest.throw(kind) if value is None else self.rest.throw(kind, value, traceback)
            except:
                self.state = CLOSED
                raise
        self.end()
        error = kind if isinstance(kind, BaseException) else value
        if not isinstance(error, BaseException):
            error = kind() if error is None else kind(error)
        raise error if traceback is None else error.with_traceback(traceback)

    def close(self):
        if self.state == RUNNING:
            raise ValueError("coroutine already executing")
        if self.rest is not None:
            self.rest.close()
        self.end()

    def __del__(self):
        if self.state == CREATED:
            self.state = CLOSED
            warnings.warn(f"coroutine '{self.__qualname__}' was never awaited", RuntimeWarning, source=self)
        self.end()

    cdef int check_state(self) except -1:
        """Raise if the call cannot go on."""
        if self.state == RUNNING:
            raise ValueError("coroutine already executing")
        if self.state == CLOSED:
            raise RuntimeError("cannot reuse already awaited coroutine")
        return 0

    cdef object leave_to(self, coroutine):
        """Leave the rest of the work to a coroutine."""
        self.rest = coroutine
        return self.go_on()

    cdef object go_on(self):
        """Do the next step of the coroutine."""
        self.state = RUNNING
        try:
            waited = self.rest.send(None)
        except:
            self.state = CLOSED
            raise
        self.state = SUSPENDED
        return waited

    cdef int end(self) except -1:
        self.state = CLOSED
        return 0


cdef class Receive(Call):
    cdef object timeout
    cdef bint iterates  # the end of the connection is that of an iteration
    cdef bint is_receiving, is_waiting  # as begin_receive() and enter_wait() have noted

    def __next__(self):
        cdef AsyncioCalls client = self.client
        cdef Channel channel = client._transport
        if self.state != SUSPENDED:
            self.check_state()
            self.state = CLOSED
            if self.timeout is not None or not channel.accepted or message_receivers or client.message_listeners:
                return self.leave_to(
                    MessageIterator(client).__anext__() if self.iterates else client._receive(self.timeout)
                )
        elif self.rest is not None:
            return self.go_on()
        self.state = RUNNING
        try:
            waited = self.step(client, channel)
        except ConnectionClosed:
            self.end()
            if not self.iterates:
                raise
            raise StopAsyncIteration from None
        except:
            self.end()
            raise
        if self.state == SUSPENDED:
            return waited
        self.end()
        if waited is not None:
            PyErr_SetObject(StopIteration, waited)  # the value that await has
        elif self.iterates:
            raise StopAsyncIteration
        raise StopIteration

    cdef object step(self, AsyncioCalls client, Channel channel):
        """Return the message; or set the state to SUSPENDED and return what to wait for."""
        if not self.is_receiving:
            channel.do_begin_receive()
            self.is_receiving = True
        elif self.is_waiting:
            self.leave_wait()
        while True:
            message = channel.do_take()
            if message is not wait:
                return message
            if channel.has_events:
                channel.deliver()
            elif channel.do_is_on_a_run():
                self.state = SUSPENDED
                return None  # one round of the event loop
            elif channel.do_enter_wait() >= 0:
                self.is_waiting = True
                if client._reader is None:
                    client._reader = Reader(client.loop)
                client._reader.begin(channel.fd)
                self.state = SUSPENDED
                return client._reader

    cdef int leave_wait(self) except -1:
        self.is_waiting = False
        if self.client._reader is not None:
            self.client._reader.end()
        self.client._transport.do_leave_wait()
        return 0

    cdef int end(self) except -1:
        self.state = CLOSED
        if self.is_receiving:
            self.is_receiving = self.client._transport.is_receiving = False
        if self.is_waiting:
            self.leave_wait()
        return 0


cdef class Send(Call):
    cdef object message, binary, timeout

    def __next__(self):
        cdef AsyncioCalls client = self.client
        cdef Channel channel = client._transport
        if self.state != SUSPENDED:
            self.check_state()
            self.state = RUNNING
            try:
                was_sent = channel.accepted and not sent_receivers and channel.do_put(self.message, self.binary)
            finally:
                self.state = CLOSED
            if was_sent and channel.work < run_length:
                raise StopIteration
            return self.leave_to(
                client._after_send(self.message)
                if was_sent
                else client._send(self.message, self.binary, timeout=self.timeout)
            )
        return self.go_on()


cdef class Messages:
    """The iterator over the messages of a client that has not overridden ``receive()``."""

    cdef AsyncioCalls client

    def __aiter__(self):
        return self

    def __anext__(self):
        return new_receive(self.client, None, True)


cdef Receive new_receive(AsyncioCalls client, timeout, bint iterates):
    cdef Receive call = Receive.__new__(Receive)
    call.client = client
    call.timeout = timeout
    call.iterates = iterates
    return call


cdef class Reader:
    """Wakes the task in ``receive()`` when the descriptor of its connection is readable or has ended.

    For the task it is a future, which it waits for again and again.
    """

    cdef object waits, loop  # the AsyncioLoop and the event loop
    cdef list others  # the futures of other tasks that wait for the descriptor; None while the event loop has no reader
    cdef void *current  # the Callback that the event loop has, or NULL
    cdef object callback, context, cancel_message
    cdef WaitState state
    cdef bint blocking
    cdef int fd

    def __init__(self, waits):
        self.waits = waits
        self.loop = waits.event_loop

    cdef int begin(self, int fd) except -1:
        """Begin to wait."""
        if self.others is None:
            self.fd = fd
            self.read()
        self.state = PENDING
        self.blocking = True
        return 0

    cdef void end(self) noexcept:
        """End the wait, whether or not it is over."""
        self.state = IDLE
        self.callback = self.context = self.cancel_message = None

    cdef int read(self) except -1:
        """Let the event loop watch the descriptor."""
        callback = Callback(self)
        self.current = <void *> callback
        try:
            self.others = self.waits.read_with(self.fd, callback, self.forget)
        except:
            self.forget()
            raise
        return 0

    def read_again(self):
        """Let the event loop watch the descriptor again, which it has stopped doing by itself."""
        if self.current is not NULL:
            self.read()

    cdef int wake(self) except -1:
        """Wake the task. Called by the event loop, outside of any task."""
        was_pending = self.state == PENDING
        if self.others or not was_pending:
            self.waits.wake(self.fd)
        if not was_pending:
            return 0
        self.state = READY
        callback, context = self.callback, self.context
        if callback is None:  # the task does not wait yet
            return 0
        self.callback = self.context = None
        PyContext_Enter(context)
        try:
            callback(self)
        except Exception:
            raise
        except BaseException as error:  # an event loop may take an exit in a reader's callback for a failure
            self.loop.call_soon(leave, error)
        finally:
            PyContext_Exit(context)
        return 0

    def forget(self):
        """End the wait, because the event loop will not call the reader any more."""
        self.others = None
        self.current = NULL
        if self.state == PENDING:
            self.state = READY
            self.call_back_soon()

    cdef int call_back_soon(self) except -1:
        callback, context = self.callback, self.context
        if callback is not None:
            self.callback = self.context = None
            self.loop.call_soon(callback, self, context=context)
        return 0

    # The interface of futures, as far as tasks use it

    @property
    def _asyncio_future_blocking(self):
        return self.blocking

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, bint value):
        self.blocking = value

    def get_loop(self):
        return self.loop

    def add_done_callback(self, callback, *, context=None):
        if self.callback is not None:
            raise RuntimeError("only one task can wait for a message")
        self.callback = callback
        self.context = copy_context() if context is None else context
        if self.state != PENDING:
            self.call_back_soon()

    def remove_done_callback(self, callback):
        if self.callback is None or self.callback != callback:
            return 0
        self.callback = self.context = None
        return 1

    def done(self):
        return self.state != PENDING

    def cancelled(self):
        return self.state == CANCELLED

    def cancel(self, msg=None):
        if self.state != PENDING:
            return False
        self.state = CANCELLED
        self.cancel_message = msg
        self.call_back_soon()
        return True

    def result(self):
        if self.state == CANCELLED:
            raise CancelledError() if self.cancel_message is None else CancelledError(self.cancel_message)
        if self.state == PENDING:
            raise InvalidStateError("Result is not ready.")

    def exception(self):
        return self.result()


cdef class Callback:
    """What the event loop calls when a descriptor is readable.

    Only the event loop has it. So it ends when the event loop drops it, as uvloop does after a reset.
    """

    cdef Reader reader

    def __init__(self, Reader reader not None):
        self.reader = reader

    def __call__(self):
        self.reader.wake()

    def __del__(self):
        cdef Reader reader = self.reader
        if reader.current == <void *> self and not reader.loop.is_closed():
            reader.loop.call_soon(reader.read_again)


def leave(error):
    raise error


cdef class AsyncioCalls:
    # Set by BaseClient.
    cdef public Channel _transport
    cdef public object loop, message_listeners
    cdef Reader _reader  # made when a task waits for the first time

    def receive(self, timeout=None):
        return new_receive(self, timeout, False)

    def send(self, message, binary=None, *, timeout=None):
        cdef Send call = Send.__new__(Send)
        call.client = self
        call.message = message
        call.binary = binary
        call.timeout = timeout
        return call

    def __aiter__(self):
        """Receive messages until the connection closes."""
        if getattr(self.receive, "__func__", None) is not plain_receive:
            return MessageIterator(self)
        cdef Messages messages = Messages.__new__(Messages)
        messages.client = self
        return messages


cdef object plain_receive = AsyncioCalls.receive
for name in ("receive", "send"):
    function = getattr(AsyncioCalls, name)
    function.__doc__ = getattr(PureCalls, name).__doc__
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
