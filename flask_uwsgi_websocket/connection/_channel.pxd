# cython: language_level=3
"""What other compiled modules use of ``_channel.pyx`` without the interpreter."""


cdef class Lock:
    cdef unsigned long owner

    cdef bint acquire(self) noexcept
    cdef void release(self) noexcept


cdef class Channel:
    # Every method runs with the interpreter's lock, and its system calls do not wait.
    cdef readonly Lock read_lock, write_lock
    cdef public object inbox, abandoned, reader
    cdef public bytearray outbox
    cdef public int fd, work, waiting
    cdef public long long messages_received, messages_sent, bytes_received, bytes_sent, bytes_stored, bytes_taken
    cdef public Py_ssize_t read_size, max_message_size
    cdef public double due
    cdef public bint accepted, drained, has_rest, heard, plain_input, plain_output, may_cork, is_corked, is_over
    cdef public bint is_receiving, has_events

    cdef object do_receive(self, loop)
    cdef int do_begin_receive(self) except -1
    cdef bint do_is_on_a_run(self) noexcept
    cdef int do_enter_wait(self) noexcept
    cdef int do_leave_wait(self) except -1
    cdef object do_take(self)
    cdef object take_plain(self)
    cdef object read_plain(self)
    cdef bint do_put(self, message, binary) except -1
    cdef bint put_plain(self, bytes whole) except -1
    cdef int send_corked(self) except -1
    cdef bint send_plain(self, bytes whole) except -1
