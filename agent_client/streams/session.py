"""The Session stream: this agent's life at the registry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as registry
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from agent_client.core.retry import Reconnect
from agent_client.core.session import SessionCore
from agent_client.link import Profile
from agent_client.streams.discovery import Discovery
from agent_client.streams.duplex import Duplex, keep_open, monotonic_ms
from agent_client.streams.load import LoadMeter
from agent_client.tls import Dialer
from agent_client.wire import VERSIONS, session_welcome

log = logging.getLogger("agent_client")

# Seconds that the registry has to end the session after the farewell.
GOODBYE_S = 2.0
# A newer process runs as the same instance: going on would take the instance back and forth between them.
_ALSO_FATAL = frozenset({"INCARNATION_FENCED"})


class SessionStream:
    """Keeps one session alive across links; `on_incarnation` is called when a new incarnation begins."""

    def __init__(
        self,
        dialer: Dialer,
        discovery: Discovery,
        profile: Profile,
        load: LoadMeter,
        on_incarnation: Callable[[], None],
    ) -> None:
        self._dialer, self._discovery, self._profile, self._load = dialer, discovery, profile, load
        self._on_incarnation = on_incarnation
        self._core = SessionCore()
        self._reconnect = Reconnect(also_fatal=_ALSO_FATAL)
        self._wake = asyncio.Event()
        # (sequence number, perf_counter_ns) of the newest heartbeat, for the round trip.
        self._beat_sent = (0, 0)
        self._drain_due = self._farewell_due = self._farewell_said = False
        self._left = asyncio.Event()
        self.open = asyncio.Event()

    @property
    def incarnation(self) -> int:
        """The current incarnation; 0 before the first welcome."""
        return self._core.incarnation

    def hurry(self) -> None:
        """Send the report soon."""
        self._core.hurry()
        self._wake.set()

    def drain(self) -> None:
        """Tell the registry that this agent takes nothing new."""
        self._drain_due = True
        self._wake.set()

    async def run(self) -> None:
        """Keep the session until cancelled; raises MusterError when there is no use in going on."""
        await keep_open("session at the registry", self._live, self._reconnect)

    async def leave(self) -> None:
        """Say farewell, so that the registry need not wait for the lease to end; at most `GOODBYE_S` long."""
        if not self.open.is_set():
            return
        self._farewell_due = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._left.wait()

    async def _live(self, _hint: str) -> None:
        address = self._discovery.next_registry()
        channel = await self._dialer.open("registry", address)
        try:
            duplex: Duplex[registry.SessionRequest, registry.SessionResponse]
            duplex = Duplex.begin(RegistryServiceStub(channel).Session, self._wake)
            self._welcomed(await duplex.greet(self._hello()), address)
            await duplex.converse(self)
        finally:
            self.open.clear()
            await channel.close(None)
            if self._farewell_due:
                # The registry ended the stream after the farewell, or it broke: either way there is nothing
                # left to say, and no session to open again.
                self._left.set()
                await asyncio.Event().wait()

    def _hello(self) -> registry.SessionRequest:
        profile = self._profile
        return registry.SessionRequest(
            hello=registry.SessionHello(
                versions=VERSIONS,
                agent_id=profile.name,
                instance_id=profile.instance,
                skills=[agent_pb2.Skill(name=name, level=level) for name, level in profile.skills.items()],
                labels=profile.labels,
                resume_session_id=self._core.resume_session_id,
                load=self._load.read(),
            )
        )

    def _welcomed(self, answer: registry.SessionResponse, address: str) -> None:
        now = monotonic_ms()
        before = self._core.incarnation
        self._core.welcomed(session_welcome(answer.welcome), now)
        self._reconnect.welcomed(now)
        # The hello's report may be older than what the other streams did meanwhile.
        self._core.hurry()
        self.open.set()
        if self._core.incarnation != before:
            log.info("session open at %s, incarnation %d", address, self._core.incarnation)
            self._on_incarnation()
        else:
            log.info("session resumed at %s", address)

    # The conversation.

    def take(self, now: int) -> registry.SessionRequest | None:
        """Return a farewell, a drain notice or the heartbeat that is due."""
        if self._farewell_due:
            return None if self._farewell_said else self._farewell()
        if self._drain_due:
            self._drain_due = False
            return registry.SessionRequest(drain=registry.SessionDrain())
        if now < self._core.beat_due_at():
            return None
        beat = self._core.beat(now)
        self._beat_sent = beat.sequence_number, time.perf_counter_ns()
        return registry.SessionRequest(
            heartbeat=registry.Heartbeat(
                sequence_number=beat.sequence_number,
                load=self._load.read(),
                round_trip_us=beat.round_trip_us,
            )
        )

    def _farewell(self) -> registry.SessionRequest:
        self._farewell_said = True
        return registry.SessionRequest(farewell=registry.SessionFarewell())

    def receive(self, frame: registry.SessionResponse) -> None:
        """Take the ack of a heartbeat."""
        number, sent_ns = self._beat_sent
        newest = frame.heartbeat_ack.sequence_number == number
        round_trip_us = (time.perf_counter_ns() - sent_ns) // 1000 if newest else 0
        self._core.acked(monotonic_ms(), round_trip_us)

    def due_at(self) -> int | None:
        """Return when the next heartbeat is due; a session that ends sends none."""
        return None if self._farewell_due else self._core.beat_due_at()

    def silent_at(self) -> int:
        """Return when the lease will have ended without an ack."""
        return self._core.silent_at()
