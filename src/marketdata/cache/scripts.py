"""Names of the keys in Redis, and the two scripts that compare and set them in one step.

Keys of one symbol share a hash tag. A call for many symbols names keys of many tags at once,
which a single server takes and a Redis Cluster refuses.
"""

from __future__ import annotations

from typing import Final

from marketdata.codec import REVISION_OFFSET
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
# and not an error for a key of another type.
PUT_SCRIPT: Final = f"""
local stored = 0
for i = 1, #KEYS, 2 do
  local a = 3 * (i - 1) / 2 + 2
  local revision = tonumber(ARGV[a])
  local floor = tonumber(redis.call('MGET', KEYS[i])[1] or nil)
  local head = redis.pcall('GETRANGE', KEYS[i + 1], {REVISION_OFFSET}, {REVISION_OFFSET + 7})
  local held = type(head) == 'string' and #head == 8 and struct.unpack('<i8', head) or nil
  if not (floor and revision < floor) and not (held and revision < held) then
    redis.call('SET', KEYS[i], ARGV[a], 'PX', ARGV[1])
    redis.call('SET', KEYS[i + 1], ARGV[a + 2], 'PX', ARGV[a + 1])
    stored = stored + 1
  end
end
return stored
"""
"""KEYS: floor and block by turns. ARGV: the floors' ttl, then revision, ttl and bytes of each
block; times in milliseconds. Returns how many blocks were stored."""

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
