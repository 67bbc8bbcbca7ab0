# cython: language_level=3
"""The functions of ``frames.py``, compiled. ``frames.py`` documents them.

Pointers read the bytes that a peer has sent, never subscripts of Python objects. A comparison before each access proves
its bounds, and a comment at the comparison names what it proves. Lengths and positions are signed and compared by
subtraction, so that no sum can overflow.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8, PyUnicode_New
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    # The first two do not check that their argument is a str.
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_ssize_t PyNumber_AsSsize_t(object number, void *overflow) except? -1

cdef int read_mask(bytes mask, uint32_t *key) except -1:
    if PyBytes_GET_SIZE(mask) != 4:
        raise ValueError("a mask has four bytes")
    memcpy(key, PyBytes_AS_STRING(mask), 4)
    return 0


cdef unsigned char copy_masked(
    unsigned char *target, const unsigned char *source, Py_ssize_t size, uint32_t mask
) noexcept nogil:
    """Copy *size* bytes, masked, and return the bitwise OR of the copied bytes.

    memcpy() moves the words, because they may be unaligned. The compiler turns it into loads and stores.
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
    for i in range(<int> size):  # at most 7 bytes; in memory, the key is the mask twice
        target[i] = source[i] ^ (<unsigned char *> &key)[i]
        seen_bytes |= target[i]
    seen |= seen >> 32
    seen |= seen >> 16
    seen |= seen >> 8
    return <unsigned char> seen | seen_bytes


cdef str unmask_text(const unsigned char *source, Py_ssize_t size, uint32_t mask):
    """Unmask and decode UTF-8."""
    # Most text is ASCII, whose bytes are those of the str. Other text is decoded from the unmasked bytes.
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
    # A number above the largest Py_ssize_t counts as the largest.
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
    while most > 0:
        message = take_frame(start, &position, end, masked, max_size)
        if message is None:
            break
        messages.append(message)
        most -= 1
    return position


cdef object take_frame(
    const unsigned char *start, Py_ssize_t *position, Py_ssize_t end, bint masked, Py_ssize_t max_size
):
    """Return the message that starts at *position*, and move this behind it; or None, as ``take_messages()`` stops."""
    cdef Py_ssize_t length, payload
    cdef uint32_t key = 0
    cdef unsigned char first
    if end - position[0] < 2:  # proves position and position + 1
        return None
    payload = position[0] + 2
    first = start[payload - 2]
    if first != TEXT and first != BINARY:
        return None
    length = start[payload - 1] ^ (MASKED if masked else 0)
    if length == 126 and end - payload >= 2:  # proves payload and payload + 1
        length = start[payload] << 8 | start[payload + 1]
        payload += 2
        if length < 126:
            return None
    elif length > 125:
        return None
    if masked:
        payload += 4
    if length > end - payload or length > max_size:  # proves the mask, as length >= 0, and the payload
        return None
    if masked:
        memcpy(&key, start + payload - 4, 4)
    if first == BINARY:
        message = unmask_bytes(start + payload, length, key)
    else:
        try:
            message = unmask_text(start + payload, length, key)
        except UnicodeDecodeError:
            return None
    position[0] = payload + length
    return message


def frame(unsigned char first, payload, bytes mask not None=b""):
    return make_frame(first, payload, mask)


cdef bytes make_frame(unsigned char first, payload, bytes mask):
    cdef uint32_t key = 0  # XOR with 0 changes nothing
    cdef Py_buffer view
    if mask:
        read_mask(mask, &key)
    if isinstance(payload, str):
        if PyUnicode_IS_ASCII(payload):
            return build(first, PyUnicode_1BYTE_DATA(payload), PyUnicode_GET_LENGTH(payload), mask, key)
        # PyUnicode_AsUTF8AndSize() would keep a copy in the application's str as long as that str lives.
        payload = PyUnicode_AsUTF8String(payload)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        return build(first, <const unsigned char *> view.buf, view.len, mask, key)
    finally:
        PyBuffer_Release(&view)


cdef bytes build(unsigned char first, const unsigned char *payload, Py_ssize_t length, bytes mask, uint32_t key):
    cdef Py_ssize_t extended = 0 if length < 126 else 2 if length < 65536 else 8
    cdef Py_ssize_t masking = PyBytes_GET_SIZE(mask)
    # The result has exactly the size of header and payload. No object is so large that the sum could overflow.
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
