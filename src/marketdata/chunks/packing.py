"""Rows of whole numbers as planes of bytes: what compresses well and unpacks without a loop."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketdata.types import Floats, Int64s

type Whole = NDArray[np.integer[Any]]

CONSTANT, SCALED, SINGLE, BITS = range(4)
"""How a column is kept: one value for all bars; whole numbers over a power of ten; the same, and
the quotient rounded to a 32-bit float (so Yahoo keeps prices); the bits of each value."""


class Segment(NamedTuple):
    """How one row is packed: `planes` bytes a number, and ``number = unpacked + bias``."""

    kind: int = SCALED
    planes: int = 0
    exponent: int = 0
    bias: int = 0
    base: int = 0
    """The column's own: the unit of time, the first close, the bits of a constant."""


class Packed(NamedTuple):
    """A row and how to unpack it."""

    segment: Segment
    data: bytes


def pack(numbers: NDArray[np.uint64], **how: int) -> Packed:
    """Pack numbers from 0 to 2**64 - 1; zeros alone take nothing."""
    top = int(numbers.max()) if len(numbers) else 0
    planes = (top.bit_length() + 7) // 8
    octets = np.ascontiguousarray(numbers, "<u8").view(np.uint8).reshape(-1, 8)
    return Packed(Segment(planes=planes, **how), octets[:, :planes].T.tobytes())


def pack_signed(numbers: Int64s, **how: int) -> Packed:
    """Pack numbers of either sign, none beyond 2**52."""
    least, most = int(numbers.min()), int(numbers.max())
    if least >= 0:
        bias = 0
    elif most - least < 256:
        bias = least
    else:
        # Small numbers of either sign share their upper bytes, which then compress to nothing.
        bias = least - (least + 128) % 256
    return pack((numbers - bias).view(np.uint64), bias=bias, **how)


def pack_bits(values: Floats) -> Packed:
    """Pack the bits of floats, each xor the one before: neighbours share sign and exponent."""
    bits = np.ascontiguousarray(values, "<f8").view(np.uint64)
    changed = bits.copy()
    changed[1:] ^= bits[:-1]
    return pack(changed, kind=BITS)


def unpack(planes: NDArray[np.uint8]) -> Whole:
    """Return the numbers whose bytes are the columns of `planes`, in a narrow type that holds them;
    a view where it can be."""
    most, count = planes.shape
    if most == 1:
        return planes.reshape(-1)
    if most in _SHIFTED:
        return _shifted(planes)
    width = _WIDTHS[most]
    matrix = (np.empty if width == most else np.zeros)((count, width), np.uint8)
    for place, plane in enumerate(planes):
        matrix[:, place] = plane
    return matrix.reshape(-1).view(_TYPES[width])


def _shifted(planes: NDArray[np.uint8]) -> Whole:
    """Shift in plane after plane, from the highest down: for few of them quicker than laying bytes
    side by side, which no vector instruction does. Each is widened first: numpy is slow where two
    types meet in one operation."""
    wide = _SHIFTED[len(planes)]
    numbers: NDArray[Any] = planes[-1].astype(wide)
    for plane in planes[-2::-1]:
        numbers <<= _OCTET
        numbers |= plane.astype(wide)
    return numbers


def unpack_bits(numbers: Whole) -> Floats:
    """Return the floats of `pack_bits`."""
    bits = numbers.astype(np.uint64)
    np.bitwise_xor.accumulate(bits, out=bits)
    return bits.view(np.float64)


# Three bytes fit a signed number too, which becomes a float in half the time.
_SHIFTED: Final = {2: np.uint16, 3: np.int32, 4: np.uint32}
_OCTET: Final = np.uint8(8)
_WIDTHS: Final = (1, 1, 2, 4, 4, 8, 8, 8, 8)
_TYPES: Final = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
