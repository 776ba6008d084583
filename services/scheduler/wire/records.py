"""What is kept in etcd: model to `muster.scheduler.v1.*Record` and back. See `record.proto` for the keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from muster.scheduler.v1 import record_pb2 as record_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, CollaborationId, InstanceId, RequestId, ResourceName, TaskId
from services.common.core.instants import Instant
from services.common.protobuf import block, scalar
from services.scheduler.core.course import Attempt, Predicted, Savepoint, Trial
from services.scheduler.core.model import (
    AttemptRef,
    AttemptState,
    CollaborationState,
    Failure,
    InstanceKey,
    LockMode,
    Payload,
    Priority,
    Submission,
    TaskSpec,
    TaskState,
)
from services.scheduler.core.records import (
    CollaborationRecord,
    SpecRecord,
    StoredCollaboration,
    StoredLock,
    TaskRecord,
)
from services.scheduler.core.running.deadlines import DeadlineWarning
from services.scheduler.wire import specs, values

#: Bytes of task specifications in one record: well below etcd's limit for a request, with room for others.
SPEC_BYTES_MAX = 256 * 1024
_TASKS = record_pb.SpecRecord.TASKS_FIELD_NUMBER
_SUBMISSION = record_pb.SpecRecord.SUBMISSION_FIELD_NUMBER
_SUBMIT_MS = record_pb.SubmissionRecord.SUBMIT_MS_FIELD_NUMBER
_ARRIVAL = record_pb.SubmissionRecord.ARRIVAL_FIELD_NUMBER
_SPEC = record_pb.CollaborationRecord.SPEC_FIELD_NUMBER
_TASK = record_pb.CollaborationRecord.TASK_FIELD_NUMBER


def encode_collaboration(record: CollaborationRecord) -> bytes:
    """Return a collaboration's mutable half."""
    message = record_pb.CollaborationRecord(
        state=record.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=record.generation,
        end_ms=record.end_time or 0,
        coordinator_agent=record.coordinator_agent,
    )
    if record.failure is not None:
        values.put_failure(message.failure, record.failure)
    for warning in record.warnings:
        message.deadline_warnings.add(
            task_id=warning.task_id,
            deadline_ms=warning.deadline,
            predicted_end_ms=warning.predicted_end,
            cause_task_id=warning.cause,
            warn_ms=warning.warn_time,
        )
    if (trial := record.trial) is not None:
        message.policy_arm, message.policy_load = trial
    return message.SerializeToString()


def decode_collaboration(collaboration_id: CollaborationId, raw: bytes) -> CollaborationRecord:
    """Return a collaboration's mutable half."""
    return _collaboration(collaboration_id, record_pb.CollaborationRecord.FromString(raw))


def _collaboration(
    collaboration_id: CollaborationId, message: record_pb.CollaborationRecord
) -> CollaborationRecord:
    return CollaborationRecord(
        collaboration_id,
        CollaborationState(message.state),
        message.generation,
        _instant(message.end_ms),
        message.coordinator_agent,
        _failure(message.failure) if message.HasField("failure") else None,
        tuple(
            DeadlineWarning(
                TaskId(row.task_id),
                Instant(row.deadline_ms),
                Instant(row.predicted_end_ms),
                TaskId(row.cause_task_id),
                Instant(row.warn_ms),
            )
            for row in message.deadline_warnings
        ),
        Trial(message.policy_arm, message.policy_load) if message.policy_arm else None,
    )


def encode_specs(record: SpecRecord) -> list[bytes]:
    """Return a collaboration's immutable half in parts."""
    parts = [
        b"".join([block(_TASKS, task.encoded) for task in chunk])
        for chunk in _chunks(record.submission.spec.tasks)
    ]
    return [_encode_header(record) + parts[0], *parts[1:]]


def _encode_header(record: SpecRecord) -> bytes:
    """Return what a SpecRecord says of the submission itself."""
    submission = record.submission
    header = submission.encoded or specs.encode_submission(
        submission.requester, submission.request_id, submission.spec, submission.content_hash
    )
    # Concatenated encodings are the encoding of the merged message (protobuf, "Encoding": "Last One Wins"),
    # so that what was submitted is serialized once in its life.
    return block(
        _SUBMISSION, header + scalar(_SUBMIT_MS, record.submit_time) + scalar(_ARRIVAL, record.arrival)
    )


def encode_small(spec: SpecRecord, record: CollaborationRecord, task: TaskRecord | None) -> bytes:
    """Return a small collaboration with all that is kept of it; `task` is None before its first change."""
    [only] = spec.submission.spec.tasks
    raw = _encode_header(spec) + block(_TASKS, only.encoded)
    whole = encode_collaboration(record) + block(_SPEC, raw)
    return whole if task is None else whole + block(_TASK, encode_task(task))


def decode_small(collaboration_id: CollaborationId, raw: bytes) -> StoredCollaboration | None:
    """Return a collaboration that is kept in one key; None for one of which that has only the own half."""
    message = record_pb.CollaborationRecord.FromString(raw)
    if not message.HasField("spec"):
        return None
    spec = _specs(collaboration_id, [message.spec])
    task_id = spec.submission.spec.tasks[0].task_id
    return StoredCollaboration(
        spec,
        _collaboration(collaboration_id, message),
        (_task(task_id, message.task),) if message.HasField("task") else (),
    )


def decode_specs(collaboration_id: CollaborationId, parts: Sequence[bytes]) -> SpecRecord:
    """Return a collaboration's immutable half; the inverse of `encode_specs`."""
    return _specs(collaboration_id, [record_pb.SpecRecord.FromString(part) for part in parts])


def _specs(collaboration_id: CollaborationId, messages: Sequence[record_pb.SpecRecord]) -> SpecRecord:
    tasks: list[task_pb.TaskSpec] = [task for message in messages for task in message.tasks]
    header = messages[0].submission
    submission = Submission(
        header.requester,
        RequestId(header.request_id),
        specs.collaboration_spec(header.spec, tasks),
        header.content_hash,
    )
    return SpecRecord(collaboration_id, submission, Instant(header.submit_ms), header.arrival)


def encode_task(record: TaskRecord) -> bytes:
    """Return a task's mutable half."""
    message = record_pb.TaskRecord(
        state=record.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=record.generation,
        collaboration_generation=record.collaboration_generation,
        attempt_count=record.attempt_count,
        failure_count=record.failure_count,
        ready_ms=record.ready_time or 0,
        end_ms=record.end_time or 0,
        retry_ms=record.retry_time or 0,
        cause_id=record.cause_id,
        excused_count=record.excused_count,
    )
    if (saved := record.savepoint) is not None:
        message.savepoint.attempt_number = saved.attempt_number
        message.savepoint.save_ms = saved.save_time
        values.put_payload(message.savepoint.payload, saved.payload)
    for attempt in record.attempts:
        _put_attempt(message.attempts, attempt)
    if record.result is not None:
        values.put_payload(message.result, record.result)
    if record.failure is not None:
        values.put_failure(message.failure, record.failure)
    return message.SerializeToString()


def _put_attempt(rows: RepeatedCompositeFieldContainer[record_pb.AttemptRecord], attempt: Attempt) -> None:
    instance = attempt.instance
    row = rows.add(
        agent_id=instance.agent_id,
        instance_id=instance.instance_id,
        incarnation=attempt.incarnation,
        state=attempt.state,
        assign_ms=attempt.assign_time,
        start_ms=attempt.start_time or 0,
        end_ms=attempt.end_time or 0,
        explanation=attempt.explanation,
        speculative=attempt.speculative,
        suspend_ms=attempt.suspend_time or 0,
    )
    values.put_token(row.token, attempt.token)
    if attempt.failure is not None:
        values.put_failure(row.failure, attempt.failure)
    if (predicted := attempt.predicted) is not None:
        row.predicted_ms, row.predicted_low_ms, row.predicted_high_ms, row.predicted_observations = predicted


def decode_task(task_id: TaskId, raw: bytes) -> TaskRecord:
    """Return a task's mutable half."""
    return _task(task_id, record_pb.TaskRecord.FromString(raw))


def _task(task_id: TaskId, message: record_pb.TaskRecord) -> TaskRecord:
    return TaskRecord(
        task_id,
        TaskState(message.state),
        message.generation,
        message.collaboration_generation,
        tuple(_attempt(row) for row in message.attempts),
        message.attempt_count,
        message.failure_count,
        Payload(message.result.content_type, message.result.data) if message.HasField("result") else None,
        _failure(message.failure) if message.HasField("failure") else None,
        _instant(message.ready_ms),
        _instant(message.end_ms),
        _instant(message.retry_ms),
        message.cause_id,
        _savepoint(message.savepoint) if message.HasField("savepoint") else None,
        message.excused_count,
    )


def encode_lock(lock: StoredLock) -> bytes:
    """Return a lock's value: JSON, so that a person sees with etcdctl who holds it."""
    row: dict[str, object] = {
        "muster": 1,
        "mode": lock.mode.name,
        "agent": lock.instance.agent_id,
        "instance": lock.instance.instance_id,
        "declared": lock.declared,
        "priority": int(lock.priority),
        "since_ms": lock.since,
        "epoch": lock.epoch,
    }
    if (ref := lock.attempt) is not None:
        row["attempt"] = [ref.collaboration_id, ref.task_id, ref.token.epoch, ref.token.number]
    return json.dumps(row, separators=(",", ":")).encode()


def decode_lock(resource: ResourceName, claim_id: str, raw: bytes, revision: int) -> StoredLock | None:
    """Return a lock of ours, None for a key that another program put."""
    try:
        row = json.loads(raw)
        if row["muster"] != 1:
            return None
        ref = row.get("attempt")
        attempt = None
        if ref is not None:
            token = FencingToken(int(ref[2]), int(ref[3]))
            attempt = AttemptRef(CollaborationId(str(ref[0])), TaskId(str(ref[1])), token)
        return StoredLock(
            resource,
            claim_id,
            LockMode[row["mode"]],
            InstanceKey(AgentId(str(row["agent"])), InstanceId(str(row["instance"]))),
            attempt,
            bool(row["declared"]),
            Priority(int(row["priority"])),
            Instant(int(row["since_ms"])),
            int(row["epoch"]),
            revision,
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _attempt(row: record_pb.AttemptRecord) -> Attempt:
    return Attempt(
        values.token(row.token),
        InstanceKey(AgentId(row.agent_id), InstanceId(row.instance_id)),
        row.incarnation,
        AttemptState(row.state),
        Instant(row.assign_ms),
        row.explanation,
        _instant(row.start_ms),
        _instant(row.end_ms),
        _failure(row.failure) if row.HasField("failure") else None,
        Predicted(
            row.predicted_ms,
            row.predicted_low_ms,
            row.predicted_high_ms,
            # Kept as a float of 32 bits: what is finer than a tenth is noise of the encoding.
            round(row.predicted_observations, 1),
        )
        if row.predicted_ms
        else None,
        row.speculative,
        _instant(row.suspend_ms),
    )


def _savepoint(message: record_pb.SavepointRecord) -> Savepoint:
    return Savepoint(message.attempt_number, Instant(message.save_ms), values.payload(message.payload))


def _failure(message: task_pb.TaskFailure) -> Failure:
    return values.failure(message, "failure")


def _instant(milliseconds: int) -> Instant | None:
    return Instant(milliseconds) if milliseconds else None


def _chunks(tasks: Sequence[TaskSpec]) -> Iterator[list[TaskSpec]]:
    chunk: list[TaskSpec] = []
    size = 0
    for task in tasks:
        if chunk and size + len(task.encoded) > SPEC_BYTES_MAX:
            yield chunk
            chunk, size = [], 0
        chunk.append(task)
        size += len(task.encoded)
    if chunk:
        yield chunk
