# cython: language_level=3, boundscheck=False, wraparound=False
"""The compiled twin of numpy_planes: split and join 16-bit lanes at memory speed.

Owns two loops; everything about formats and errors is in planes.py. Built when a C compiler is
there, left out when not. The loops are plain C that gcc vectorizes; on glibc x86-64 the AVX2 copy
is chosen at load time, since a wheel is compiled for the oldest processor.
"""

from libc.stdint cimport uint8_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) \
        && !defined(__clang__)
    #define KVFS_CLONES __attribute__((target_clones("avx2", "default"), optimize("O3")))
    #else
    #define KVFS_CLONES
    #endif

    KVFS_CLONES static void kvfs_split(
        const uint8_t *restrict lanes, uint8_t *restrict exponents,
        uint8_t *restrict mantissas, size_t count)
    {
        for (size_t i = 0; i < count; i++) {
            uint8_t low = lanes[2 * i], high = lanes[2 * i + 1];
            exponents[i] = (uint8_t)((high << 1) | (low >> 7));
            mantissas[i] = (uint8_t)((low & 0x7f) | (high & 0x80));
        }
    }

    KVFS_CLONES static void kvfs_join(
        const uint8_t *restrict exponents, const uint8_t *restrict mantissas,
        uint8_t *restrict lanes, size_t count)
    {
        for (size_t i = 0; i < count; i++) {
            uint8_t exponent = exponents[i], mantissa = mantissas[i];
            lanes[2 * i] = (uint8_t)((mantissa & 0x7f) | (exponent << 7));
            lanes[2 * i + 1] = (uint8_t)((mantissa & 0x80) | (exponent >> 1));
        }
    }
    """
    void kvfs_split(const uint8_t *, uint8_t *, uint8_t *, size_t) nogil
    void kvfs_join(const uint8_t *, const uint8_t *, uint8_t *, size_t) nogil


def split_lanes(const uint8_t[::1] lanes, uint8_t[::1] exponents, uint8_t[::1] mantissas):
    """Part `lanes` (16-bit little-endian) into its exponent and mantissa bytes."""
    cdef Py_ssize_t count = exponents.shape[0]
    if mantissas.shape[0] != count or lanes.shape[0] != 2 * count:
        raise ValueError("plane lengths do not match")
    if count:
        with nogil:
            kvfs_split(&lanes[0], &exponents[0], &mantissas[0], count)


def join_lanes(const uint8_t[::1] exponents, const uint8_t[::1] mantissas, uint8_t[::1] lanes):
    """Undo split_lanes into `lanes`."""
    cdef Py_ssize_t count = exponents.shape[0]
    if mantissas.shape[0] != count or lanes.shape[0] != 2 * count:
        raise ValueError("plane lengths do not match")
    if count:
        with nogil:
            kvfs_join(&exponents[0], &mantissas[0], &lanes[0], count)
