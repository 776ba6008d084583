"""What requesters get for what they asked: answers and outcomes."""

from __future__ import annotations

from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.rpc.status import status_proto
from services.scheduler.core.effects import Accepted


def accepted(answer: Accepted) -> pb.SubmitCollaborationResponse:
    """Return the answer to a submission that is durable."""
    return pb.SubmitCollaborationResponse(
        collaboration_id=answer.collaboration_id,
        generation=answer.generation,
        already_accepted=answer.already_accepted,
        warnings=answer.warnings,
    )


def outcome(request_id: str, answer: object) -> pb.SubmitOutcome:
    """Return the outcome of one submission of a stream."""
    if isinstance(answer, Accepted):
        return pb.SubmitOutcome(request_id=request_id, accepted=accepted(answer))
    if not isinstance(answer, ServiceError):
        answer = ServiceError(Reason.INTERNAL, f"a submission was answered with {type(answer).__name__}")
    return pb.SubmitOutcome(request_id=request_id, error=status_proto(answer))
