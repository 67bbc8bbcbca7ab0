# cython: language_level=3
"""The functions of ``frames.py`` and the class of ``channel.py``, compiled. Their documentation is there.

No subscript here depends on what a peer has sent: the bytes are reached by pointers, and each access stands behind
a comparison that proves its bounds, which its comment names. Lengths and positions are signed and compared by
subtraction, so that no sum can overflow.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
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
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8, PyUnicode_New
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from .channel import CORK_SIZE, READ_SIZE, REENTERED, RUN_LENGTH, TWO_RECEIVERS, WAIT
from .exceptions import ConcurrencyError
from .loops import run

cdef extern from "Python.h":
    # Of a str or what is derived from it, unchecked.
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyUnicode_KIND(object text)
    Py_ssize_t PyNumber_AsSsize_t(object number, void *overflow) except? -1
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

cdef enum:
    TEXT = 0x81    # with FIN
    BINARY = 0x82  # with FIN
    MASKED = 0x80
    NOT_ASCII = 0x80


cdef int read_mask(bytes mask, uint32_t *key) except -1:
    if PyBytes_GET_SIZE(mask) != 4:
        raise ValueError("a mask has four bytes")
    memcpy(key, PyBytes_AS_STRING(mask), 4)
    return 0


cdef unsigned char copy_masked(
    unsigned char *target, const unsigned char *source, Py_ssize_t size, uint32_t mask
) noexcept nogil:
    """Copy *size* bytes, masked, and return all of them or-ed together.

    Words go through memcpy(), as they need not be aligned; the compiler makes loads and stores of it.
    """
    cdef uint64_t key = <uint64_t> mask << 32 | mask
    cdef uint64_t word, seen = 0
    cdef unsigned char seen_bytes = 0
    cdef int i
    while size >= 8:
        memcpy(&word, source, 8)
        word ^= key
        seen |= word
        memcpy(target, &word, 8)
        source += 8
        target += 8
        size -= 8
    for i in range(<int> size):  # at most 7, and the key is in memory as the mask is, twice
        target[i] = source[i] ^ (<unsigned char *> &key)[i]
        seen_bytes |= target[i]
    seen |= seen >> 32
    seen |= seen >> 16
    seen |= seen >> 8
    return <unsigned char> seen | seen_bytes


cdef str unmask_text(const unsigned char *source, Py_ssize_t size, uint32_t mask):
    """Unmask and decode UTF-8."""
    # Most text is ASCII, and then its bytes are those of the str. What is not is decoded from there.
    cdef str text = PyUnicode_New(size, 127)
    cdef unsigned char *data = PyUnicode_1BYTE_DATA(text)
    if copy_masked(data, source, size, mask) & NOT_ASCII:
        return PyUnicode_DecodeUTF8(<char *> data, size, NULL)
    return text


cdef bytes unmask_bytes(const unsigned char *source, Py_ssize_t size, uint32_t mask):
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, size)
    copy_masked(<unsigned char *> PyBytes_AS_STRING(payload), source, size, mask)
    return payload


def apply_mask(data, bytes mask not None):
    cdef uint32_t key = 0
    cdef Py_buffer view
    read_mask(mask, &key)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return unmask_bytes(<const unsigned char *> view.buf, view.len, key)
    finally:
        PyBuffer_Release(&view)


def take_messages(
    bytes data not None, Py_ssize_t position, bint masked, max_size, Py_ssize_t most, list messages not None
):
    # What is larger than a size can be, is taken for the largest.
    cdef Py_ssize_t size = PyNumber_AsSsize_t(max_size, NULL)
    cdef const unsigned char *start = <const unsigned char *> PyBytes_AS_STRING(data)
    if position < 0:
        raise ValueError("the position is negative")
    return parse(start, position, PyBytes_GET_SIZE(data), masked, size, most, messages)


cdef Py_ssize_t parse(
    const unsigned char *start,
    Py_ssize_t position,
    Py_ssize_t end,
    bint masked,
    Py_ssize_t max_size,
    Py_ssize_t most,
    list messages,
) except -1:
    cdef Py_ssize_t length, payload
    cdef uint32_t key = 0
    cdef unsigned char first
    while most > 0 and end - position >= 2:  # proves position and position + 1
        first = start[position]
        if first != TEXT and first != BINARY:
            break
        length = start[position + 1] ^ (MASKED if masked else 0)
        payload = position + 2
        if length == 126 and end - payload >= 2:  # proves payload and payload + 1
            length = start[payload] << 8 | start[payload + 1]
            payload += 2
            if length < 126:
                break
        elif length > 125:
            break
        if masked:
            payload += 4
        if length > end - payload or length > max_size:  # proves the mask, as length >= 0, and the payload
            break
        if masked:
            memcpy(&key, start + payload - 4, 4)
        if first == BINARY:
            messages.append(unmask_bytes(start + payload, length, key))
        else:
            try:
                messages.append(unmask_text(start + payload, length, key))
            except UnicodeDecodeError:
                break
        position = payload + length
        most -= 1
    return position


def frame(unsigned char first, payload, bytes mask not None=b""):
    return make_frame(first, payload, mask)


cdef bytes make_frame(unsigned char first, payload, bytes mask):
    cdef uint32_t key = 0  # which changes nothing
    cdef Py_buffer view
    if mask:
        read_mask(mask, &key)
    if isinstance(payload, str):
        if PyUnicode_IS_ASCII(payload):
            return build(first, PyUnicode_1BYTE_DATA(payload), PyUnicode_GET_LENGTH(payload), mask, key)
        # Not PyUnicode_AsUTF8AndSize(), which would leave a copy in the application's str for as long as that lives.
        payload = PyUnicode_AsUTF8String(payload)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        return build(first, <const unsigned char *> view.buf, view.len, mask, key)
    finally:
        PyBuffer_Release(&view)


cdef bytes build(unsigned char first, const unsigned char *payload, Py_ssize_t length, bytes mask, uint32_t key):
    cdef Py_ssize_t extended = 0 if length < 126 else 2 if length < 65536 else 8
    cdef Py_ssize_t masking = PyBytes_GET_SIZE(mask)
    # Header and payload go into exactly these bytes. No object is so large that the sum could overflow.
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, 2 + extended + masking + length)
    cdef unsigned char *target = <unsigned char *> PyBytes_AS_STRING(whole)
    cdef Py_ssize_t i
    target[0] = first
    target[1] = (MASKED if masking else 0) | (length if not extended else 126 if extended == 2 else 127)
    target += 2
    for i in range(extended):
        target[i] = length >> 8 * (extended - 1 - i) & 0xFF
    target += extended
    if masking:
        memcpy(target, &key, 4)
        copy_masked(target + 4, payload, length, key)
    elif length:
        memcpy(target, payload, length)
    return whole


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
