"""The newest indicator values in Redis: a ring a series, added to in place, under the bars' floors.

A block counts only while nothing newer is known: its bars' revision is not below the floor of
their base series, which the store's writer raises before each commit, nor its knowledge of
corporate actions below their mark, which is raised before new ones are recorded. Either one lost
(evicted, flushed) makes it a miss.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import batched
from typing import Final

from marketdata.cache.redis_cache import RedisCache
from marketdata.cache.scripts import KEY_VERSION, base_name
from marketdata.indicator_codec import CAPACITY, HEADER_BYTES, SUMMED_BYTES, BlockFormat
from marketdata.indicator_values import Steps, Tail
from marketdata.types import SeriesKey, Timeframe

_log = logging.getLogger(__name__)

_MARK_TTL_MS: Final = 3 * 86_400_000
# What is current is decided by calendar, clock and floors: this outlives a night and a weekend, so
# that Monday's first record finds Friday's, and bounds memory.
_BLOCK_TTL_MS: Final = _MARK_TTL_MS - 3_600_000
_BLOCKS_A_CALL: Final = 64
_STEPS_A_CALL: Final = 250
_BLOCKS_REMEMBERED: Final = 64

# Bytes 24 to 48 of a header are revision, actions and newest timestamp (Lua counts from 1).
_SCRIPT: Final = f"""
local function number(text)
  return tonumber(text or nil)
end
local function guards(floor_key, mark_key)
  local both = redis.call('MGET', floor_key, mark_key)
  return number(both[1]), number(both[2])
end
local function head_of(key)
  local head = redis.pcall('GETRANGE', key, 0, {HEADER_BYTES - 1})
  if type(head) == 'string' and #head == {HEADER_BYTES} then
    return head, struct.unpack('<i8i8i8', head, 25)
  end
end
local function set_guards(floor_key, mark_key, revision, actions, ttl)
  redis.call('SET', floor_key, string.format('%.0f', revision), 'PX', ttl)
  redis.call('SET', mark_key, string.format('%.0f', actions), 'PX', ttl)
end
"""
_PUT_SCRIPT: Final = f"""{_SCRIPT}
local stored = 0
for i = 1, #KEYS, 3 do
  local given = ARGV[3 + (i - 1) / 3]
  local revision, actions = struct.unpack('<i8i8', given, 25)
  local floor, mark = guards(KEYS[i], KEYS[i + 1])
  local head, held_revision, held_actions = head_of(KEYS[i + 2])
  local newer = head and string.sub(head, 1, 8) == string.sub(given, 1, 8)
      and (held_revision > revision or held_actions > actions)
  if not (newer or (floor and revision < floor) or (mark and actions < mark)) then
    set_guards(KEYS[i], KEYS[i + 1], revision, actions, ARGV[1])
    redis.call('SET', KEYS[i + 2], given, 'PX', ARGV[2])
    stored = stored + 1
  end
end
return stored
"""
"""KEYS: floor, mark and block by turns. ARGV: ttl of floors and of blocks in milliseconds, then
the blocks. Returns how many were stored."""

_STEP_SCRIPT: Final = f"""{_SCRIPT}
local done = {{0, 0, 0, 0}}
for i = 1, #KEYS, 3 do
  local a = 3 + 2 * (i - 1) / 3
  local given, known = ARGV[a], tonumber(ARGV[a + 1])
  local revision, actions, last = struct.unpack('<i8i8i8', given, 25)
  local record = string.sub(given, {SUMMED_BYTES + 1})
  local floor, mark = guards(KEYS[i], KEYS[i + 1])
  local head, held_revision, held_actions, held_last = head_of(KEYS[i + 2])
  local same = head and string.sub(head, 1, 8) == string.sub(given, 1, 8)
      and string.sub(head, 13, 24) == string.sub(given, 13, 24)
  local basis = same and string.sub(head, 65, 72) == string.sub(given, 65, 72)
  local result
  if (floor and revision < floor) or (mark and actions < mark)
      or (same and (held_revision > revision or held_actions > actions)) then
    result = 1
  elseif basis and held_revision == revision and held_last == last and held_actions == actions then
    result = 2
  else
    local place
    if basis and held_last == last and (held_revision == known or held_revision == revision) then
      place = struct.unpack('<I4', head, {SUMMED_BYTES + 1})
    elseif basis and held_revision == known and #record > 0
        and held_last == struct.unpack('<i8', record, 17) then
      place = (struct.unpack('<I4', head, {SUMMED_BYTES + 1}) + 1) % {CAPACITY}
    end
    if place then
      redis.call('SETRANGE', KEYS[i + 2], 0,
                 string.sub(given, 1, {SUMMED_BYTES}) .. struct.pack('<I4I4', place, 0))
      if #record > 0 then
        redis.call('SETRANGE', KEYS[i + 2], {HEADER_BYTES} + place * #record, record)
      end
      redis.call('PEXPIRE', KEYS[i + 2], ARGV[2])
      result = 3
    elseif #record > 0 then
      redis.call('SET', KEYS[i + 2], string.sub(given, 1, {SUMMED_BYTES}) ..
                 struct.pack('<I4I4', 0, 0) .. record .. string.rep('\\0', {CAPACITY - 1} * #record),
                 'PX', ARGV[2])
      result = 4
    else
      result = 1
    end
    if result > 2 then
      set_guards(KEYS[i], KEYS[i + 1], revision, actions, ARGV[1])
    end
  end
  done[result] = done[result] + 1
end
return done
"""
"""KEYS: floor, mark and block by turns. ARGV: ttl of floors and of blocks in milliseconds,
then header with record, and the known revision, for each. Returns how many were refused, there
already, added to, and begun anew."""


class IndicatorCache:
    """Blocks of the newest indicator values, beside the blocks of bars. No method raises for a
    Redis that is down or full of rubbish.

    Parameters
    ----------
    cache : RedisCache
        The connection, its breaker and its floors.
    columns : sequence of str
        Names of the values in each record.
    """

    def __init__(self, cache: RedisCache, columns: Sequence[str]) -> None:
        self._cache = cache
        self.columns = tuple(columns)
        self._format: BlockFormat | None = None
        self._last: OrderedDict[tuple[SeriesKey, Timeframe | None], tuple[bytes, Tail]] = (
            OrderedDict()
        )

    def _blocks(self) -> BlockFormat:
        if self._format is None:
            self._format = BlockFormat(self.columns, self._cache.epoch)
        return self._format

    def _decoded(self, data: bytes, key: SeriesKey, base: Timeframe | None) -> Tail | None:
        """Decode, or return the tail these very bytes gave last time, as `RedisCache` does."""
        last = self._last.get((key, base))
        if last is not None and last[0] == data:
            return last[1]
        tail = self._blocks().decode(data, key, base)
        if tail is not None:
            self._last[key, base] = (data, tail)
            if len(self._last) > _BLOCKS_REMEMBERED:
                self._last.popitem(last=False)
        return tail

    def get(
        self, keys: Sequence[SeriesKey], base: Timeframe | None = None
    ) -> dict[SeriesKey, Tail]:
        """Return the valid blocks of series derived from the stored ones of timeframe `base`
        (None: of the key's own timeframe).

        Whatever is absent, of another store or release, below its floor or mark, or without one,
        is left out; what is damaged is removed as well. The arrays are read-only; the same object
        is returned while a block has not changed.
        """
        found: dict[SeriesKey, Tail] = {}
        damaged: list[str] = []
        for part in batched(keys, _BLOCKS_A_CALL):
            names = self._names(part, [base] * len(part))
            answer = self._cache.ask("MGET", *names)
            if answer is None:
                break
            for at, key in enumerate(part):
                floor, mark, data = answer[3 * at : 3 * at + 3]
                if data is None:
                    continue
                tail = self._decoded(data, key, base)
                if tail is None:
                    damaged.append(names[3 * at + 2])
                elif _reaches(tail.revision, floor) and _reaches(tail.actions_us, mark):
                    found[key] = tail
        if damaged:
            _log.warning(
                "removing %d damaged blocks from Redis, the first is %s", len(damaged), damaged[0]
            )
            self._cache.ask("UNLINK", *damaged)
        return found

    def put(self, tails: Mapping[SeriesKey, Tail]) -> int:
        """Store whole blocks; return how many were. A block never replaces one of a higher
        revision or a later knowledge of actions, nor goes below its floor or mark, which it
        raises to its own."""
        stored = 0
        blocks = self._blocks()
        for part in batched(tails, _BLOCKS_A_CALL):
            names = self._names(part, [tails[key].base for key in part])
            data = [blocks.encode(tails[key], key) for key in part]
            answer = self._cache.ask(
                "EVAL", _PUT_SCRIPT, len(names), *names, _MARK_TTL_MS, _BLOCK_TTL_MS, *data
            )
            if answer is None:
                break
            stored += int(answer)
        return stored

    def step(self, steps: Steps) -> int:
        """Add one record to each block, or revise its newest one; return how many blocks hold it.

        Earlier records stay only in a block of exactly the revision that the step knows and of
        the same action version; any other begins anew with this record alone. A block of a higher
        revision or a later knowledge of actions is left as it is.
        """
        held = 0
        data = self._blocks().encode_steps(steps)
        known = steps.known_revision.tolist()
        keys = steps.records.keys
        for part in batched(range(len(keys)), _STEPS_A_CALL):
            names = self._names([keys[n] for n in part], [steps.bases[n] for n in part])
            arguments: list[bytes | int] = []
            for n in part:
                arguments += (data[n], known[n])
            answer = self._cache.ask(
                "EVAL", _STEP_SCRIPT, len(names), *names, _MARK_TTL_MS, _BLOCK_TTL_MS, *arguments
            )
            if answer is None:
                break
            held += sum(answer[1:])
        return held

    def _names(self, keys: Sequence[SeriesKey], bases: Sequence[Timeframe | None]) -> list[str]:
        """Return floor, mark and block by turns."""
        epoch = self._cache.epoch
        kind = f"ind{self._blocks().signature:08x}"  # so that releases with other values coexist
        names: list[str] = []
        for key, base in zip(keys, bases, strict=True):
            start = base_name(key, base, epoch)
            mark = _mark(key.provider, key.symbol, epoch)
            names += (f"{start}:floor", mark, f"{start}:{key.timeframe}:{kind}")
        return names


def announce_actions(
    cache: RedisCache, provider: str, symbols: Sequence[str], asked_us: int
) -> None:
    """Make every block that knows these symbols' corporate actions as of an earlier moment a miss,
    before what was asked at `asked_us` is recorded. Where Redis cannot be reached this is made
    good when it comes back, before anything is read from it."""
    epoch = cache.epoch
    cache.raise_marks({_mark(provider, symbol, epoch): asked_us for symbol in symbols})


def _mark(provider: str, symbol: str, epoch: int) -> str:
    return f"md:{KEY_VERSION}:{{{symbol}}}:{epoch}:{provider}:actions"


def _reaches(number: int, mark: bytes | None) -> bool:
    try:
        return mark is not None and number >= int(mark)
    except ValueError:
        return False
