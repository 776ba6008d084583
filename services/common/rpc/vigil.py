"""A standby's vigil beside the leader: when the leader's process is gone, nobody waits for its lease to end.

A lease says after seconds that its holder is silent. A process that dies says so at once: its kernel ends its
connections and refuses new ones. So a standby keeps a call open to the leader's health service. When that
ends, and the leader's address then refuses connections again and again, the leadership is taken away
(`Election.depose`), as the end of its lease would have done.

Only what is certain counts. A host that is silent, an address that cannot be resolved, a leader that was
never reached during this leadership (a network that lets nobody through looks like a dead process): the lease
decides, as ever. And certainty is not needed for safety: a leader that was deposed by mistake notices that
its key is gone, and every write that it still tries fails at its guard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import logs
from services.common.core.errors import ServiceError
from services.common.election import Election, Leader
from services.common.rpc.channel import make_channel
from services.common.tls import TlsIdentity

_log = logs.get("vigil")
#: How often in a row an address must refuse before its process counts as gone, of how many tries, and the
#: pause between, in milliseconds. A process that dies closes its sockets one by one: its listener may outlive
#: our call by a moment. And a listener that is opened again after a moment was not gone.
_REFUSALS = 3
_TRIES = 10
_PAUSE_MS = 50
#: How long one attempt to connect may take, and the pause before the leader is called again.
_CONNECT_MS = 1_000
_AGAIN_MS = 1_000


class Vigil:
    """One replica's watch over whoever leads. Run `run` as a supervised loop.

    `address_of` reads the leader's host:port from what it campaigned with; empty when it says none. `own` is
    this replica's address: nobody watches himself.
    """

    def __init__(
        self,
        election: Election,
        tls: TlsIdentity,
        service: str,
        *,
        address_of: Callable[[bytes], str],
        own: Callable[[], str],
    ) -> None:
        self._election, self._tls, self._service = election, tls, service
        self._address_of, self._own = address_of, own
        #: Whether the leader of now has answered this replica; only such a one can be seen to go.
        self.reached = False

    async def run(self) -> None:
        """Watch one leader after the other until cancelled."""
        async with asyncio.TaskGroup() as group, contextlib.aclosing(self._election.observe()) as leaders:
            watching: asyncio.Task[None] | None = None
            async for leader in leaders:
                if watching is not None:
                    watching.cancel()
                    watching = None
                address = "" if leader is None else self._address_of(leader.value)
                if leader is not None and address not in ("", self._own()):
                    watching = group.create_task(self._watch(leader, address), name=f"vigil-{leader.epoch}")

    async def _watch(self, leader: Leader, address: str) -> None:
        """Return when the leader is gone and deposed; cancelled when somebody else leads."""
        self.reached = gone = False
        while not gone:
            await self._call(address)
            gone = self.reached and await is_gone(address)
            if not gone:
                await asyncio.sleep(_AGAIN_MS / 1_000)
        _log.warning(
            "the leader's process is gone: taking its lead away", address=address, epoch=leader.epoch
        )
        while True:
            try:
                await self._election.depose(leader)
                return
            except ServiceError as error:
                _log.warning("the leader could not be deposed yet", error=error)
                await asyncio.sleep(_AGAIN_MS / 1_000)

    async def _call(self, address: str) -> None:
        """Call the leader; return when the call has ended, or there could be none."""
        channel = make_channel(address, self._tls, self._service)
        try:
            call: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async for _ in call:
                self.reached = True
        except grpc.aio.AioRpcError:
            # However it ended, the address says more.
            pass
        finally:
            await channel.close(None)


async def is_gone(address: str) -> bool:
    """Return whether nobody listens at "host:port", as its host says itself, several times in a row."""
    host, _, port = address.rpartition(":")
    refusals = 0
    for _ in range(_TRIES):
        try:
            async with asyncio.timeout(_CONNECT_MS / 1_000):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            refusals += 1
        except (OSError, TimeoutError, ValueError):
            # Silence, no such name, no route: not an answer of the host that the process was on.
            return False
        else:
            writer.close()
            refusals = 0
        if refusals == _REFUSALS:
            return True
        await asyncio.sleep(_PAUSE_MS / 1_000)
    return False
