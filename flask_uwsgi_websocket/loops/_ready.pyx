# cython: language_level=3
"""The compiled twin of ``ready.py``, which has the documentation."""

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from collections import deque

from .ready import BATCH, INPUT
from .ready import IS_READY as PY_IS_READY, RUNS as PY_RUNS, RUNS_AGAIN as PY_RUNS_AGAIN, WAITS as PY_WAITS

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef int IS_READY = PY_IS_READY
cdef int RUNS = PY_RUNS
cdef int RUNS_AGAIN = PY_RUNS_AGAIN
cdef int WAITS = PY_WAITS
cdef int input_alone = INPUT


cdef double now() noexcept:
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec + 1e-9 * clock.tv_nsec


cdef class Parked:
    async def serve(self):
        raise NotImplementedError

    def serve_now(self):
        raise NotImplementedError

    def leave_to_housekeeper(self):
        raise NotImplementedError


cdef class Queue:
    cdef readonly object epoll, lock, ready
    cdef readonly dict parked

    def __init__(self, epoll, lock):
        self.epoll = epoll
        self.lock = lock
        self.parked = {}
        self.ready = deque()

    def collect(self, timeout):
        found = self.epoll.poll(timeout, BATCH)
        with self.lock:
            self.note(found)

    def note(self, list found not None):
        cdef int events
        for fd, events in found:
            parked = self.parked.get(fd)
            if parked is not None:
                if events != input_alone:
                    (<Parked?> parked).reads_to_the_end = True
                self.do_mark(<Parked?> parked)

    def mark(self, Parked parked not None):
        self.do_mark(parked)

    cdef int do_mark(self, Parked parked) except -1:
        if parked.state == WAITS:
            parked.state = IS_READY
            self.ready.append(parked)
        elif parked.state == RUNS:
            parked.state = RUNS_AGAIN
        return 0

    def run(self, double seconds):
        cdef Parked parked
        cdef bint has_more
        cdef double end = now() + seconds
        while True:
            with self.lock:
                if not self.ready:
                    return False
                parked = self.ready.popleft()
                parked.state = RUNS
            has_more = True
            try:
                PyContext_Enter(parked.context)
                try:
                    has_more = parked.serve_now()
                finally:
                    PyContext_Exit(parked.context)
            finally:
                self.do_finish(parked, has_more)
            if now() > end:
                return bool(self.ready)

    def finish(self, Parked parked not None, has_more):
        self.do_finish(parked, has_more)

    cdef int do_finish(self, Parked parked, bint has_more) except -1:
        with self.lock:
            if has_more or parked.state == RUNS_AGAIN:
                parked.state = IS_READY
                self.ready.append(parked)
            else:
                parked.state = WAITS
        return 0
