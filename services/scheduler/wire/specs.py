"""What requesters submit: proto to model. Whether it makes sense is judged by `intake.validation`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import record_pb2 as record_pb
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.errors import invalid
from services.common.core.ids import NAME_64, AgentId, CollaborationId, RequestId, Skill, TaskId
from services.scheduler.core.model import (
    ALIKE,
    CollaborationSpec,
    GangPlace,
    PolicyWeights,
    Priority,
    RetryPolicy,
    SchedulingPolicy,
    Speculation,
    Submission,
    TaskSpec,
    UnknownSkillPolicy,
)
from services.scheduler.wire import values
from services.scheduler.wire.gangs import expand

_DEFAULT_RETRY = RetryPolicy()
_ESTIMATED_DURATION_MS = 1_000
_ATTEMPT_TIMEOUT_MS = 600_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]


def collaboration_id(requester: str, request_id: str) -> CollaborationId:
    """Return the id that a request's collaboration has: the same request, the same id, without a table."""
    digest = hashlib.sha256(f"{requester}\0{request_id}".encode()).digest()
    # The first ten bytes in base 32 (RFC 4648, lower case): sixteen letters, two for every ten bits.
    high, low = int.from_bytes(digest[:5]), int.from_bytes(digest[5:10])
    pairs = [_PAIRS[half >> shift & 1_023] for half in (high, low) for shift in (30, 20, 10, 0)]
    return CollaborationId("c-" + "".join(pairs))


def submission(request: service_pb.SubmitCollaborationRequest, requester: str) -> Submission:
    """Return what `requester` submits; raises INVALID_FIELD for what has no meaning in the model."""
    name = RequestId(request.request_id)
    if NAME_64.match(name) is None:
        raise invalid("request_id", "use 1 to 64 of A-Z a-z 0-9 . _ -")
    if not request.HasField("collaboration"):
        raise invalid("collaboration", "is missing: say what is to be done")
    message = request.collaboration
    spec = collaboration_spec(message, expand(message.tasks))
    digest = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
    return Submission(requester, name, spec, digest, encode_submission(requester, name, spec, digest))


def encode_submission(requester: str, request_id: str, spec: CollaborationSpec, digest: bytes) -> bytes:
    """Return a SubmissionRecord, as the store keeps it, without what is known when it is accepted."""
    header = record_pb.SubmissionRecord(requester=requester, request_id=request_id, content_hash=digest)
    message = header.spec
    message.priority = spec.priority  # type: ignore[assignment]  # the numbers are the proto's
    message.unknown_skill_policy = spec.unknown_skill_policy  # type: ignore[assignment]  # as above
    # Most say no more than that.
    if spec.name:
        message.name = spec.name
    if spec.collaboration_type:
        message.collaboration_type = spec.collaboration_type
    if spec.coordinator_agent:
        message.coordinator_agent = spec.coordinator_agent
    if spec.deadline is not None:
        values.put_time(message.deadline, spec.deadline)
    if spec.shared_context.data or spec.shared_context.content_type:
        values.put_payload(message.shared_context, spec.shared_context)
    if spec.policy is not None:
        message.scheduling_policy = spec.policy  # type: ignore[assignment]  # the numbers are the proto's
    if spec.weights != ALIKE:
        values.put_weights(message.policy_weights, spec.weights)
    return header.SerializeToString()


def collaboration_spec(
    message: collaboration_pb.CollaborationSpec, tasks: Sequence[task_pb.TaskSpec]
) -> CollaborationSpec:
    """Return a DAG whose tasks may come from elsewhere."""
    return CollaborationSpec(
        tuple([task_spec(task, f"collaboration.tasks[{index}]") for index, task in enumerate(tasks)]),
        message.name,
        message.collaboration_type,
        values.enum_value(Priority, message.priority, Priority.NORMAL, "collaboration.priority"),
        values.instant(message.deadline) if message.HasField("deadline") else None,
        values.enum_value(
            UnknownSkillPolicy,
            message.unknown_skill_policy,
            UnknownSkillPolicy.WAIT,
            "collaboration.unknown_skill_policy",
        ),
        message.coordinator_agent,
        values.payload(message.shared_context) if message.HasField("shared_context") else values.NOTHING,
        values.enum_value(
            SchedulingPolicy,
            message.scheduling_policy,
            SchedulingPolicy.PRIORITY,
            "collaboration.scheduling_policy",
        )
        if message.scheduling_policy
        else None,
        PolicyWeights(
            message.policy_weights.finish_time,
            message.policy_weights.quality,
            message.policy_weights.cost,
            message.policy_weights.fairness,
        )
        if message.HasField("policy_weights")
        else ALIKE,
    )


def task_spec(message: task_pb.TaskSpec, path: str) -> TaskSpec:
    """Return one node, with the proto's defaults where the requester said nothing."""
    given = message.HasField
    number = message.priority
    # Lists that are asked first whether they are empty, as nearly all are, cost a fifth.
    agents, dependencies, resources = message.required_agents, message.dependencies, message.resources
    return TaskSpec(
        TaskId(message.task_id),
        tuple(map(Skill, message.required_skills)),
        message.task_name,
        message.description,
        values.enum_value(Priority, number, Priority.NORMAL, f"{path}.priority") if number else None,
        message.task_type,
        tuple(map(AgentId, agents)) if agents else (),
        values.duration_ms(message.estimated_duration)
        if given("estimated_duration")
        else _ESTIMATED_DURATION_MS,
        tuple(map(TaskId, dependencies)) if dependencies else (),
        values.instant(message.deadline) if given("deadline") else None,
        tuple(values.claim(claim, f"{path}.resources[{index}]") for index, claim in enumerate(resources))
        if resources
        else (),
        _retry_policy(message.retry_policy) if given("retry_policy") else _DEFAULT_RETRY,
        values.payload(message.payload) if given("payload") else values.NOTHING,
        values.duration_ms(message.attempt_timeout) if given("attempt_timeout") else _ATTEMPT_TIMEOUT_MS,
        values.enum_value(Speculation, message.speculation, Speculation.ALLOWED, f"{path}.speculation"),
        tuple(sorted(message.needs.items())) if message.needs else (),
        GangPlace(TaskId(message.gang.gang_id), message.gang.rank, message.gang.size)
        if given("gang")
        else None,
        message.SerializeToString(deterministic=True),
    )


def _retry_policy(message: task_pb.RetryPolicy) -> RetryPolicy:
    default = _DEFAULT_RETRY
    return RetryPolicy(
        message.attempt_max or default.attempt_max,
        values.duration_ms(message.backoff) if message.HasField("backoff") else default.backoff_ms,
        values.duration_ms(message.backoff_max)
        if message.HasField("backoff_max")
        else default.backoff_max_ms,
    )
