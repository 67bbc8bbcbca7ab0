# cython: language_level=3
"""The compiled twin of ``channel.py``, which has the documentation."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EAGAIN, errno

from ..protocol._frames cimport BINARY, TEXT, make_frame, parse, take_frame

from collections import deque

from ..exceptions import ConcurrencyError
from ..loops.base import run
from .channel import CORK_SIZE, NO_MESSAGES, READ_SIZE, REENTERED, RUN_LENGTH, TWO_RECEIVERS, WAIT

cdef extern from "Python.h":
    # For a str or an instance of a subclass; the type is not checked.
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyUnicode_KIND(object text)
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef extern from "<sys/socket.h>" nogil:
    """
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    """
    int MSG_DONTWAIT, MSG_NOSIGNAL
    Py_ssize_t recv(int fd, void *buffer, size_t size, int flags)
    Py_ssize_t send(int fd, const void *buffer, size_t size, int flags)

# One for all connections: while it is in use, nothing else runs but what a garbage collection may call.
cdef unsigned char shared_buffer[65536]
cdef bint is_in_use = False
assert READ_SIZE == sizeof(shared_buffer)

# Microseconds between two looks at a lock that another thread holds.
cdef enum:
    PATIENCE = 20

cdef int run_length = RUN_LENGTH
cdef Py_ssize_t cork_size = CORK_SIZE
cdef object wait = WAIT
cdef object no_messages = NO_MESSAGES


cdef class Lock:
    """The lock of ``channel.py``: a flag, because only one thread at a time runs the code of this class."""

    cdef bint acquire(self) noexcept:
        """Take the lock if it is free; return whether it was."""
        if self.owner:
            return False
        self.owner = PyThread_get_thread_ident()
        return True

    cdef void release(self) noexcept:
        self.owner = 0

    def __enter__(self):
        while not self.acquire():
            if self.owner == PyThread_get_thread_ident():
                raise ConcurrencyError(REENTERED)
            with nogil:  # the other thread runs Python code within its section, for microseconds
                usleep(PATIENCE)

    def __exit__(self, *exception):
        self.release()


cpdef Py_ssize_t memory_of(message) except -1:
    """Return about the number of bytes that ``sys.getsizeof()`` returns for a str or bytes."""
    if isinstance(message, str):
        return 64 + PyUnicode_GET_LENGTH(message) * PyUnicode_KIND(message)
    return 64 + PyBytes_GET_SIZE(message)


cdef class Channel:
    def __cinit__(self):
        self.fd = -1
        self.read_lock = Lock()
        self.write_lock = Lock()

    def receive_blocking(self, loop):
        return self.do_receive(loop)

    cdef object do_receive(self, loop):
        self.do_begin_receive()
        try:
            while True:
                message = self.do_take()
                if message is not wait:
                    return message
                if self.has_events:
                    self.deliver()
                elif self.do_is_on_a_run():
                    run(loop.sleep(0))
                elif self.do_enter_wait() >= 0:
                    try:
                        if self.reader is None:
                            self.reader = loop.reader(self.fd)
                        self.reader.wait()
                    finally:
                        self.do_leave_wait()
        finally:
            self.is_receiving = False

    def begin_receive(self):
        self.do_begin_receive()

    cdef int do_begin_receive(self) except -1:
        if self.is_receiving:
            raise ConcurrencyError(TWO_RECEIVERS)
        self.is_receiving = True
        return 0

    def is_on_a_run(self):
        return self.do_is_on_a_run()

    cdef bint do_is_on_a_run(self) noexcept:
        cdef bint is_long = self.work >= run_length or self.has_rest
        self.work = 0
        return is_long

    def enter_wait(self):
        return self.do_enter_wait()

    cdef int do_enter_wait(self) noexcept:
        if self.fd >= 0:
            self.waiting += 1
        return self.fd

    def leave_wait(self):
        self.do_leave_wait()

    cdef int do_leave_wait(self) except -1:
        self.drained = False
        self.waiting -= 1
        if self.abandoned is not None and not self.waiting:
            self.abandoned.close()
        return 0

    def take(self):
        return self.do_take()

    cdef object do_take(self):
        # With the lock even if there is nothing to read, because another thread may be filling the inbox.
        if self.plain_input and not self.is_over and self.work < run_length and self.read_lock.acquire():
            try:
                message = self.take_plain()
            finally:
                self.read_lock.release()
            if message is not None:
                return message
        return self.take_slowly()

    cdef object take_plain(self):
        """Return a message, ``WAIT``, or None when the transport has to look."""
        if not self.inbox:
            if self.is_corked:
                self.flush()
            if self.drained:
                return wait
            message = self.read_plain()
            if message is None or message is wait:
                return message
        else:
            message = self.inbox.popleft()
            self.bytes_taken += memory_of(message)
        self.work += 1 + <int> (len(message) // 512)
        self.messages_received += 1
        return message

    cdef object read_plain(self):
        """Read from the socket. Return the first message, and put the others into the inbox."""
        global is_in_use
        cdef Py_ssize_t got, position = 0
        cdef list messages
        if is_in_use or not 0 < self.read_size <= <Py_ssize_t> sizeof(shared_buffer):
            return None
        is_in_use = True
        try:
            got = recv(self.fd, shared_buffer, self.read_size, MSG_DONTWAIT)
            if got <= 0:  # the end or an error, which the next call gets, too
                return wait if got < 0 and errno == EAGAIN else None
            self.heard = True
            self.bytes_received += got
            self.drained = got < self.read_size
            first = take_frame(shared_buffer, &position, got, True, self.max_message_size)
            if position == got:  # as most often
                return first
            messages = []
            if first is not None:
                position = parse(shared_buffer, position, got, True, self.max_message_size, PY_SSIZE_T_MAX, messages)
            rest = PyBytes_FromStringAndSize(<char *> shared_buffer + position, got - position)
        finally:
            is_in_use = False
        if messages:
            if self.inbox is no_messages:
                self.inbox = deque()
            for message in messages:
                self.bytes_stored += memory_of(message)
            self.inbox.extend(messages)
        if rest:
            self.process(rest)
        if first is None and self.inbox:
            first = self.inbox.popleft()
            self.bytes_taken += memory_of(first)
        return first

    def put(self, message, binary=None):
        return self.do_put(message, binary)

    cdef bint do_put(self, message, binary) except -1:
        if binary is None and (self.plain_output or self.is_corked):
            if type(message) is str and self.put_plain(make_frame(TEXT, message, b"")):
                return True
            if type(message) is bytes and self.put_plain(make_frame(BINARY, message, b"")):
                return True
        return self.put_slowly(message, binary)

    def flush_if_kept(self):
        return PyByteArray_GET_SIZE(self.outbox) > 0 and self.flush()

    def put_frame(self, bytes whole not None):
        return self.put_plain(whole) or self.put_frame_slowly(whole)

    cdef bint put_plain(self, bytes whole) except -1:
        """Send a frame and return True, or do nothing and return False."""
        if self.is_over or not (self.plain_output or self.is_corked) or not self.write_lock.acquire():
            return False
        try:
            if not self.is_corked:
                if not (self.may_cork and self.inbox):
                    return self.send_plain(whole)
                self.is_corked = True
                self.plain_output = False
                self.cork()
            self.outbox += whole
            self.work += 1
            self.messages_sent += 1
            if not self.inbox or PyByteArray_GET_SIZE(self.outbox) > cork_size:
                self.send_corked()
            return True
        finally:
            self.write_lock.release()

    cdef int send_corked(self) except -1:
        """Send the output that is held back, with the write lock."""
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(self.outbox)
        cdef Py_ssize_t sent = send(
            self.fd, PyByteArray_AS_STRING(self.outbox), size, MSG_DONTWAIT | MSG_NOSIGNAL
        )
        if sent > 0:
            self.bytes_sent += sent
            del self.outbox[:sent]
        if sent == size:
            self.is_corked = False
            self.plain_output = True  # as it was before
        else:
            self.flush_now()
        return 0

    cdef bint send_plain(self, bytes whole) except -1:
        cdef Py_ssize_t sent = send(
            self.fd, PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole), MSG_DONTWAIT | MSG_NOSIGNAL
        )
        if sent < 0:  # the socket is full or broken, which the next call finds, too
            return False
        self.bytes_sent += sent
        if sent < PyBytes_GET_SIZE(whole):
            self.keep(whole[sent:])
        self.work += 1
        self.messages_sent += 1
        return True


def put_frame_to_all(list channels not None, bytes whole not None):
    cdef Channel channel
    cdef list rest = []
    for index, channel in enumerate(channels):
        if not channel.put_plain(whole):
            rest.append(index)
    return rest


def find_due(dict connections not None, double now):
    # It runs no Python code, so no other thread runs meanwhile, which could change the dictionary or a channel.
    cdef list due = []
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *connection
    cdef Channel channel
    while PyDict_Next(connections, &position, &key, &connection):
        channel = <Channel?> <object> key
        if not channel.accepted or not channel.is_receiving or channel.is_over or channel.outbox or now >= channel.due:
            due.append(<object> connection)
    return due
