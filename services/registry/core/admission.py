"""What a hello and a report must satisfy; every bad field is named at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.common.core.errors import FieldViolation, Reason, ServiceError
from services.common.core.ids import NAME_64, SKILL, AgentId, InstanceId
from services.registry.core.model import VERSIONS, Hello, HelloFields, Load, SkillLevel

SKILLS_MAX = 64
LABELS_MAX = 32
LABEL_BYTES_MAX = 128
SESSION_ID_BYTES_MAX = 128
SLOTS_MAX = 1_024
# The first instant that no protobuf Timestamp may hold: the end of the year 9999.
INSTANT_MAX = 253_402_300_800_000
# The instance of an agent that names none.
INSTANCE_DEFAULT = InstanceId("0")


def admit_hello(certified: AgentId, fields: HelloFields) -> Hello:
    """Return the hello of the agent whose certificate says `certified`.

    Raises UNSUPPORTED_VERSION, IDENTITY_MISMATCH or INVALID_FIELD.
    """
    if not set(fields.versions) & set(VERSIONS):
        supported = ", ".join(map(str, VERSIONS))
        raise ServiceError(
            Reason.UNSUPPORTED_VERSION,
            f"hello.versions names none that this registry speaks; speak one of: {supported}",
            metadata={"supported": supported},
        )
    if fields.agent_id not in ("", certified):
        raise ServiceError(
            Reason.IDENTITY_MISMATCH,
            f"hello.agent_id is {fields.agent_id[:64]!r}, the certificate says {certified!r}; "
            "leave the field empty, or present the certificate of the agent that you speak for",
        )
    bad: list[FieldViolation] = []
    instance_id = InstanceId(fields.instance_id) or INSTANCE_DEFAULT
    if not NAME_64.match(instance_id):
        bad.append(FieldViolation("hello.instance_id", "must be 1 to 64 bytes of [A-Za-z0-9._-]"))
    skills = _skills(fields.skills, bad)
    _labels(fields.labels, bad)
    if len(fields.resume_session_id.encode()) > SESSION_ID_BYTES_MAX:
        bad.append(FieldViolation("hello.resume_session_id", "must be the session_id of a welcome, or empty"))
    bad.extend(load_violations(fields.load, "hello.load"))
    if bad:
        raise violations_error(bad)
    return Hello(instance_id, skills, tuple(sorted(fields.labels)), fields.resume_session_id, fields.load)


def load_violations(load: Load, path: str) -> list[FieldViolation]:
    """Return what is wrong with a report found at `path`."""
    bad: list[FieldViolation] = []
    if load.slots > SLOTS_MAX:
        bad.append(FieldViolation(f"{path}.slots", f"must be at most {SLOTS_MAX}"))
    if load.slots_used > SLOTS_MAX:
        bad.append(FieldViolation(f"{path}.slots_used", f"must be at most {SLOTS_MAX}"))
    # Written so that NaN fails too.
    if load.cpu_ratio is not None and not 0 <= load.cpu_ratio <= 1:
        bad.append(FieldViolation(f"{path}.cpu_ratio", "must be a number from 0 to 1, or unset"))
    if load.last_probe_time is not None and not 0 <= load.last_probe_time < INSTANT_MAX:
        bad.append(FieldViolation(f"{path}.last_probe_time", "must lie between the years 1970 and 9999"))
    return bad


def violations_error(bad: Sequence[FieldViolation]) -> ServiceError:
    """Return the error that names each bad field."""
    story = "; ".join(f"{one.field}: {one.description}" for one in bad)
    return ServiceError(Reason.INVALID_FIELD, story, tuple(bad))


def _skills(skills: Sequence[SkillLevel], bad: list[FieldViolation]) -> tuple[SkillLevel, ...]:
    # None at all is fine: such an agent takes no tasks, but has a mailbox.
    if len(skills) > SKILLS_MAX:
        bad.append(FieldViolation("hello.skills", f"must hold at most {SKILLS_MAX}, not {len(skills)}"))
        return ()
    admitted: dict[str, SkillLevel] = {}
    for index, skill in enumerate(skills):
        path = f"hello.skills[{index}]"
        if not SKILL.match(skill.name):
            bad.append(FieldViolation(f"{path}.name", "must be 1 to 64 bytes of [a-z0-9._-]"))
        elif skill.name in admitted:
            bad.append(FieldViolation(f"{path}.name", f"{skill.name!r} is declared twice"))
        if not (math.isfinite(skill.level) and 0 <= skill.level <= 1):
            bad.append(FieldViolation(f"{path}.level", "must be above 0 and at most 1; 0 or unset means 1"))
        admitted[skill.name] = SkillLevel(skill.name, skill.level or 1.0)
    return tuple(sorted(admitted.values()))


def _labels(labels: Sequence[tuple[str, str]], bad: list[FieldViolation]) -> None:
    if len(labels) > LABELS_MAX:
        bad.append(FieldViolation("hello.labels", f"must hold at most {LABELS_MAX}, not {len(labels)}"))
        return
    for key, value in labels:
        if not 1 <= len(key.encode()) <= LABEL_BYTES_MAX:
            bad.append(FieldViolation("hello.labels", f"each key must have 1 to {LABEL_BYTES_MAX} bytes"))
        if len(value.encode()) > LABEL_BYTES_MAX:
            where = f"hello.labels[{key[:LABEL_BYTES_MAX]!r}]"
            bad.append(FieldViolation(where, f"must have at most {LABEL_BYTES_MAX} bytes"))
