"""One producer's Append stream: its frames on their way to the disk, and their acks on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from muster.audit.v1 import audit_service_pb2 as pb

from services.audit import wire
from services.audit.core.model import Producer
from services.audit.driver import Driver
from services.audit.metrics import AuditMetrics
from services.common.core.errors import ServiceError, invalid
from services.common.identity import Principal
from services.common.rpc.duplex import Duplex
from services.common.rpc.status import status_proto


class AppendStream:
    """Made per call. Frames are submitted in the order in which they came, and answered in that order."""

    def __init__(
        self, driver: Driver, principal: Principal, context: Any, metrics: AuditMetrics, *, frames_max: int
    ) -> None:
        self._driver, self._principal, self._frames_max = driver, principal, frames_max
        self._limits_reached = metrics.limits_reached.labels("stream_frames_max")
        self._duplex: Duplex[int | ServiceError, pb.AppendResponse] = Duplex(context, _pack)
        # From the first frame on.
        self._producer: Producer | None = None
        # Frames that are not answered yet, and what wakes those who wait for fewer.
        self._unanswered = 0
        self._answered = asyncio.Event()
        # Why the stream was ended, if it was.
        self.refusal: ServiceError | None = None

    @property
    def subject(self) -> str:
        """What the stream appends, for the record."""
        replica_id = self._producer.replica_id if self._producer else "unknown"
        return f"spool/{self._principal.name}/{replica_id}"

    async def run(self) -> None:
        """Serve until the producer leaves or a frame is refused."""
        await self._duplex.run(self._on_frame, self._wait_all_answered)

    async def _on_frame(self, request: pb.AppendRequest) -> None:
        try:
            frame = wire.decode_append(
                request, self._principal.name, self._producer.replica_id if self._producer else ""
            )
            producer = Producer(self._principal.name, frame.replica_id, frame.spool_id)
            if self._producer not in (None, producer):
                raise invalid("spool_id", "must stay the same on one stream")
        except ServiceError as error:
            self._refuse(error)
            return
        self._producer = producer
        if self._unanswered >= self._frames_max:
            self._limits_reached.inc()
        while self._unanswered >= self._frames_max:
            # Not reading is how the producer is told to wait.
            await self._wait_answered()
        self._unanswered += 1
        answer = self._driver.submit(producer, frame.first_sequence, frame.leaves)
        answer.add_done_callback(self._on_answer)

    def _on_answer(self, answer: asyncio.Future[int]) -> None:
        self._unanswered -= 1
        self._answered.set()
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None:
            self._duplex.send(answer.result())
        elif isinstance(error, ServiceError):
            self._refuse(error)
        else:
            self._duplex.end(error)

    def _refuse(self, error: ServiceError) -> None:
        if self._duplex.send(error):
            self.refusal = error
            self._duplex.end()

    async def _wait_answered(self) -> None:
        self._answered.clear()
        await self._answered.wait()

    async def _wait_all_answered(self) -> None:
        while self._unanswered:
            await self._wait_answered()


def _pack(items: Sequence[int | ServiceError]) -> pb.AppendResponse:
    response = pb.AppendResponse()
    for item in items:
        if isinstance(item, ServiceError):
            response.error.CopyFrom(status_proto(item))
        else:
            response.durable_sequence_number = max(item, response.durable_sequence_number)
    return response
