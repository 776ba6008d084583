"""What a Redis must be set up to do before mailboxes are trusted to it."""

from __future__ import annotations

import contextlib

from services.broker.stores.redis_link import RedisLink
from services.common.core.errors import Reason, ServiceError

# The first with exclusive ranges of streams.
VERSION_MIN = (6, 2)


async def check_server(link: RedisLink, *, must_sync: bool) -> None:
    """Raise STORE_UNAVAILABLE, saying what to change, when this Redis could lose what it took.

    Its own replies count; a Redis whose operator forbids CONFIG is asked by INFO only.
    """
    facts = await link.call("INFO")
    version = tuple(int(part) for part in str(facts["redis_version"]).split(".")[:2])
    if version < VERSION_MIN:
        raise _refusal(
            f"Redis {facts['redis_version']} is too old: at least {VERSION_MIN[0]}.{VERSION_MIN[1]}"
        )
    if facts.get("role") != "master":
        raise _refusal("it is a replica, which takes no writes: name the primary in redis_address")
    if facts.get("maxmemory") and facts.get("maxmemory_policy") != "noeviction":
        raise _refusal(
            f"maxmemory-policy {facts.get('maxmemory_policy')} throws mailboxes away: set it to noeviction"
        )
    if not must_sync:
        return
    if not facts.get("aof_enabled"):
        raise _refusal("it keeps no append-only file: set appendonly yes, or redis_sync = 'server'")
    with contextlib.suppress(ServiceError):
        answer = await link.call("CONFIG GET", "appendfsync")
        policy = answer.get("appendfsync", answer.get(b"appendfsync", "always"))
        if policy not in ("always", b"always"):
            must_sync = False
    if not must_sync:
        raise _refusal("appendfsync is not 'always': set it so, or redis_sync = 'server'")


def _refusal(why: str) -> ServiceError:
    return ServiceError(Reason.STORE_UNAVAILABLE, f"this Redis can not hold mailboxes: {why}")
