"""The sealed chunk: settled bars of one series as the bytes that the store keeps for good.

Lossless: every float64 comes back bit for bit, whatever it is. Layout, little endian::

    0    4s     magic  b"mdck"
    4    u16    layout version
    6    u16    columns (7)
    8    u32    CRC-32 of everything from byte 12 on
    12   u32    bars, at least 1
    16   i64    label of the first bar, microseconds UTC
    24   i64    label of the last bar
    32   u32    patches: values kept beside their column
    36   u32    runs of equal revision
    40   12 x 20 bytes: how each segment is packed, see `packing.Segment`
    280         payload, one LZ4 block of all segments

The segments, in this order: steps of time; close, open, high, low, volume, vwap, trade count;
places of patches, patches; lengths of runs, revisions of runs. Each is a row of whole numbers, all
their lowest bytes first, then all their second bytes, and so on (the byte shuffle of Blosc and
HDF5), as many planes as the largest of them needs.

A float column is kept as whole numbers where ``number / 10**exponent`` gives every value back bit
for bit, which is tried out on every value: IEEE 754 rounds both a vendor's decimal and this
division correctly, so that they meet. What does not come back (a tenth of a cent among cents, NaN,
-0.0) is a patch: its place and its bits. A column with too many of those is kept as bits, each xor
the one before. Prices are small differences: close from the close before, open from that same
close, high and low from open and close, vwap from the middle of high and low.

Why not Arrow IPC: its buffers compress whole values, which takes more than twice the room, and
every chunk repeats a schema. Never pickle: these bytes come from a server that others may write
to. The same bars give the same bytes under the same LZ4. Pure.
"""

from marketdata.chunks.decoding import Chunk, decode_bars, decode_chunk, decode_chunks
from marketdata.chunks.encoding import encode_chunk

__all__ = [
    "Chunk",
    "decode_bars",
    "decode_chunk",
    "decode_chunks",
    "encode_chunk",
]
