"""The fast tier: the newest bars of each series in Redis."""

from marketdata.cache.breaker import Breaker
from marketdata.cache.redis_cache import CacheInfo, CacheStats, RedisCache

__all__ = ["Breaker", "CacheInfo", "CacheStats", "RedisCache"]
