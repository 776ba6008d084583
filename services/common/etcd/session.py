"""A lease kept alive, which knows by its own clock when it may have ended.

Method: etcd's `client/v3/concurrency/session.go`, with the holder's own judgement added: etcd counts a
lease's time from when it *handles* a renewal, so a holder that counts from when it *sent* the request always
gives up first, even after it was stopped (SIGSTOP, a suspended machine) and wakes in the belief that it
still holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from services.common import logs
from services.common.clock import Clock
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import LeaseGoneError

_log = logs.get("etcd.session")
# Time to live of a session's lease in seconds: how long after a crash its keys stay. etcd's minimum is
# 1.5 election timeouts, 2 s with its defaults.
SESSION_TTL_S = 3
# Renewals in one time to live; two may fail before the lease is lost.
_RENEWALS_PER_TTL = 3
# The last share of the time to live is not used: clocks that run at different rates, timers that ring late.
_MARGIN_SHARE = 0.1
# Pause between renewals that failed, and between tries to open a session, in milliseconds.
_RETRY_BASE_MS = 50
_RETRY_MAX_MS = 1_000


class EtcdSession:
    """One lease; once lost it stays lost, and its owner opens another session.

    `live` is the question to ask before acting; `lost` is the event to wait for.
    """

    def __init__(self, client: EtcdClient, clock: Clock, lease_id: int, ttl_s: int, granted_ms: int) -> None:
        self.client = client
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        # Set once, when the lease has ended or may have ended.
        self.lost = asyncio.Event()
        self._clock = clock
        self._usable_ms = int(ttl_s * 1_000 * (1 - _MARGIN_SHARE))
        self._interval_ms = ttl_s * 1_000 // _RENEWALS_PER_TTL
        # Monotonic milliseconds: until then the lease certainly lives. Owned by the renewing task.
        self._live_until_ms = granted_ms + self._usable_ms
        self._renewing = asyncio.create_task(self._renew_until_lost(), name=f"etcd-session-{lease_id:x}")

    @classmethod
    async def open(cls, client: EtcdClient, clock: Clock, *, ttl_s: int = SESSION_TTL_S) -> Self:
        """Grant a lease and keep it alive until `close`; raises STORE_UNAVAILABLE."""
        asked_ms = clock.monotonic_ms()
        lease = await client.lease_grant(ttl_s)
        return cls(client, clock, lease.lease_id, lease.ttl_s, asked_ms)

    def __repr__(self) -> str:
        return f"<EtcdSession {self.lease_id:x} {'live' if self.live else 'lost'}>"

    @property
    def live(self) -> bool:
        """Whether the lease certainly exists now; false from the first moment at which it might not."""
        return not self.lost.is_set() and self._clock.monotonic_ms() < self._live_until_ms

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop renewing and revoke the lease, so that nobody waits for its end.

        Best effort: when etcd cannot be reached within the time to live, the lease ends by itself.
        """
        self.lost.set()
        self._renewing.cancel()
        await asyncio.wait((self._renewing,))
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(self.ttl_s):
                await self.client.lease_revoke(self.lease_id)

    async def _renew_until_lost(self) -> None:
        try:
            with self.client.keep_alive(self.lease_id) as stream:
                await asyncio.sleep(self._interval_ms / 1_000)
                failures = 0
                while (left_ms := self._live_until_ms - self._clock.monotonic_ms()) > 0:
                    sent_ms = self._clock.monotonic_ms()
                    try:
                        # A member that does not answer within one interval is left for another one.
                        await stream.renew(min(self._interval_ms, left_ms) / 1_000)
                    except LeaseGoneError:
                        return
                    except ServiceError:
                        failures += 1
                        pause_ms = backoff_ms(failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS)
                    else:
                        if not self.live:
                            # Somebody may have been told "not live" meanwhile: no way back.
                            return
                        failures = 0
                        self._live_until_ms = sent_ms + self._usable_ms
                        pause_ms = self._interval_ms
                    left_ms = self._live_until_ms - self._clock.monotonic_ms()
                    await asyncio.sleep(max(0, min(pause_ms, left_ms)) / 1_000)
        finally:
            if not self.lost.is_set():
                self.lost.set()
                _log.warning("lost a session in etcd", lease=f"{self.lease_id:x}")


async def sessions(
    client: EtcdClient, clock: Clock, *, ttl_s: int = SESSION_TTL_S
) -> AsyncGenerator[EtcdSession, None]:
    """Yield a live session each time one is asked for; the one before is closed.

    For owners of keys that must be there again after a loss:
    `async for session in sessions(...): put the keys; await session.lost.wait()`.
    Waits, with backoff, for as long as etcd is away. Close the iterator to revoke the last session
    (`contextlib.aclosing`).
    """
    failures = 0
    while True:
        try:
            session = await EtcdSession.open(client, clock, ttl_s=ttl_s)
        except ServiceError:
            failures += 1
            pause_ms = backoff_ms(failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS)
            await asyncio.sleep(pause_ms / 1_000)
            continue
        failures = 0
        async with session:
            yield session
