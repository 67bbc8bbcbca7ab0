# cython: language_level=3
"""The class of ``channel.py``, compiled. Its documentation is there."""

from cpython.bytearray cimport PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.errno cimport EAGAIN, errno

from ..protocol._frames cimport BINARY, TEXT, make_frame, parse

from ..exceptions import ConcurrencyError
from ..loops.base import run
from .channel import CORK_SIZE, READ_SIZE, REENTERED, RUN_LENGTH, TWO_RECEIVERS, WAIT

cdef extern from "Python.h":
    # Of a str or what is derived from it, unchecked.
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyUnicode_KIND(object text)
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "<sys/socket.h>" nogil:
    """
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    """
    int MSG_DONTWAIT, MSG_NOSIGNAL
    Py_ssize_t recv(int fd, void *buffer, size_t size, int flags)
    Py_ssize_t send(int fd, const void *buffer, size_t size, int flags)

# One for all connections: nothing but this module runs while it is used, except what a garbage collection may call.
cdef unsigned char shared_buffer[65536]
cdef bint is_in_use = False
assert READ_SIZE == sizeof(shared_buffer)

cdef int run_length = RUN_LENGTH
cdef Py_ssize_t cork_size = CORK_SIZE
cdef object wait = WAIT


cdef class Lock:
    """The lock of ``channel.py``, without the clock of Python's own."""

    cdef PyThread_type_lock lock
    cdef unsigned long owner

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)

    cdef bint acquire(self) noexcept:
        """Take it if it is free."""
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            return False
        self.owner = PyThread_get_thread_ident()
        return True

    cdef void release(self) noexcept:
        self.owner = 0
        PyThread_release_lock(self.lock)

    def __enter__(self):
        if not self.acquire():
            if self.owner == PyThread_get_thread_ident():
                raise ConcurrencyError(REENTERED)
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.owner = PyThread_get_thread_ident()

    def __exit__(self, *exception):
        self.release()


cpdef Py_ssize_t memory_of(message) except -1:
    """Return about the bytes of ``sys.getsizeof()``, for a str or bytes."""
    if isinstance(message, str):
        return 64 + PyUnicode_GET_LENGTH(message) * PyUnicode_KIND(message)
    return 64 + PyBytes_GET_SIZE(message)


cdef class Channel:
    # Whoever runs here holds the interpreter's lock, and the system calls do not wait.
    cdef readonly Lock _read_lock, _write_lock
    cdef public object _inbox, _abandoned
    cdef public bytearray _outbox
    cdef public int _fd, _run, _waiting
    cdef public long long _received, _sent, _bytes_received, _bytes_sent, _bytes_stored, _bytes_taken
    cdef public Py_ssize_t _read_size, _max_message_size
    cdef public bint _drained, _has_rest, _heard, _plain_input, _plain_output, _may_cork, _is_corked, _is_over
    cdef public bint _is_receiving

    def __cinit__(self):
        self._fd = -1
        self._read_lock = Lock()
        self._write_lock = Lock()

    def _receive_blocking(self, loop):
        self.begin_receive()
        try:
            while True:
                message = self.take()
                if message is not wait:
                    return message
                if self.is_on_a_run():
                    run(loop.sleep(0))
                elif self.enter_wait() >= 0:
                    try:
                        loop.block_until_readable(self._fd)
                    finally:
                        self.leave_wait()
        finally:
            self._is_receiving = False

    def _begin_receive(self):
        self.begin_receive()

    cdef int begin_receive(self) except -1:
        if self._is_receiving:
            raise ConcurrencyError(TWO_RECEIVERS)
        self._is_receiving = True
        return 0

    def _is_on_a_run(self):
        return self.is_on_a_run()

    cdef bint is_on_a_run(self) noexcept:
        cdef bint is_long = self._run >= run_length or self._has_rest
        self._run = 0
        return is_long

    def _enter_wait(self):
        return self.enter_wait()

    cdef int enter_wait(self) noexcept:
        if self._fd >= 0:
            self._waiting += 1
        return self._fd

    def _leave_wait(self):
        self.leave_wait()

    cdef int leave_wait(self) except -1:
        self._drained = False
        self._waiting -= 1
        if self._abandoned is not None and not self._waiting:
            self._abandoned.close()
        return 0

    def _take(self):
        return self.take()

    cdef object take(self):
        # With the lock even where there is nothing to read: another thread may be about to fill the inbox.
        if self._plain_input and not self._is_over and self._run < run_length and self._read_lock.acquire():
            try:
                message = self.take_plain()
            finally:
                self._read_lock.release()
            if message is not None:
                return message
        return self._take_slowly()

    cdef object take_plain(self):
        """Return a message, ``WAIT``, or None when there is something else to do."""
        global is_in_use
        cdef Py_ssize_t got, position
        cdef list messages
        if not self._inbox:
            if self._is_corked:
                self._flush()
            if self._drained:
                return wait
            if is_in_use or not 0 < self._read_size <= <Py_ssize_t> sizeof(shared_buffer):
                return None
            is_in_use = True
            try:
                got = recv(self._fd, shared_buffer, self._read_size, MSG_DONTWAIT)
                if got <= 0:  # the end, or an error, of which the next call tells again
                    return wait if got < 0 and errno == EAGAIN else None
                self._heard = True
                self._bytes_received += got
                self._drained = got < self._read_size
                messages = []
                position = parse(
                    shared_buffer, 0, got, True, self._max_message_size, PY_SSIZE_T_MAX, messages
                )
                rest = PyBytes_FromStringAndSize(<char *> shared_buffer + position, got - position)
            finally:
                is_in_use = False
            for message in messages:
                self._bytes_stored += memory_of(message)
            self._inbox.extend(messages)
            if rest:
                self._process(rest)
            if not self._inbox:
                return None
        message = self._inbox.popleft()
        self._bytes_taken += memory_of(message)
        self._run += 1 + <int> (len(message) // 512)
        self._received += 1
        return message

    def _put(self, message, binary=None):
        if binary is None and (self._plain_output or self._is_corked):
            if type(message) is str and self.put_plain(make_frame(TEXT, message, b"")):
                return True
            if type(message) is bytes and self.put_plain(make_frame(BINARY, message, b"")):
                return True
        return self._put_slowly(message, binary)

    def _put_frame(self, bytes whole not None):
        return self.put_plain(whole) or self._put_frame_slowly(whole)

    cdef bint put_plain(self, bytes whole) except -1:
        """Send a frame and return True, or do nothing."""
        if self._is_over or not (self._plain_output or self._is_corked) or not self._write_lock.acquire():
            return False
        try:
            if not self._is_corked:
                if not (self._may_cork and self._inbox):
                    return self.send_plain(whole)
                self._is_corked = True
                self._plain_output = False
                self._cork()
            self._outbox.extend(whole)
            self._run += 1
            self._sent += 1
            if not self._inbox or PyByteArray_GET_SIZE(self._outbox) > cork_size:
                self._flush_now()
            return True
        finally:
            self._write_lock.release()

    cdef bint send_plain(self, bytes whole) except -1:
        cdef Py_ssize_t sent = send(
            self._fd, PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole), MSG_DONTWAIT | MSG_NOSIGNAL
        )
        if sent < 0:  # the socket is full, or broken, of which the next call tells again
            return False
        self._bytes_sent += sent
        if sent < PyBytes_GET_SIZE(whole):
            self._keep(whole[sent:])
        self._run += 1
        self._sent += 1
        return True
