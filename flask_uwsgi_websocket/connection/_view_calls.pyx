# cython: language_level=3
"""The compiled twin of ``view_calls.py``, which has the documentation."""

from cpython.dict cimport PyDict_Size

from ..loops._ready cimport Parked
from ._channel cimport Channel

from flask import appcontext_popped, appcontext_pushed, appcontext_tearing_down
from flask.globals import _cv_app

from ..signals import websocket_message
from .channel import WAIT
from .view_calls import MessageContext

cdef object wait = WAIT
cdef dict message_receivers = websocket_message.receivers
cdef dict pushed_receivers = appcontext_pushed.receivers
cdef dict popped_receivers = appcontext_popped.receivers
cdef dict teardown_receivers = appcontext_tearing_down.receivers


cdef class ViewCalls(Parked):
    cdef public object client, app, on_message, request_context
    cdef public Channel channel
    cdef public bint is_closing, is_special

    def serve_now(self):
        cdef Channel channel = self.channel
        if (
            self.is_closing
            or PyDict_Size(message_receivers)
            or self.client.message_listeners
            or not channel.is_receiving
        ):
            return self.serve_slowly()
        cdef bint is_observed = self.do_is_observed()
        error = None
        message = None
        token = None
        try:
            while True:
                message = channel.do_take()
                if message is wait or message is None:
                    break
                channel.is_receiving = False
                try:
                    if is_observed:
                        with self.client.message_context():
                            self.on_message(self.client, message)
                    else:
                        last = _cv_app.set(MessageContext(self.request_context))
                        token = token or last
                        self.on_message(self.client, message)
                finally:
                    channel.do_begin_receive()
        except BaseException as failure:
            error, message = failure, None
        if token is not None:
            _cv_app.reset(token)
        if message is None:
            return self.close_now(error)
        if channel.has_events:
            return self.serve_slowly()
        cdef bint is_on_a_run = channel.do_is_on_a_run()
        if is_on_a_run or (channel.drained and not self.reads_to_the_end):
            channel.drained = False
            return is_on_a_run
        return self.read_on()

    def is_observed(self):
        return self.do_is_observed()

    cdef bint do_is_observed(self) except -1:
        return (
            bool(self.app.teardown_appcontext_funcs)
            or PyDict_Size(teardown_receivers) > 0
            or PyDict_Size(popped_receivers) > 0
            or PyDict_Size(pushed_receivers) > 0
            or self.is_special
        )

    def serve_slowly(self):
        raise NotImplementedError

    def close_now(self, error):
        raise NotImplementedError

    def read_on(self):
        raise NotImplementedError
