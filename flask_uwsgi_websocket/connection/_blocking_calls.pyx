# cython: language_level=3, nonecheck=True
"""The class of ``blocking_calls.py``, compiled. It documents the class."""

from cpython.dict cimport PyDict_Size

from ._channel cimport Channel

from ..exceptions import ConnectionClosed
from ..loops.base import run
from ..signals import websocket_message, websocket_sent
from . import blocking_calls
from .channel import RUN_LENGTH

cdef int run_length = RUN_LENGTH

# Signals never replace these dictionaries.
cdef dict message_receivers = websocket_message.receivers
cdef dict sent_receivers = websocket_sent.receivers


cdef class BlockingCalls:
    # What BaseClient sets.
    cdef public Channel _transport
    cdef public object loop, message_listeners

    def receive(self, timeout=None):
        return self.do_receive(timeout)

    cdef object do_receive(self, timeout):
        if timeout is not None or PyDict_Size(message_receivers) or self.message_listeners:
            return run(self._receive(timeout))
        if not self._transport.accepted:
            run(self.ensure_accepted())
        return self._transport.do_receive(self.loop)

    def __iter__(self):
        """Receive messages until the connection closes."""
        cdef Messages messages = Messages.__new__(Messages)
        messages.calls = self
        messages.is_overridden = type(self).receive is not receive
        return messages

    def send(self, message, binary=None, *, timeout=None):
        cdef Channel channel = self._transport
        if not channel.accepted:
            run(self.ensure_accepted())
        if not channel.do_put(message, binary):
            run(self._send_when_possible(message, binary, timeout))
        if channel.work >= run_length or PyDict_Size(sent_receivers):
            run(self._after_send(message))


cdef class Messages:
    """The iterator, in place of a generator."""

    cdef BlockingCalls calls
    cdef bint is_overridden

    def __iter__(self):
        return self

    def __next__(self):
        try:
            message = self.calls.receive() if self.is_overridden else self.calls.do_receive(None)
        except ConnectionClosed:
            message = None
        if message is None:
            raise StopIteration
        return message


cdef object receive = BlockingCalls.receive

for name in ("receive", "send"):
    for attribute in ("__doc__", "__annotations__"):
        setattr(getattr(BlockingCalls, name), attribute, getattr(getattr(blocking_calls.BlockingCalls, name), attribute))
