# cython: language_level=3
"""The classes of ``readers.py``, compiled. It documents them."""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef class GeventReader:
    cdef object hub, get_hub, getcurrent, switch_to_hub, watcher, waiting
    cdef int fd
    cdef bint is_started, is_closed

    def __init__(self, hub, int fd):
        from gevent import get_hub, getcurrent

        self.hub = hub
        self.get_hub = get_hub
        self.getcurrent = getcurrent
        self.switch_to_hub = hub.switch
        self.fd = fd

    def wait(self, timeout=None):
        if self.waiting is not None or self.get_hub() is not self.hub:
            from .readers import wait_apart

            return wait_apart(self.fd, timeout)
        timer = None
        self.waiting = self.getcurrent().switch
        try:
            if timeout is not None:
                timer = self.hub.loop.timer(max(0.0, timeout))
                timer.start(self.waiting, False)
            if not self.is_started:
                if self.watcher is None:
                    self.watcher = self.hub.loop.io(self.fd, 1)
                self.watcher.start(self)
                self.is_started = True
            return bool(self.switch_to_hub())
        finally:
            self.waiting = None
            if timer is not None:
                timer.close()
            if self.is_closed:
                self.close_watcher()

    def __call__(self):
        if self.waiting is not None:
            self.waiting(True)
        elif self.watcher is not None:
            self.watcher.stop()
            self.is_started = False

    def close(self):
        self.is_closed = True
        if self.waiting is None:
            self.close_watcher()

    cdef int close_watcher(self) except -1:
        watcher, self.watcher, self.is_started = self.watcher, None, False
        if watcher is not None:
            watcher.stop()
            watcher.close()
        return 0


cdef class PollReader:
    cdef int fd

    def __init__(self, int fd):
        self.fd = fd

    def wait(self):
        cdef pollfd polled
        cdef int ready
        polled.fd = self.fd
        polled.events = POLLIN
        while True:
            with nogil:
                ready = poll(&polled, 1, -1)
            if ready >= 0:
                return
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
