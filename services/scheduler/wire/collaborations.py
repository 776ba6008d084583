"""A collaboration as requesters and watchers see it, written by hand.

Every change of every collaboration goes to whoever watches its requester: of all messages that the leader
makes this one is made most often, and a message object of two dozen fields costs three times its bytes.
"""

from __future__ import annotations

from muster.common.v1.payload_pb2 import Payload as PayloadMessage
from muster.scheduler.v1.collaboration_pb2 import Collaboration as Message
from muster.scheduler.v1.collaboration_pb2 import CollaborationEvent, CollaborationResult, Contribution
from muster.scheduler.v1.task_pb2 import TaskFailure

from services.common.core.instants import Instant
from services.common.protobuf import block, number, plain_timestamp, text
from services.scheduler.core.course import Change, CollaborationView
from services.scheduler.core.model import Failure, Payload
from services.scheduler.core.results import Result, aggregate
from services.scheduler.wire import values

#: Bytes of results in one message of a collaboration; what does not fit is with the tasks themselves.
OUTPUT_BYTES_MAX = 2 * 1024 * 1024
# Of an entry of any map, as protobuf's encoding says.
_MAP_KEY, _MAP_VALUE = 1, 2


def encode_collaboration_event(change: Change, view: CollaborationView) -> bytes:
    """Return a CollaborationEvent on the wire: a change of a collaboration itself."""
    return (
        text(CollaborationEvent.COLLABORATION_ID_FIELD_NUMBER, change.collaboration_id)
        + number(CollaborationEvent.GENERATION_FIELD_NUMBER, change.generation)
        + plain_timestamp(CollaborationEvent.EVENT_TIME_FIELD_NUMBER, change.time)
        + block(CollaborationEvent.COLLABORATION_FIELD_NUMBER, encode_collaboration(view))
    )


def encode_collaboration(view: CollaborationView) -> bytes:
    """Return a Collaboration on the wire, as it was at one generation, without its tasks."""
    collaboration = view.collaboration
    submission = collaboration.submission
    spec = submission.spec
    parts = [
        text(Message.COLLABORATION_ID_FIELD_NUMBER, collaboration.collaboration_id),
        text(Message.NAME_FIELD_NUMBER, spec.name),
        text(Message.COLLABORATION_TYPE_FIELD_NUMBER, spec.collaboration_type or "general"),
        text(Message.REQUESTER_FIELD_NUMBER, submission.requester),
        text(Message.REQUEST_ID_FIELD_NUMBER, submission.request_id),
        number(Message.STATE_FIELD_NUMBER, view.state),
        number(Message.GENERATION_FIELD_NUMBER, view.generation),
        plain_timestamp(Message.SUBMIT_TIME_FIELD_NUMBER, collaboration.submit_time),
        _time(Message.END_TIME_FIELD_NUMBER, view.end_time),
        _time(Message.DEADLINE_FIELD_NUMBER, spec.deadline),
        number(Message.PRIORITY_FIELD_NUMBER, spec.priority),
        text(Message.COORDINATOR_AGENT_FIELD_NUMBER, view.coordinator_agent),
    ]
    parts += [block(Message.MEMBERS_FIELD_NUMBER, member.encode()) for member in view.members]
    parts.append(number(Message.TASK_COUNT_FIELD_NUMBER, len(collaboration.tasks)))
    parts.append(number(Message.TASK_SUCCEEDED_COUNT_FIELD_NUMBER, view.succeeded_count))
    if view.failure is not None:
        parts.append(block(Message.FAILURE_FIELD_NUMBER, _failure(view.failure)))
    # A view of an older generation knows no result: it is set once, by the last change.
    result = aggregate(collaboration) if view.end_time is not None else None
    if result is not None:
        parts.append(block(Message.RESULT_FIELD_NUMBER, _result(result)))
    if spec.shared_context.data or spec.shared_context.content_type:
        parts.append(block(Message.SHARED_CONTEXT_FIELD_NUMBER, _payload(spec.shared_context)))
    return b"".join(parts)


def _result(result: Result) -> bytes:
    parts: list[bytes] = []
    left = OUTPUT_BYTES_MAX
    for task_id, output in result.outputs.items():
        left -= len(output.data)
        if left >= 0:
            entry = block(_MAP_KEY, task_id.encode()) + block(_MAP_VALUE, _payload(output))
            parts.append(block(CollaborationResult.OUTPUTS_FIELD_NUMBER, entry))
    for row in result.contributions:
        contribution = (
            text(Contribution.TASK_ID_FIELD_NUMBER, row.task_id)
            + text(Contribution.AGENT_ID_FIELD_NUMBER, row.agent_id)
            + number(Contribution.ATTEMPT_NUMBER_FIELD_NUMBER, row.attempt_number)
            + plain_timestamp(Contribution.START_TIME_FIELD_NUMBER, row.start_time)
            + plain_timestamp(Contribution.END_TIME_FIELD_NUMBER, row.end_time)
        )
        parts.append(block(CollaborationResult.CONTRIBUTIONS_FIELD_NUMBER, contribution))
    return b"".join(parts)


def _payload(payload: Payload) -> bytes:
    data = block(PayloadMessage.DATA_FIELD_NUMBER, payload.data) if payload.data else b""
    return text(PayloadMessage.CONTENT_TYPE_FIELD_NUMBER, payload.content_type) + data


def _failure(failure: Failure) -> bytes:
    message = TaskFailure()
    values.put_failure(message, failure)
    return message.SerializeToString()


def _time(field: int, instant: Instant | None) -> bytes:
    return b"" if instant is None else plain_timestamp(field, instant)
