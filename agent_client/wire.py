"""Between the generated messages and the client's own records, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from muster.broker.v1 import broker_service_pb2 as broker
from muster.common.v1 import envelope_pb2, fencing_pb2, payload_pb2, priority_pb2
from muster.registry.v1 import registry_service_pb2 as registry
from muster.scheduler.v1 import task_pb2, work_pb2

from agent_client.core.addresses import is_routed
from agent_client.core.inbox import InboxFrame, Verdict
from agent_client.core.locks import LockAsk, LockDrop
from agent_client.core.records import (
    AttemptRef,
    Claim,
    Failed,
    FencingToken,
    HeldLock,
    Outcome,
    Payload,
    Succeeded,
    Suspended,
)
from agent_client.core.session import SessionWelcome
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.core.work import WorkFrame
from agent_client.link import Assignment, Delivered, Envelope, Receipt
from agent_client.payload import EMPTY

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The one version of every protocol that this client speaks.
VERSIONS = (1,)
# What it knows of the mailbox protocol beyond that.
MAILBOX_FEATURES = ("routes", "instances")


def duration(ms: int) -> Duration:
    """Return milliseconds as a Duration."""
    message = Duration()
    message.FromMilliseconds(ms)
    return message


def timestamp(instant: datetime) -> Timestamp:
    """Return an aware datetime as a Timestamp."""
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def moment(message: Timestamp) -> datetime | None:
    """Return a Timestamp as an aware datetime; None when it is the epoch, which stands for unset."""
    seconds, nanos = message.seconds, message.nanos
    return _moment(seconds, nanos) if seconds or nanos else None


@lru_cache(maxsize=256)
def _moment(seconds: int, nanos: int) -> datetime:
    # Several times as fast as ToDatetime, and exact to the microsecond. Kept, since what comes together was
    # accepted together.
    return _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)


def payload_to_proto(payload: Payload) -> payload_pb2.Payload:
    """Return a payload as a message."""
    return payload_pb2.Payload(content_type=payload.content_type, data=payload.data)


def payload_from_proto(message: payload_pb2.Payload) -> Payload:
    """Return a message as a payload."""
    return Payload(message.content_type, message.data)


def token_to_proto(token: FencingToken) -> fencing_pb2.FencingToken:
    """Return a fencing token as a message."""
    return fencing_pb2.FencingToken(epoch=token.epoch, number=token.number)


def token_from_proto(message: fencing_pb2.FencingToken) -> FencingToken:
    """Return a message as a fencing token."""
    return FencingToken(message.epoch, message.number)


def priority_to_proto(priority: Priority) -> priority_pb2.Priority.ValueType:
    """Return a priority as an enum value."""
    return _PRIORITY_VALUES[priority]


def priority_from_proto(value: int) -> Priority:
    """Return an enum value as a priority; what is unset or unknown means NORMAL."""
    return _PRIORITIES.get(value, Priority.NORMAL)


_PRIORITY_VALUES = {priority: priority_pb2.Priority.Value(f"PRIORITY_{priority}") for priority in Priority}
_PRIORITIES = {int(value): priority for priority, value in _PRIORITY_VALUES.items()}
_MESSAGE_TYPES = {int(envelope_pb2.MessageType.Value(f"MESSAGE_TYPE_{kind}")): kind for kind in MessageType}
_MESSAGE_TYPE_VALUES = {kind: envelope_pb2.MessageType.Value(f"MESSAGE_TYPE_{kind}") for kind in MessageType}
_RARE_FIELDS = (
    "correlation_id",
    "causation_id",
    "traceparent",
    "tracestate",
    "collaboration_id",
    "requires_receiver",
    "reply_instance",
)


# Registry.


def session_welcome(message: registry.SessionWelcome) -> SessionWelcome:
    """Return the registry's welcome."""
    return SessionWelcome(
        session_id=message.session_id,
        incarnation=message.incarnation,
        lease_ttl_ms=message.lease_ttl.ToMilliseconds(),
        heartbeat_interval_ms=message.heartbeat_interval.ToMilliseconds(),
        resumed=message.resumed,
    )


# Scheduler.


def attempt_to_proto(attempt: AttemptRef) -> work_pb2.AttemptRef:
    """Return an attempt's name as a message."""
    return work_pb2.AttemptRef(
        collaboration_id=attempt.collaboration_id,
        task_id=attempt.task_id,
        token=token_to_proto(attempt.token),
    )


def attempt_from_proto(message: work_pb2.AttemptRef) -> AttemptRef:
    """Return a message as an attempt's name."""
    return AttemptRef(message.collaboration_id, message.task_id, token_from_proto(message.token))


def held_lock_to_proto(lock: HeldLock) -> work_pb2.HeldLock:
    """Return a lock grant's name as a message."""
    return work_pb2.HeldLock(resource=lock.resource, token=token_to_proto(lock.token))


def held_locks_from_proto(messages: Iterable[work_pb2.HeldLock]) -> tuple[HeldLock, ...]:
    """Return messages as lock grants' names."""
    return tuple(HeldLock(message.resource, token_from_proto(message.token)) for message in messages)


def assignment_from_proto(message: work_pb2.Assignment) -> Assignment:
    """Return what the scheduler handed over."""
    spec = message.spec
    return Assignment(
        attempt=attempt_from_proto(message.attempt),
        task_name=spec.task_name,
        description=spec.description,
        task_type=spec.task_type,
        required_skills=tuple(spec.required_skills),
        priority=priority_from_proto(spec.priority),
        payload=payload_from_proto(spec.payload) if spec.HasField("payload") else EMPTY,
        inputs={task_id: payload_from_proto(value) for task_id, value in message.inputs.items()},
        locks=held_locks_from_proto(message.locks),
        shared_context=payload_from_proto(message.shared_context)
        if message.HasField("shared_context")
        else EMPTY,
        collaboration_name=message.collaboration_name,
        coordinator_agent=message.coordinator_agent,
        members=tuple(message.members),
        deadline=moment(message.deadline) if message.HasField("deadline") else None,
        requester=message.requester,
        savepoint=payload_from_proto(message.savepoint) if message.HasField("savepoint") else None,
    )


def work_frame_to_proto(frame: WorkFrame) -> work_pb2.WorkRequest:
    """Return one frame to the coordinator."""
    return work_pb2.WorkRequest(
        credits=frame.credits,
        started=[work_pb2.AttemptStarted(attempt=attempt_to_proto(attempt)) for attempt in frame.started],
        progress=[
            work_pb2.AttemptProgress(attempt=attempt_to_proto(attempt), progress=fraction, stage=stage)
            for attempt, fraction, stage in frame.progress
        ],
        results=[_result_to_proto(attempt, outcome) for attempt, outcome in frame.results],
        probe_nonce=frame.probe_nonce,
        lock_requests=[_lock_ask_to_proto(ask) for ask in frame.lock_asks],
        lock_releases=[_lock_drop_to_proto(drop) for drop in frame.lock_drops],
        drain=frame.drain,
        savepoints=[
            work_pb2.AttemptSavepoint(
                attempt=attempt_to_proto(attempt), savepoint=payload_to_proto(savepoint)
            )
            for attempt, savepoint in frame.savepoints
        ],
    )


def failure_to_proto(failure: Failed) -> task_pb2.TaskFailure:
    """Return why a handler gave up."""
    kind = task_pb2.FAILURE_KIND_PERMANENT if failure.permanent else task_pb2.FAILURE_KIND_TRANSIENT
    return task_pb2.TaskFailure(kind=kind, reason=failure.reason, message=failure.message)


def _result_to_proto(attempt: AttemptRef, outcome: Outcome) -> work_pb2.AttemptResult:
    message = work_pb2.AttemptResult(attempt=attempt_to_proto(attempt))
    if isinstance(outcome, Succeeded):
        message.result.CopyFrom(payload_to_proto(outcome.result))
    elif isinstance(outcome, Failed):
        message.failure.CopyFrom(failure_to_proto(outcome))
    elif isinstance(outcome, Suspended):
        message.suspended.SetInParent()
        if outcome.savepoint is not None:
            message.suspended.savepoint.CopyFrom(payload_to_proto(outcome.savepoint))
    else:
        message.cancelled = True
    return message


def _lock_ask_to_proto(ask: LockAsk) -> work_pb2.LockRequest:
    return work_pb2.LockRequest(
        lock_request_id=ask.handle,
        claims=[_claim_to_proto(claim) for claim in ask.claims],
        wait_max=None if ask.wait_ms is None else duration(ask.wait_ms),
        attempt=None if ask.attempt is None else attempt_to_proto(ask.attempt),
    )


def _claim_to_proto(claim: Claim) -> task_pb2.ResourceClaim:
    mode = task_pb2.LOCK_MODE_SHARED if claim.shared else task_pb2.LOCK_MODE_EXCLUSIVE
    return task_pb2.ResourceClaim(resource=claim.resource, mode=mode)


def _lock_drop_to_proto(drop: LockDrop) -> work_pb2.LockRelease:
    return work_pb2.LockRelease(
        lock_request_id=drop.handle, locks=[held_lock_to_proto(lock) for lock in drop.locks]
    )


# Broker.


def envelope_to_proto(envelope: Envelope) -> envelope_pb2.Envelope:
    """Return an envelope as its sender sets it."""
    message = envelope_pb2.Envelope(
        message_id=envelope.message_id,
        receiver_id=envelope.receiver,
        message_type=_MESSAGE_TYPE_VALUES[envelope.message_type],
        priority=_PRIORITY_VALUES[envelope.priority],
        requires_ack=envelope.requires_ack,
    )
    message.payload.content_type, message.payload.data = envelope.payload.content_type, envelope.payload.data
    # What most messages do not say is not written either: each argument of the constructor costs.
    for field in _RARE_FIELDS:
        if value := getattr(envelope, field):
            setattr(message, field, value)
    if envelope.ttl is not None:
        message.ttl.CopyFrom(duration(round(envelope.ttl * 1000)))
    if envelope.retry_max is not None:
        message.retry_max = envelope.retry_max
    return message


def envelope_from_proto(message: envelope_pb2.Envelope) -> Envelope:
    """Return an envelope as its receiver gets it; an unknown type reads as STATUS_UPDATE."""
    payload = message.payload
    # In the order of the fields: names and defaults take longer than all the rest.
    made: Envelope = tuple.__new__(
        Envelope,
        (
            message.message_id,
            message.receiver_id,
            _MESSAGE_TYPES.get(message.message_type, MessageType.STATUS_UPDATE),
            Payload(payload.content_type, payload.data),
            _PRIORITIES.get(message.priority, Priority.NORMAL),
            message.requires_ack,
            message.correlation_id,
            message.ttl.ToMilliseconds() / 1000 if message.HasField("ttl") else None,
            message.retry_max if message.HasField("retry_max") else None,
            message.causation_id,
            message.traceparent,
            message.tracestate,
            message.collaboration_id,
            message.requires_receiver,
            message.reply_instance,
            message.sender_id,
            message.address,
            moment(message.accepted_time),
            message.sequence_number,
        ),
    )
    return made


def receipt_from_proto(outcome: broker.SendOutcome, address: str) -> Receipt:
    """Return what the broker said of a message to `address` that it accepted."""
    if is_routed(address):
        return Receipt(outcome.sequence_number, outcome.receiver_id, outcome.receiver_count)
    return Receipt(outcome.sequence_number, address)


def delivered_from_proto(message: broker.Delivery) -> Delivered:
    """Return a delivery without its ack token, which stays with the link."""
    return Delivered.of(
        envelope_from_proto(message.envelope),
        message.delivery_number,
        moment(message.ack_deadline_time),
    )


def mailbox_frame_to_proto(
    sends: list[envelope_pb2.Envelope], frame: InboxFrame
) -> broker.MailboxRequest | None:
    """Return one frame to the broker, or None when there is nothing to say."""
    if not sends and not frame:
        return None
    message = broker.MailboxRequest(
        sends=sends,
        extends=[
            broker.Extend(ack_token=token, extension=duration(extension_ms))
            for token, extension_ms in frame.extends
        ],
        credits=frame.credits,
        emergency_credits=frame.emergency_credits,
    )
    for settlement in frame.settlements:
        token = settlement.ack_token
        if settlement.verdict is Verdict.ACK:
            message.acks.add(ack_token=token)
        elif settlement.verdict is Verdict.NACK:
            delay = None if settlement.delay_ms is None else duration(settlement.delay_ms)
            message.nacks.add(ack_token=token, delay=delay)
        else:
            message.rejects.add(ack_token=token, reason=settlement.reason)
    return message
