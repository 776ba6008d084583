"""A collaboration as Python or JSON values, made into the message that is submitted.

The keys are the fields of `CollaborationSpec` and `TaskSpec` (collaboration.proto, task.proto). Beyond their
canonical JSON: durations are seconds (1.5) or text ("1.5s"), deadlines aware datetimes, RFC 3339 text or a
timedelta from now; `tasks` may be a mapping by task_id; a resource may be just its name; `payload` and
`shared_context` are any value that `agent_client.payload` can encode.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from muster.common.v1 import priority_pb2
from muster.scheduler.v1 import collaboration_pb2, task_pb2

from agent_client.core.vocabulary import Priority
from agent_client.errors import InvalidRequestError, Violation
from agent_client.payload import encode
from agent_client.wire import duration, payload_to_proto, priority_to_proto, timestamp

_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)s\Z")


Spec = collaboration_pb2.CollaborationSpec


def build_spec(value: Mapping[str, Any] | Spec) -> Spec:
    """Return the submission for `value`.

    Raises InvalidRequestError that names every bad field. What only the plane can judge, such as cycles and
    deadlines, is left to it.
    """
    if isinstance(value, Spec):
        return value
    builder = _Builder()
    fields = builder.fields("collaboration", value, _COLLABORATION)
    if builder.violations:
        raise builder.error()
    return Spec(**fields)


class _Builder:
    """Converts, and gathers what is wrong instead of stopping at the first."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        # What is wrong with payloads, which may have a reason of its own.
        self.payload_errors: list[InvalidRequestError] = []

    def error(self) -> InvalidRequestError:
        """Return everything as one error; as in the plane, INVALID_FIELD comes before other reasons."""
        reasons = {error.reason for error in self.payload_errors}
        if sum(len(error.violations) for error in self.payload_errors) < len(self.violations):
            reasons.add(InvalidRequestError.default_reason)
        same = len(reasons) == 1 and bool(self.payload_errors)
        return InvalidRequestError(
            "; ".join(f"{bad.field} {bad.description}" for bad in self.violations),
            reason=self.payload_errors[0].reason if same else "",
            violations=self.violations,
            metadata=self.payload_errors[0].metadata if same else None,
        )

    def bad(self, path: str, description: str) -> None:
        self.violations.append(Violation(path, description))

    def fields(self, path: str, value: object, table: Mapping[str, _Converter]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.bad(path, f"must be an object with fields, not {_kind(value)}")
            return {}
        fields = {}
        for name, given in value.items():
            convert = table.get(name)
            if convert is None:
                near = difflib.get_close_matches(str(name), table, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(table)}"
                self.bad(f"{path}.{name}", f"is no field of it; {hint}")
            elif given is not None:
                fields[name] = convert(self, f"{path}.{name}", given)
        return fields


_Converter = Callable[[_Builder, str, Any], Any]


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"


def _text(builder: _Builder, path: str, value: Any) -> str:
    if not isinstance(value, str):
        builder.bad(path, f"must be text, not {_kind(value)}")
        return ""
    return value


def _texts(builder: _Builder, path: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence):
        builder.bad(path, f"must be a list of texts, not {_kind(value)}")
        return []
    return [_text(builder, f"{path}[{index}]", item) for index, item in enumerate(value)]


def _count(builder: _Builder, path: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        builder.bad(path, f"must be a whole number from 0 on, not {_kind(value)}")
        return 0
    return value


def _duration(builder: _Builder, path: str, value: Any) -> Any:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str) and (match := _SECONDS.match(value)):
        value = float(match[1])
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e10:
        builder.bad(path, f'must be seconds, such as 1.5 or "1.5s", not {_kind(value)}')
        return None
    return duration(round(value * 1000))


def _instant(builder: _Builder, path: str, value: Any) -> Any:
    if isinstance(value, timedelta):
        return timestamp(datetime.now(UTC) + value)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            builder.bad(path, f"must be RFC 3339 such as 2026-07-01T12:00:00Z, not {_kind(value)}")
            return None
    if not isinstance(value, datetime):
        builder.bad(path, f"must be a time, not {_kind(value)}")
        return None
    if value.tzinfo is None:
        builder.bad(path, f"must say its time zone, such as 2026-07-01T12:00:00Z: {_kind(value)}")
        return None
    return timestamp(value)


def _payload(builder: _Builder, path: str, value: Any) -> Any:
    try:
        return payload_to_proto(encode(value, path))
    except InvalidRequestError as error:
        builder.violations += error.violations
        builder.payload_errors.append(error)
        return None


def _priority(builder: _Builder, path: str, value: Any) -> int:
    try:
        return priority_to_proto(Priority(value))
    except ValueError:
        builder.bad(path, f"is none of {', '.join(Priority)}: {_kind(value)}")
        return priority_pb2.PRIORITY_UNSPECIFIED


def _choice(enum: Any, prefix: str) -> _Converter:
    names = {name.removeprefix(prefix): value for name, value in enum.items()}

    def convert(builder: _Builder, path: str, value: Any) -> int:
        chosen = names.get(str(value).upper().removeprefix(prefix))
        if chosen is None:
            known = ", ".join(name for name in names if name != "UNSPECIFIED")
            builder.bad(path, f"is none of {known}: {_kind(value)}")
            return 0
        number: int = chosen
        return number

    return convert


def _resources(builder: _Builder, path: str, value: Any) -> list[task_pb2.ResourceClaim]:
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        builder.bad(path, f"must be a list of resources, not {_kind(value)}")
        return []
    claims = []
    for index, item in enumerate(value):
        claim = {"resource": item} if isinstance(item, str) else item
        claims.append(task_pb2.ResourceClaim(**builder.fields(f"{path}[{index}]", claim, _RESOURCE)))
    return claims


def _retry_policy(builder: _Builder, path: str, value: Any) -> task_pb2.RetryPolicy:
    return task_pb2.RetryPolicy(**builder.fields(path, value, _RETRY_POLICY))


def _tasks(builder: _Builder, path: str, value: Any) -> list[task_pb2.TaskSpec]:
    if isinstance(value, Mapping):
        value = [
            {"task_id": name, **task} if isinstance(task, Mapping) else task for name, task in value.items()
        ]
    if not isinstance(value, Sequence) or isinstance(value, str):
        builder.bad(path, f"must be a list of tasks, not {_kind(value)}")
        return []
    return [
        task_pb2.TaskSpec(**builder.fields(f"{path}[{index}]", task, _TASK))
        for index, task in enumerate(value)
    ]


def _weight(builder: _Builder, path: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1_000:
        builder.bad(path, f"must be a weight from 0 to 1,000, not {_kind(value)}")
        return 0.0
    return float(value)


def _weights(builder: _Builder, path: str, value: Any) -> collaboration_pb2.PolicyWeights:
    return collaboration_pb2.PolicyWeights(**builder.fields(path, value, _WEIGHTS))


def _needs(builder: _Builder, path: str, value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        builder.bad(path, f'must be amounts by name, such as {{"gpu_milli": 500}}, not {_kind(value)}')
        return {}
    return {str(name): _count(builder, f"{path}.{name}", amount) for name, amount in value.items()}


def _gang(builder: _Builder, path: str, value: Any) -> task_pb2.Gang:
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"size": value}
    return task_pb2.Gang(**builder.fields(path, value, _GANG))


def _members(builder: _Builder, path: str, value: Any) -> list[task_pb2.GangMember]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        builder.bad(path, f"must be a list of members, not {_kind(value)}")
        return []
    return [
        task_pb2.GangMember(
            **builder.fields(
                f"{path}[{index}]",
                item if isinstance(item, Mapping) else {"required_skills": item},
                {"required_skills": _texts},
            )
        )
        for index, item in enumerate(value)
    ]


_WEIGHTS: Mapping[str, _Converter] = MappingProxyType(
    {"finish_time": _weight, "quality": _weight, "cost": _weight, "fairness": _weight}
)
_GANG: Mapping[str, _Converter] = MappingProxyType({"size": _count, "members": _members})
_RESOURCE: Mapping[str, _Converter] = MappingProxyType(
    {"resource": _text, "mode": _choice(task_pb2.LockMode, "LOCK_MODE_")}
)
_RETRY_POLICY: Mapping[str, _Converter] = MappingProxyType(
    {"attempt_max": _count, "backoff": _duration, "backoff_max": _duration}
)
_TASK: Mapping[str, _Converter] = MappingProxyType(
    {
        "task_id": _text,
        "task_name": _text,
        "description": _text,
        "priority": _priority,
        "task_type": _text,
        "required_skills": _texts,
        "required_agents": _texts,
        "estimated_duration": _duration,
        "dependencies": _texts,
        "deadline": _instant,
        "resources": _resources,
        "retry_policy": _retry_policy,
        "payload": _payload,
        "attempt_timeout": _duration,
        "speculation": _choice(task_pb2.Speculation, "SPECULATION_"),
        "needs": _needs,
        "gang": _gang,
    }
)
_COLLABORATION: Mapping[str, _Converter] = MappingProxyType(
    {
        "name": _text,
        "collaboration_type": _text,
        "tasks": _tasks,
        "priority": _priority,
        "deadline": _instant,
        "unknown_skill_policy": _choice(collaboration_pb2.UnknownSkillPolicy, "UNKNOWN_SKILL_POLICY_"),
        "coordinator_agent": _text,
        "shared_context": _payload,
        "scheduling_policy": _choice(collaboration_pb2.SchedulingPolicy, "SCHEDULING_POLICY_"),
        "policy_weights": _weights,
    }
)
