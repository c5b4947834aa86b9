"""Names of the keys in Redis, and the two scripts that compare and set them in one step.

Keys of one symbol share a hash tag. A call for many symbols names keys of many tags at once,
which a single server takes and a Redis Cluster refuses.
"""

from __future__ import annotations

from typing import Final

from marketdata.codec import REVISION_OFFSET, TAIL_REVISION
from marketdata.types import SeriesKey, Timeframe

KEY_VERSION: Final = 1
"""Part of every key, so that two releases with different blocks can share a server."""


def base_name(key: SeriesKey, base: Timeframe | None, epoch: int) -> str:
    """Return what the keys of the floor of a stored series and of all blocks from it begin with.

    The store's epoch is part of it: revisions of two stores cannot be compared.
    """
    return (
        f"md:{KEY_VERSION}:{{{key.symbol}}}:{epoch}:{key.provider}:{key.feed}:"
        f"{base or key.timeframe}"
    )


# Numbers in Lua are doubles: revisions compare exactly below 2**53. MGET, unlike GET, answers nil
# and not an error for a key of another type. What is held is the revision that ends the tail, else
# that of the block.
_HELD: Final = f"""
local function held(block, tail)
  local bytes = redis.pcall('GETRANGE', tail, {TAIL_REVISION[0]}, {TAIL_REVISION[1]})
  if bytes == '' then
    bytes = redis.pcall('GETRANGE', block, {REVISION_OFFSET}, {REVISION_OFFSET + 7})
  end
  return type(bytes) == 'string' and #bytes == 8 and struct.unpack('<i8', bytes) or nil
end
local function floor_of(key)
  return tonumber(redis.call('MGET', key)[1] or nil)
end
"""

PUT_SCRIPT: Final = f"""{_HELD}
local stored = 0
for i = 1, #KEYS, 3 do
  local a = i + 1
  local revision = tonumber(ARGV[a])
  local floor, there = floor_of(KEYS[i]), held(KEYS[i + 1], KEYS[i + 2])
  if not (floor and revision < floor) and not (there and revision < there) then
    redis.call('SET', KEYS[i], ARGV[a], 'PX', ARGV[1])
    redis.call('SET', KEYS[i + 1], ARGV[a + 2], 'PX', ARGV[a + 1])
    redis.call('UNLINK', KEYS[i + 2])
    stored = stored + 1
  end
end
return stored
"""
"""KEYS: floor, block and tail by turns. ARGV: the floors' ttl, then revision, ttl and bytes of each
block; times in milliseconds. Returns how many blocks were stored."""

# A tail is a key of its own because APPEND doubles the memory of the string it makes longer.
GROW_SCRIPT: Final = f"""{_HELD}
local sizes = {{}}
for i = 1, #KEYS, 3 do
  local a = 4 * (i - 1) / 3 + 1
  local floor, size = floor_of(KEYS[i]), 0
  if floor and floor <= tonumber(ARGV[a + 1])
      and held(KEYS[i + 1], KEYS[i + 2]) == tonumber(ARGV[a])
      and redis.call('PEXPIRE', KEYS[i + 1], ARGV[a + 2]) == 1 then
    size = redis.call('APPEND', KEYS[i + 2], ARGV[a + 3])
    redis.call('PEXPIRE', KEYS[i + 2], ARGV[a + 2])
  end
  sizes[#sizes + 1] = size
end
return sizes
"""
"""KEYS: floor, block and tail by turns. ARGV: revision before, revision, ttl in milliseconds and
record for each. Returns the length of each tail, 0 where nothing was appended."""

RAISE_SCRIPT: Final = """
for i = 1, #KEYS do
  local floor = tonumber(redis.call('MGET', KEYS[i])[1] or nil)
  if floor and floor >= tonumber(ARGV[i + 1]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
  else
    redis.call('SET', KEYS[i], ARGV[i + 1], 'PX', ARGV[1])
  end
end
return #KEYS
"""
"""KEYS: floors. ARGV: their ttl in milliseconds, then a revision for each."""
