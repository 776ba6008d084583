"""What requesters get for what they asked: answers and outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.protobuf import block, tag, text, varint
from services.common.rpc.status import status_proto
from services.scheduler.core.effects import Accepted

_OUTCOMES = tag(pb.SubmitResponse.OUTCOMES_FIELD_NUMBER)


def accepted(answer: Accepted) -> pb.SubmitCollaborationResponse:
    """Return the answer to a submission that is durable."""
    return pb.SubmitCollaborationResponse(
        collaboration_id=answer.collaboration_id,
        generation=answer.generation,
        already_accepted=answer.already_accepted,
        warnings=answer.warnings,
    )


def encode_outcome(request_id: str, answer: object) -> bytes:
    """Return the SubmitOutcome of one submission of a stream, on the wire."""
    named = text(pb.SubmitOutcome.REQUEST_ID_FIELD_NUMBER, request_id)
    if isinstance(answer, Accepted):
        return named + block(pb.SubmitOutcome.ACCEPTED_FIELD_NUMBER, accepted(answer).SerializeToString())
    if not isinstance(answer, ServiceError):
        answer = ServiceError(Reason.INTERNAL, f"a submission was answered with {type(answer).__name__}")
    return named + block(pb.SubmitOutcome.ERROR_FIELD_NUMBER, status_proto(answer).SerializeToString())


def submit_frame(outcomes: Sequence[bytes]) -> bytes:
    """Return a SubmitResponse on the wire."""
    parts: list[bytes] = []
    for one in outcomes:
        parts += (_OUTCOMES, varint(len(one)), one)
    return b"".join(parts)
