"""One Session stream: the hello, then heartbeats in and acks out, until one side ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muster.registry.v1 import registry_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId
from services.common.rpc.duplex import Duplex, DuplexLimits, read_first
from services.registry import wire
from services.registry.core import events
from services.registry.core.effects import Ack, Welcome
from services.registry.driver import Driver

# A frame holds one answer. An agent that leaves this many unread is not there any more.
_LIMITS = DuplexLimits(items_max=64, frame_items_max=1)


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What every session is told, and how long its parts may take."""

    lease_ttl_ms: int
    heartbeat_interval_ms: int
    hello_timeout_ms: int
    open_timeout_ms: int


class SessionStream:
    """Owned by its gRPC handler; the driver calls it as its `Link`."""

    def __init__(
        self, driver: Driver, agent_id: AgentId, cause: str, context: Any, terms: SessionTerms
    ) -> None:
        self._driver, self._agent_id, self._cause = driver, agent_id, cause
        self._context, self._terms = context, terms
        self._duplex: Duplex[pb.SessionResponse, pb.SessionResponse] = Duplex(context, _pack, _LIMITS)
        self._link = driver.connect(self)
        # Frames after the hello are not read before the welcome is on its way.
        self._welcomed = asyncio.Event()
        self._ended = asyncio.Event()
        self._farewell = False
        self._impatience: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the stream; raises the error that it ends with."""
        try:
            hello = await self._read_hello()
            await self._driver.submit(events.OpenRequested(self._cause, self._link, self._agent_id, hello))
            loop = asyncio.get_running_loop()
            self._impatience = loop.call_later(self._terms.open_timeout_ms / 1_000, self._give_up)
            await self._duplex.run(self._take, self._at_half_close)
        finally:
            if self._impatience is not None:
                self._impatience.cancel()
            self._driver.disconnect(self._link, self._cause)

    # The driver's side.

    def welcome(self, welcome: Welcome) -> None:
        """Confirm the session."""
        if self._impatience is not None:
            self._impatience.cancel()
        self._duplex.send(
            wire.welcome_frame(
                welcome,
                lease_ttl_ms=self._terms.lease_ttl_ms,
                heartbeat_interval_ms=self._terms.heartbeat_interval_ms,
            )
        )
        self._welcomed.set()

    def ack(self, ack: Ack) -> None:
        """Confirm a heartbeat."""
        self._duplex.send(wire.ack_frame(ack))

    def end(self, error: ServiceError | None) -> None:
        """Close the stream."""
        self._duplex.end(error)
        self._ended.set()

    # The agent's side.

    async def _read_hello(self) -> Any:
        try:
            frame = await read_first(self._context, self._terms.hello_timeout_ms)
            if frame.WhichOneof("frame") != "hello":
                raise wire.not_hello(frame)
        except ServiceError as error:
            self._driver.post(events.LinkRefused(self._cause, self._agent_id, error.reason))
            raise
        return wire.hello_fields(frame.hello)

    async def _take(self, frame: pb.SessionRequest) -> None:
        await self._welcomed.wait()
        cause, link = self._cause, self._link
        match frame.WhichOneof("frame"):
            case "heartbeat":
                beat = frame.heartbeat
                await self._driver.submit(
                    events.HeartbeatReceived(
                        cause, link, beat.sequence_number, wire.load(beat.load), beat.round_trip_us
                    )
                )
            case "drain":
                await self._driver.submit(events.DrainRequested(cause, link))
            case "farewell":
                self._farewell = True
                await self._driver.submit(events.FarewellReceived(cause, link))
            case _:
                raise wire.not_now(frame)

    async def _at_half_close(self) -> None:
        """After a farewell the agent may wait with its own half closed until the farewell is committed."""
        if self._farewell:
            await self._ended.wait()

    def _give_up(self) -> None:
        self._duplex.end(
            ServiceError(
                Reason.STORE_UNAVAILABLE,
                f"the session was not committed within {self._terms.open_timeout_ms} ms; try again",
                retry_after_ms=1_000,
            )
        )


def _pack(frames: Sequence[pb.SessionResponse]) -> pb.SessionResponse:
    (frame,) = frames
    return frame
