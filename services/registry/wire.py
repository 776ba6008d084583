"""Proto to model and back, both ways and total: whatever a message holds becomes a value or a typed error.

Also the form in which records are stored: an `Agent` for each agent, an `AgentInstance` for each presence.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from muster.common.v1 import page_pb2
from muster.registry.v1 import agent_pb2, registry_service_pb2

from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.registry.core.effects import Ack, PresencePut, Welcome
from services.registry.core.matching import best_state
from services.registry.core.model import (
    VERSIONS,
    AgentRecord,
    AgentState,
    Held,
    HelloFields,
    Instance,
    LeaseId,
    Load,
    SkillLevel,
)

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000

_STATES = {state: agent_pb2.AgentState.Value(f"AGENT_STATE_{state.name}") for state in AgentState}
_STATE_OF = {number: state for state, number in _STATES.items()}


# Frames of a session.


def hello_fields(hello: registry_service_pb2.SessionHello) -> HelloFields:
    """Return a hello as it came; the core admits or refuses it."""
    return HelloFields(
        tuple(hello.versions),
        hello.agent_id,
        hello.instance_id,
        _skills(hello.skills),
        tuple(hello.labels.items()),
        hello.resume_session_id,
        load(hello.load),
    )


def load(message: agent_pb2.AgentLoad) -> Load:
    """Return a report as it came."""
    return Load(
        message.slots,
        message.slots_used,
        message.cpu_ratio if message.HasField("cpu_ratio") else None,
        message.memory_bytes if message.HasField("memory_bytes") else None,
        message.work_stream_open,
        message.coordinator_epoch,
        _instant(message.last_probe_time) if message.HasField("last_probe_time") else None,
    )


def welcome_frame(
    welcome: Welcome, *, lease_ttl_ms: int, heartbeat_interval_ms: int
) -> registry_service_pb2.SessionResponse:
    """Return the frame that confirms a session."""
    return registry_service_pb2.SessionResponse(
        welcome=registry_service_pb2.SessionWelcome(
            version=VERSIONS[0],
            session_id=welcome.session_id,
            incarnation=welcome.incarnation,
            lease_ttl=_duration(lease_ttl_ms),
            heartbeat_interval=_duration(heartbeat_interval_ms),
            resumed=welcome.resumed,
        )
    )


def ack_frame(ack: Ack) -> registry_service_pb2.SessionResponse:
    """Return the frame that confirms a heartbeat."""
    return registry_service_pb2.SessionResponse(
        heartbeat_ack=registry_service_pb2.HeartbeatAck(
            sequence_number=ack.sequence_number, lease_expire_time=_timestamp(ack.lease_expire_time)
        )
    )


# Agents, as published and as stored.


def agent_message(record: AgentRecord) -> agent_pb2.Agent:
    """Return an agent as a message."""
    return agent_pb2.Agent(
        agent_id=record.agent_id,
        register_time=_timestamp(record.register_time),
        skills=_skill_messages(record.skills),
        instances=[_instance_message(record.agent_id, one) for one in record.instances],
        state=_STATES[best_state(record.instances)],
        generation=record.generation,
    )


def agent_record(message: agent_pb2.Agent) -> AgentRecord:
    """Return a stored agent; raises ValueError when it is none that this version can have stored."""
    return AgentRecord(
        AgentId(message.agent_id),
        _instant(message.register_time),
        _skills(message.skills),
        message.generation,
        tuple(_instance(one) for one in message.instances),
    )


def encode_record(record: AgentRecord) -> bytes:
    """Return an agent's record as it is stored; the same bytes for the same record."""
    return agent_message(record).SerializeToString(deterministic=True)


def decode_record(stored: bytes) -> AgentRecord:
    """Return a stored record; raises ValueError."""
    try:
        return agent_record(agent_pb2.Agent.FromString(stored))
    except DecodeError as error:
        raise ValueError(f"not an Agent message: {error}") from error


def encode_presence(agent_id: AgentId, put: PresencePut) -> bytes:
    """Return a presence key's value: who is there, not in which state; that is in the record."""
    message = agent_pb2.AgentInstance(
        agent_id=agent_id,
        instance_id=put.instance_id,
        incarnation=put.incarnation,
        reconnects=put.reconnects,
    )
    return message.SerializeToString(deterministic=True)


def decode_presence(stored: bytes, lease_id: LeaseId) -> Held:
    """Return what a presence key under `lease_id` says; raises ValueError."""
    try:
        message = agent_pb2.AgentInstance.FromString(stored)
    except DecodeError as error:
        raise ValueError(f"not an AgentInstance message: {error}") from error
    return Held(message.incarnation, message.reconnects, lease_id)


# Pages.


def page_size(request: page_pb2.PageRequest) -> int:
    """Return how many items a page may have; raises INVALID_FIELD."""
    if request.page_size > PAGE_SIZE_MAX:
        raise invalid("page.page_size", f"must be at most {PAGE_SIZE_MAX}; 0 means {PAGE_SIZE_DEFAULT}")
    return request.page_size or PAGE_SIZE_DEFAULT


def page_token(skill: str, last: AgentId) -> str:
    """Return the token of the page that begins after `last`."""
    return base64.urlsafe_b64encode(f"{skill}\n{last}".encode()).decode("ascii")


def page_after(request: registry_service_pb2.ListAgentsRequest) -> str:
    """Return the agent after which a page begins, "" for the first; raises INVALID_FIELD."""
    if not request.page.page_token:
        return ""
    try:
        skill, _, last = base64.urlsafe_b64decode(request.page.page_token).decode("ascii").partition("\n")
    except ValueError:
        skill, last = "", ""
    if not last or skill != request.skill:
        raise invalid("page.page_token", "must be the next_page_token of a page of the same list")
    return last


def not_hello(frame: registry_service_pb2.SessionRequest) -> ServiceError:
    """Return the error for a stream that begins with something else than a hello."""
    return ServiceError(
        Reason.MALFORMED_FRAME, f"the first frame is {frame.WhichOneof('frame') or 'empty'}: say hello first"
    )


def not_now(frame: registry_service_pb2.SessionRequest) -> ServiceError:
    """Return the error for a later frame that is none of those that may follow a hello."""
    return ServiceError(
        Reason.MALFORMED_FRAME,
        f"a frame after the hello is {frame.WhichOneof('frame') or 'empty'}: "
        "send a heartbeat, a drain or a farewell",
    )


def _skills(messages: Sequence[agent_pb2.Skill]) -> tuple[SkillLevel, ...]:
    return tuple(SkillLevel(Skill(one.name), one.level) for one in messages)


def _skill_messages(skills: Sequence[SkillLevel]) -> list[agent_pb2.Skill]:
    return [agent_pb2.Skill(name=one.name, level=one.level) for one in skills]


def _instance_message(agent_id: AgentId, instance: Instance) -> agent_pb2.AgentInstance:
    return agent_pb2.AgentInstance(
        agent_id=agent_id,
        instance_id=instance.instance_id,
        incarnation=instance.incarnation,
        state=_STATES[instance.state],
        lease_expire_time=_timestamp(instance.lease_expire_time),
        load=_load_message(instance.load),
        load_time=_timestamp(instance.load_time),
        session_start_time=_timestamp(instance.session_start_time),
        skills=_skill_messages(instance.skills),
        labels=dict(instance.labels),
        round_trip_us=instance.round_trip_us,
        reconnects=instance.reconnects,
    )


def _instance(message: agent_pb2.AgentInstance) -> Instance:
    state = _STATE_OF.get(message.state)
    if state is None:
        raise ValueError(f"instance {message.instance_id!r} has the unknown state {message.state}")
    return Instance(
        InstanceId(message.instance_id),
        message.incarnation,
        state,
        _instant(message.lease_expire_time),
        load(message.load),
        _instant(message.load_time),
        _instant(message.session_start_time),
        _skills(message.skills),
        tuple(sorted(message.labels.items())),
        message.round_trip_us,
        message.reconnects,
    )


def _load_message(value: Load) -> agent_pb2.AgentLoad:
    message = agent_pb2.AgentLoad(
        slots=value.slots,
        slots_used=value.slots_used,
        cpu_ratio=value.cpu_ratio,
        memory_bytes=value.memory_bytes,
        work_stream_open=value.work_stream_open,
        coordinator_epoch=value.coordinator_epoch,
    )
    if value.last_probe_time is not None:
        message.last_probe_time.CopyFrom(_timestamp(value.last_probe_time))
    return message


def _instant(message: Timestamp) -> Instant:
    return Instant(message.seconds * 1_000 + message.nanos // 1_000_000)


def _timestamp(instant: Instant) -> Timestamp:
    seconds, milliseconds = divmod(instant, 1_000)
    return Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000)


def _duration(milliseconds: int) -> Duration:
    seconds, rest = divmod(milliseconds, 1_000)
    return Duration(seconds=seconds, nanos=rest * 1_000_000)
