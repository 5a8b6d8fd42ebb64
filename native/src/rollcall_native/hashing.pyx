# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Kafka's murmur2 of a key, which decides its partition. Source: `org.apache.kafka.common.utils.Utils.murmur2`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t


def murmur2(bytes key not None):
    """32 bits, not signed."""
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(key)
    cdef Py_ssize_t left = PyBytes_GET_SIZE(key)
    cdef uint32_t value = 0x9747B28Cu ^ <uint32_t>left
    cdef uint32_t word
    while left >= 4:
        word = p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24
        word *= 0x5BD1E995u
        word ^= word >> 24
        word *= 0x5BD1E995u
        value *= 0x5BD1E995u
        value ^= word
        p += 4
        left -= 4
    if left == 3:
        value ^= <uint32_t>p[2] << 16
    if left >= 2:
        value ^= <uint32_t>p[1] << 8
    if left >= 1:
        value ^= p[0]
        value *= 0x5BD1E995u
    value ^= value >> 13
    value *= 0x5BD1E995u
    value ^= value >> 15
    return value
