"""One requester's Submit stream: frames of many submissions in, frames of many outcomes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import ServiceError, invalid
from services.common.rpc.duplex import Duplex
from services.common.rpc.interceptors import LiveCall
from services.scheduler.core.events import Event, Refused, ReplyId, Submitted
from services.scheduler.driver import Driver
from services.scheduler.inbox import Reply
from services.scheduler.wire import answers, specs

#: Submissions in one frame, as the proto says.
FRAME_SUBMISSIONS_MAX = 256


def submission_event(request: pb.SubmitCollaborationRequest, requester: str) -> Callable[[ReplyId], Event]:
    """Return what makes the event of a submission, or of its refusal when it cannot be read."""
    collaboration_id = specs.collaboration_id(requester, request.request_id)
    try:
        submission = specs.submission(request, requester)
    except ServiceError as error:
        refusal = error
        return lambda reply: Refused(
            request.request_id,
            "collaboration.submit",
            f"collaboration/{collaboration_id}",
            requester,
            refusal,
            reply,
        )
    return lambda reply: Submitted(request.request_id, submission, collaboration_id, reply)


class SubmitStream:
    """Made per call. Each submission is answered by its request_id, in any order."""

    def __init__(self, driver: Driver, call: LiveCall, context: Any, unanswered_max: int) -> None:
        self._driver, self._requester = driver, str(call.principal)
        self._unanswered_max = unanswered_max
        self._duplex: Duplex[bytes, bytes] = Duplex(context, answers.submit_frame)
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def run(self) -> None:
        """Serve until the requester leaves; what it submitted before is answered."""
        stream = self._driver.open_port(self)
        try:
            await self._duplex.run(self._on_frame, self._wait_all_answered)
        finally:
            self._driver.close_port(stream)

    def send(self, item: Any) -> None:
        """See `WorkPort.send`: the state says nothing to this stream but answers."""
        raise AssertionError(f"nothing is sent to a Submit stream: {item!r}")

    def end(self, error: ServiceError) -> None:
        """See `WorkPort.end`."""
        self._duplex.end(error)

    async def _on_frame(self, frame: pb.SubmitRequest) -> None:
        if (count := len(frame.submissions)) > FRAME_SUBMISSIONS_MAX:
            raise invalid(
                "submissions", f"has {count} items: send at most {FRAME_SUBMISSIONS_MAX} in a frame"
            )
        for request in frame.submissions:
            while self._unanswered >= self._unanswered_max:
                # Not reading on is how the requester is told to wait.
                await self._wait_answered()
            self._submit(request)
        await self._driver.wait_room()

    def _submit(self, request: pb.SubmitCollaborationRequest) -> None:
        request_id = request.request_id
        self._unanswered += 1

        def answer(reply: Reply) -> None:
            self._unanswered -= 1
            self._answered.set()
            self._duplex.send(answers.encode_outcome(request_id, reply))

        self._driver.request(submission_event(request, self._requester), answer)

    async def _wait_answered(self) -> None:
        self._answered.clear()
        await self._answered.wait()

    async def _wait_all_answered(self) -> None:
        while self._unanswered:
            await self._wait_answered()
