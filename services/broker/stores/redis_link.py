"""Connections to one Redis, its errors in our words, and the one script through which everything is written.

Nothing is ever sent twice by itself: a commit whose answer is lost may have happened, and only `load` tells.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from typing import Any, NoReturn

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from services.broker.config import RedisSettings
from services.common.core.errors import Reason, ServiceError

# What Redis takes as the value of one argument; packed into commands, commands into one call of the script.
Argument = bytes | str | int
Command = Sequence[Argument]
# An entry of a stream: its id and its fields.
Entry = tuple[bytes, dict[bytes, bytes]]
# Arguments of one command inside the script; Lua can pass some 8,000.
ARGUMENTS_MAX = 1_000

# What a link that ends raises. The last is uvloop's word for writing to one that has just been reset; the
# library does not know it.
_AWAY = (RedisError, OSError, RuntimeError)

# Takes over: no smaller epoch gets here any more, and no commit of an earlier life is taken any more, not
# even one that was on its way when its sender lost touch. KEYS: meta. ARGV: epoch.
CLAIM = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < newest then
  return redis.error_reply('FENCED epoch ' .. newest .. ' has taken over')
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return redis.call('HINCRBY', KEYS[1], 'life', 1)
"""

# Runs commands if the life that they belong to still is the newest. KEYS: meta. ARGV: life, then for each
# command how many arguments it has and these. A script is atomic, and Redis refuses one for want of memory at
# its first write or not at all, so that a batch is there wholly or not at all.
WRITE = """
if redis.call('HGET', KEYS[1], 'life') ~= ARGV[1] then
  return redis.error_reply('FENCED life ' .. ARGV[1] .. ' is over')
end
local at, last = 2, #ARGV
while at <= last do
  local count = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
return 'OK'
"""


class RedisLink:
    """A pool of connections; see the module. Owned by the event loop."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client = _client(settings)
        # Names that Redis gave the scripts; it forgets them when it restarts.
        self._scripts: dict[str, str] = {}

    async def call(self, *command: Argument) -> Any:
        """Run one command and return its answer; raises DISK_FULL or STORE_UNAVAILABLE."""
        try:
            return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except _AWAY as error:
            await self._hang_up(error)
            _translate(error)

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands one behind the other in one round trip and return their answers."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            # An error as the pipeline would raise it shows the arguments of its command.
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        except _AWAY as error:
            await self._hang_up(error)
            _translate(error)
        for answer in answers:
            if isinstance(answer, RedisError):
                _translate(answer)
        return answers

    async def run(self, script: str, meta: str, *arguments: Argument) -> Any:
        """Run a script; raises as `call` does, and NOT_COORDINATOR when its caller's time is over.

        With `wait_replicas` it returns when as many replicas have what it wrote; STORE_UNAVAILABLE otherwise.
        """
        settings = self._settings
        while True:
            name = self._scripts.get(script) or await self._load(script)
            commands: list[Command] = [("EVALSHA", name, 1, meta, *arguments)]
            if settings.wait_replicas:
                # On the same connection: it waits for what was written there.
                commands.append(("WAIT", settings.wait_replicas, settings.wait_ms))
            try:
                answers = await self.call_all(commands)
            except _ScriptGoneError:
                # Certainly not run.
                del self._scripts[script]
                continue
            if settings.wait_replicas and answers[1] < settings.wait_replicas:
                raise ServiceError(
                    Reason.STORE_UNAVAILABLE,
                    f"{answers[1]} of {settings.wait_replicas} Redis replicas had a commit within"
                    f" {settings.wait_ms} ms: look at them, or lower redis_wait_replicas",
                )
            return answers[0]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _hang_up(self, error: Exception) -> None:
        """Let go of connections that the library takes for good although they are not."""
        if isinstance(error, RuntimeError):
            with contextlib.suppress(*_AWAY):
                await self._client.connection_pool.disconnect()

    async def _load(self, script: str) -> str:
        name: bytes | str = await self.call("SCRIPT LOAD", script)
        self._scripts[script] = name.decode() if isinstance(name, bytes) else name
        return self._scripts[script]


def pack(commands: Sequence[Command]) -> list[Argument]:
    """Return `commands` as the arguments of `WRITE` behind its life."""
    packed: list[Argument] = []
    for command in commands:
        packed.append(len(command))
        packed += command
    return packed


def in_parts(name: str, key: str, items: Sequence[Command]) -> list[Command]:
    """Return as many commands as it takes to give `items` to a command that takes any number of them."""
    if not items:
        return []
    step = ARGUMENTS_MAX // len(items[0])
    return [
        (name, key, *(part for item in items[start : start + step] for part in item))
        for start in range(0, len(items), step)
    ]


def entry_id(number: int) -> str:
    """Return the id of the stream entry that has a number of ours."""
    return f"{number}-1"


def entry_number(entry: bytes) -> int:
    """Return the number of the entry with this id."""
    return int(entry.partition(b"-")[0])


class _ScriptGoneError(Exception):
    """Redis does not know the script: it was restarted."""


def _client(settings: RedisSettings) -> Redis:
    options: dict[str, Any] = {}
    if settings.unix_path:
        options["unix_socket_path"] = settings.unix_path
    else:
        options |= {"host": settings.host, "port": settings.port}
    if settings.ca is not None:
        options |= {
            "ssl": True,
            "ssl_ca_certs": str(settings.ca),
            "ssl_certfile": None if settings.certificate is None else str(settings.certificate),
            "ssl_keyfile": None if settings.key is None else str(settings.key),
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    return Redis(
        username=settings.username or None,
        password=settings.password() or None,
        socket_timeout=settings.timeout_ms / 1000,
        socket_connect_timeout=settings.timeout_ms / 1000,
        # See the module: the library would repeat what it got no answer to.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **options,
    )


def _translate(error: Exception) -> NoReturn:
    text = str(error)
    if isinstance(error, NoScriptError):
        raise _ScriptGoneError from error
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        raise ServiceError(
            Reason.DISK_FULL, "Redis has no memory left: raise its maxmemory, or let receivers catch up"
        ) from error
    if text.startswith("MISCONF"):
        raise ServiceError(
            Reason.DISK_FULL, "Redis takes no writes because it can not save them: look at its disk and log"
        ) from error
    if text.startswith("FENCED"):
        raise ServiceError(
            Reason.NOT_COORDINATOR, f"another broker replica has taken over ({text[7:]})"
        ) from error
    kind = "answered" if isinstance(error, ResponseError) else "does not answer"
    raise ServiceError(
        Reason.STORE_UNAVAILABLE, f"Redis {kind}: {type(error).__name__}: {text[:200]}"
    ) from error
