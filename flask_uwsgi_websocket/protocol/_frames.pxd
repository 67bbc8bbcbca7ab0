# cython: language_level=3
"""What ``connection/_channel.pyx`` calls without the interpreter."""

cdef enum:
    TEXT = 0x81    # with FIN
    BINARY = 0x82  # with FIN
    MASKED = 0x80
    NOT_ASCII = 0x80


cdef object take_frame(
    const unsigned char *start, Py_ssize_t *position, Py_ssize_t end, bint masked, Py_ssize_t max_size
)

cdef Py_ssize_t parse(
    const unsigned char *start,
    Py_ssize_t position,
    Py_ssize_t end,
    bint masked,
    Py_ssize_t max_size,
    Py_ssize_t most,
    list messages,
) except -1

cdef bytes make_frame(unsigned char first, payload, bytes mask)
