"""One etcd lease for each agent instance that holds locks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

from services.common import logs
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import LeaseGoneError
from services.scheduler.core.model import InstanceKey

_log = logs.get("scheduler.leases")
#: Renewals in one time to live; two may fail before a lease is lost.
_RENEWALS_PER_TTL = 3
#: Leases renewed at once.
_RENEWALS_MAX = 32


class LockLeases:
    """Granted when an instance first holds a lock, renewed while `run` runs, revoked when it is gone."""

    def __init__(self, client: EtcdClient, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._leases: dict[InstanceKey, int] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def ids(self) -> Mapping[InstanceKey, int]:
        """The lease of each instance that has one."""
        return self._leases

    def adopt(self, instance: InstanceKey, lease_id: int) -> None:
        """Go on with a lease that an earlier leader granted."""
        self._leases[instance] = lease_id

    async def ensure(self, instances: Iterable[InstanceKey]) -> None:
        """Grant a lease to each instance that has none; raises STORE_UNAVAILABLE."""
        for instance in instances:
            if instance not in self._leases:
                lease = await self._client.lease_grant(self._ttl_s)
                self._leases[instance] = lease.lease_id

    async def drop_ended(self, instances: Iterable[InstanceKey]) -> None:
        """Forget the leases that etcd no longer knows; raises STORE_UNAVAILABLE."""
        for instance in instances:
            lease_id = self._leases.get(instance)
            if lease_id is not None and (await self._client.lease_state(lease_id)).remaining_s < 0:
                self._leases.pop(instance, None)

    def end(self, instance: InstanceKey) -> None:
        """Revoke an instance's lease, best effort: unrenewed it ends by itself."""
        lease_id = self._leases.pop(instance, None)
        if lease_id is not None:
            ending = asyncio.create_task(self._revoke(lease_id), name=f"revoke-{lease_id:x}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def run(self) -> None:
        """Renew every lease until cancelled; one that is gone is forgotten: the watch tells of its keys."""
        interval_s = self._ttl_s / _RENEWALS_PER_TTL
        limit = asyncio.Semaphore(_RENEWALS_MAX)

        async def renew(instance: InstanceKey, lease_id: int) -> None:
            async with limit:
                with self._client.keep_alive(lease_id) as stream:
                    try:
                        await stream.renew(interval_s)
                    except LeaseGoneError:
                        if self._leases.get(instance) == lease_id:
                            del self._leases[instance]
                    except ServiceError as error:
                        _log.warning("a lock lease was not renewed", instance=instance, why=error)

        try:
            while True:
                await asyncio.gather(
                    *(renew(instance, lease_id) for instance, lease_id in self._leases.items())
                )
                await asyncio.sleep(interval_s)
        finally:
            for ending in self._ending:
                ending.cancel()
            await asyncio.gather(*self._ending, return_exceptions=True)

    async def _revoke(self, lease_id: int) -> None:
        with contextlib.suppress(ServiceError):
            await self._client.lease_revoke(lease_id)
