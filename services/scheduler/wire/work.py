"""The Work stream: frames to events, effects to frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from muster.common.v1 import payload_pb2
from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import NAME_64, AgentId, InstanceId
from services.common.rpc.status import status_proto
from services.scheduler.core.course import Task
from services.scheduler.core.effects import (
    AckResult,
    AckSavepoint,
    Assign,
    CancelAttempt,
    GrantLocks,
    Probe,
    RefuseLocks,
    RevokeLock,
    SuspendAttempt,
    Welcome,
    WorkItem,
)
from services.scheduler.core.events import (
    Cancelled,
    LockReleased,
    LockRequested,
    ProgressReport,
    ResultReport,
    SavepointReport,
    StreamId,
    Suspended,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.intake.validation import validate_payload
from services.scheduler.core.model import AttemptRef, Failure, InstanceKey, Limits, Payload
from services.scheduler.core.placing import gangs
from services.scheduler.wire import values

#: Versions of the protocol that this service speaks.
VERSIONS = (1,)
ITEMS_MAX = 1_024
STAGE_BYTES_MAX = 128

T = TypeVar("T")
#: Answers to what is malformed in a frame that is otherwise fine.
Refusal = AckResult | AckSavepoint | RefuseLocks


def hello(request: work_pb.WorkRequest, agent_id: str, stream: StreamId, cause_id: str) -> WorkOpened:
    """Return what a stream's first frame says.

    Raises MALFORMED_FRAME when it is no hello, UNSUPPORTED_VERSION with "supported", INVALID_FIELD.
    """
    if not request.HasField("hello"):
        raise ServiceError(Reason.MALFORMED_FRAME, "the first frame must have hello set")
    message = request.hello
    if not set(VERSIONS) & set(message.versions):
        raise ServiceError(
            Reason.UNSUPPORTED_VERSION,
            f"hello.versions: none of {list(message.versions)[:8]} is spoken here",
            metadata={"supported": ",".join(str(version) for version in VERSIONS)},
        )
    instance_id = message.instance_id or "0"
    if NAME_64.match(instance_id) is None:
        raise invalid("hello.instance_id", "use 1 to 64 of A-Z a-z 0-9 . _ -")
    if message.incarnation == 0:
        raise invalid("hello.incarnation", "is missing: open a session at the registry first")
    return WorkOpened(
        cause_id,
        stream,
        InstanceKey(AgentId(agent_id), InstanceId(instance_id)),
        message.incarnation,
        tuple(values.attempt_ref(ref) for ref in _bounded(message.held, "hello.held")),
        tuple(values.held_lock(lock) for lock in _bounded(message.held_locks, "hello.held_locks")),
        message.suspendable,
    )


def frame(
    request: work_pb.WorkRequest, stream: StreamId, cause_id: str, jitter: float, limits: Limits
) -> tuple[WorkFrame, list[Refusal]]:
    """Return what a later frame says, and answers to the results and requests in it that are malformed.

    Raises MALFORMED_FRAME for a second hello, INVALID_FIELD for what is out of bounds otherwise.
    """
    if request.HasField("hello"):
        raise ServiceError(Reason.MALFORMED_FRAME, "hello may be set in the first frame only")
    results: list[ResultReport] = []
    lock_requests: list[LockRequested] = []
    savepoints: list[SavepointReport] = []
    refused: list[Refusal] = []
    for message in _bounded(request.results, "results"):
        ref = values.attempt_ref(message.attempt)
        try:
            results.append(ResultReport(ref, _outcome(message, limits)))
        except ServiceError as error:
            refused.append(AckResult(stream, ref, error))
    for saved in _bounded(request.savepoints, "savepoints"):
        ref = values.attempt_ref(saved.attempt)
        try:
            savepoints.append(SavepointReport(ref, _payload(saved.savepoint, "savepoints.savepoint", limits)))
        except ServiceError as error:
            refused.append(AckSavepoint(stream, ref, error))
    for wanted in _bounded(request.lock_requests, "lock_requests"):
        try:
            lock_requests.append(_lock_request(wanted))
        except ServiceError as error:
            refused.append(RefuseLocks(stream, wanted.lock_request_id, error))
    return (
        WorkFrame(
            cause_id,
            stream,
            jitter,
            request.credits,
            tuple(values.attempt_ref(message.attempt) for message in _bounded(request.started, "started")),
            tuple(_progress(message) for message in _bounded(request.progress, "progress")),
            tuple(results),
            request.probe_nonce,
            tuple(lock_requests),
            tuple(
                LockReleased(message.lock_request_id, tuple(values.held_lock(lock) for lock in message.locks))
                for message in _bounded(request.lock_releases, "lock_releases")
            ),
            request.drain,
            tuple(savepoints),
        ),
        refused,
    )


def pack(
    items: Sequence[WorkItem], *, epoch: int, silence_ms_max: int, probe_interval_ms: int
) -> work_pb.WorkResponse:
    """Return one frame with everything in `items`."""
    response = work_pb.WorkResponse()
    for item in items:
        match item:
            case Assign():
                _put_assignment(response.assignments.add(), item)
            case AckResult(_, ref, error):
                _put_ack(response.result_acks.add(), ref, error)
            case Probe(_, nonce):
                # Only the newest one matters.
                response.probe_nonce = nonce
            case SuspendAttempt(_, ref, reason, grace_ms):
                suspend = response.suspends.add(reason=reason)
                values.put_attempt_ref(suspend.attempt, ref)
                values.put_duration(suspend.grace, grace_ms)
            case AckSavepoint(_, ref, error):
                _put_ack(response.savepoint_acks.add(), ref, error)
            case CancelAttempt(_, ref, reason):
                cancel = response.cancels.add(reason=reason, fenced=True)
                values.put_attempt_ref(cancel.attempt, ref)
            case GrantLocks(_, number, locks, until):
                grant = response.lock_grants.add(lock_request_id=number)
                grant.locks.extend(values.held_lock_message(lock) for lock in locks)
                values.put_time(grant.lease_expire_time, until)
            case RefuseLocks(_, number, error):
                response.lock_refusals.add(lock_request_id=number).error.CopyFrom(status_proto(error))
            case RevokeLock(_, lock, reason):
                revocation = response.lock_revocations.add(reason=reason)
                revocation.lock.CopyFrom(values.held_lock_message(lock))
            case Welcome():
                response.welcome.version = VERSIONS[0]
                response.welcome.epoch = epoch
                values.put_duration(response.welcome.silence_max, silence_ms_max)
                values.put_duration(response.welcome.probe_interval, probe_interval_ms)
    return response


def size_of(item: WorkItem) -> int:
    """Return about how many bytes an item adds to a frame; 0 for what is always small."""
    if not isinstance(item, Assign):
        return 0
    task, collaboration = item.task, item.collaboration
    size = len(task.spec.encoded) + len(collaboration.submission.spec.shared_context.data) + 512
    for name in task.spec.dependencies:
        result = collaboration.tasks[name].result
        if result is not None:
            size += len(result.data) + 128
    return size if task.savepoint is None else size + len(task.savepoint.payload.data)


def _put_assignment(message: work_pb.Assignment, item: Assign) -> None:
    task, collaboration = item.task, item.collaboration
    submission = collaboration.submission
    spec = submission.spec
    values.put_attempt_ref(message.attempt, task.ref(item.attempt))
    message.spec.MergeFromString(task.spec.encoded)
    for name in task.spec.dependencies:
        result = collaboration.tasks[name].result
        if result is not None:
            values.put_payload(message.inputs[name], result)
    for lock in item.locks:
        message.locks.append(values.held_lock_message(lock))
    if spec.shared_context.data or spec.shared_context.content_type:
        values.put_payload(message.shared_context, spec.shared_context)
    if spec.name:
        message.collaboration_name = spec.name
    if collaboration.coordinator_agent:
        message.coordinator_agent = collaboration.coordinator_agent
    message.members.extend(collaboration.members)
    if task.deadline is not None:
        values.put_time(message.deadline, task.deadline)
    if (saved := task.savepoint) is not None:
        values.put_payload(message.savepoint, saved.payload)
    message.requester = submission.requester
    if task.spec.gang is not None:
        _put_peers(message, task)


def _put_peers(message: work_pb.Assignment, task: Task) -> None:
    """Say who starts together: all have their attempts by the time that the first of them is told."""
    for mate in gangs.members(task):
        current = mate.current
        if current is not None and mate.spec.gang is not None:
            message.gang_peers.add(
                rank=mate.spec.gang.rank,
                task_id=mate.key.task_id,
                agent_id=current.instance.agent_id,
                instance_id=current.instance.instance_id,
            )


def _put_ack(
    message: work_pb.ResultAck | work_pb.SavepointAck, ref: AttemptRef, error: ServiceError | None
) -> None:
    values.put_attempt_ref(message.attempt, ref)
    if error is not None:
        message.error.CopyFrom(status_proto(error))


def _outcome(message: work_pb.AttemptResult, limits: Limits) -> Payload | Failure | Cancelled | Suspended:
    match message.WhichOneof("outcome"):
        case "result":
            return _payload(message.result, "results.result", limits)
        case "failure":
            return values.failure(message.failure, "results.failure")
        case "cancelled":
            return Cancelled()
        case "suspended":
            given = message.suspended
            if not given.HasField("savepoint"):
                return Suspended(None)
            return Suspended(_payload(given.savepoint, "results.suspended.savepoint", limits))
        case _:
            raise invalid("results.outcome", "is missing: say how the attempt ended")


def _payload(message: payload_pb2.Payload, path: str, limits: Limits) -> Payload:
    found = values.payload(message)
    validate_payload(found, path, limits)
    return found


def _progress(message: work_pb.AttemptProgress) -> ProgressReport:
    # Live and soon replaced: what is out of bounds is brought back instead of refused.
    # (max gives its first argument for a number that is none.)
    progress = min(1.0, max(0.0, message.progress))
    stage = message.stage
    if len(stage.encode()) > STAGE_BYTES_MAX:
        stage = stage.encode()[:STAGE_BYTES_MAX].decode("utf-8", "ignore")
    return ProgressReport(values.attempt_ref(message.attempt), progress, stage)


def _lock_request(message: work_pb.LockRequest) -> LockRequested:
    return LockRequested(
        message.lock_request_id,
        tuple(
            values.claim(claim, f"lock_requests.claims[{index}]")
            for index, claim in enumerate(message.claims)
        ),
        max(0, values.duration_ms(message.wait_max)) if message.HasField("wait_max") else None,
        values.attempt_ref(message.attempt) if message.HasField("attempt") else None,
    )


def _bounded(items: Sequence[T] | Iterable[T], path: str) -> Iterable[T]:
    count = len(items)  # type: ignore[arg-type]  # repeated fields have a length
    if count > ITEMS_MAX:
        raise invalid(path, f"has {count} items: send at most {ITEMS_MAX} in a frame")
    return items
