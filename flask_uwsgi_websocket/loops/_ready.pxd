# cython: language_level=3
"""What other compiled modules use of ``_ready.pyx`` without the interpreter."""


cdef class Parked:
    cdef public bint reads_to_the_end
    cdef public int state
    cdef public object context
