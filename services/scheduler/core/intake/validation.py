"""Is a submission one that can be carried out? If not: what is wrong, where, and what to do about it.

Everything that is wrong is collected, so that one answer is enough to mend a submission. The error's reason
is that of the first kind found in the order of `_KINDS`; its violations are those of every kind. Whether a
deadline can be met is judged last and only when nothing else is wrong, since it needs a graph and
durations that mean something.

What a requester wrote is never repeated at length, and the list of violations is bounded: an error travels
in HTTP/2 trailers, which carry about 8 KiB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice

from services.common.core.errors import FieldViolation, Reason, ServiceError
from services.common.core.ids import AGENT_ID, NAME_64, RESOURCE, SKILL, TaskId
from services.common.core.instants import Instant, rfc3339
from services.scheduler.core.intake.graph import critical_path, earliest_finish, find_cycle
from services.scheduler.core.model import (
    ALIKE,
    CollaborationSpec,
    Limits,
    Payload,
    ResourceClaim,
    TaskSpec,
)

# Violations named in one error; the others are counted.
VIOLATIONS_NAMED_MAX = 16
# Characters of a requester's text repeated in an error.
SHOWN_MAX = 64
# Tasks of a cycle that are named; the others, in its middle, are counted.
CYCLE_NAMED_MAX = 10
# Unknown dependencies for which a near name is looked for, and names looked through for each: a hostile
# submission must not cost more than an honest one.
SUGGESTIONS_MAX = 3
SUGGESTION_NAMES_MAX = 1_000

_KINDS = (
    Reason.INVALID_FIELD,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.CYCLIC_DEPENDENCY,
    Reason.DEADLINE_IN_PAST,
    Reason.DEADLINE_IMPOSSIBLE,
)


def validate(spec: CollaborationSpec, now: Instant, limits: Limits) -> None:
    """Raise `ServiceError` naming all that is wrong with `spec`; return when nothing is.

    Reasons: INVALID_FIELD; PAYLOAD_TOO_LARGE with `limit_bytes`, `size_bytes`; CYCLIC_DEPENDENCY with
    `cycle`, for example "a -> b -> a" where a depends on b; DEADLINE_IN_PAST with `deadline`, `now`;
    DEADLINE_IMPOSSIBLE with `needed_ms`, `left_ms`, when even a plan without any waiting is too slow.
    """
    found = _Findings(limits)
    found.check_collaboration(spec)
    for index, task in enumerate(spec.tasks):
        found.check_task(f"collaboration.tasks[{index}]", task)
    found.check_dependencies(spec.tasks)
    if deadlines := _deadlines(spec):
        found.check_deadlines_ahead(deadlines, now)
        if found.none:
            found.check_deadlines_possible(spec, now)
    found.raise_if_any()


def validate_claims(claims: Sequence[ResourceClaim], path: str, limits: Limits) -> None:
    """Raise `ServiceError` unless `claims`, found at `path`, may be asked for in one lock request."""
    found = _Findings(limits)
    if not claims:
        found.add(path, "is empty: name at least one resource")
    found.check_claims(path, claims)
    found.raise_if_any()


def validate_payload(payload: Payload, path: str, limits: Limits) -> None:
    """Raise `ServiceError` unless `payload`, found at `path`, is within its bounds."""
    found = _Findings(limits)
    found.check_payload(path, payload)
    found.raise_if_any()


class _Findings:
    """What was found so far, by kind, in the order of the fields.

    A field is named by the path of what it belongs to and its own name: nearly all are in order, and then
    nobody puts the two together. Optional fields that are empty are not looked at.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._violations: dict[Reason, list[FieldViolation]] = {}
        self._metadata: dict[Reason, Mapping[str, str]] = {}

    @property
    def none(self) -> bool:
        return not self._violations

    def add(
        self,
        path: str,
        what_to_do: str,
        reason: Reason = Reason.INVALID_FIELD,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Keep one violation; the first one's metadata stands for its kind."""
        self._violations.setdefault(reason, []).append(FieldViolation(path, what_to_do))
        self._metadata.setdefault(reason, metadata or {})

    def raise_if_any(self) -> None:
        if self.none:
            return
        reason = next(kind for kind in _KINDS if kind in self._violations)
        every = [violation for kind in _KINDS for violation in self._violations.get(kind, ())]
        first, more = every[0], len(every) - 1
        message = f"{first.field}: {first.description}"
        if more:
            message += f" (and {more} more)"
        raise ServiceError(reason, message, tuple(every[:VIOLATIONS_NAMED_MAX]), self._metadata[reason])

    # One field.

    def check_size(self, path: str, field: str, text: str, bytes_max: int) -> None:
        if (size := len(text.encode())) > bytes_max:
            self.add(f"{path}.{field}", f"has {size} bytes: shorten it to at most {bytes_max}")

    def check_name(self, path: str, field: str, name: str, pattern: re.Pattern[str], allowed: str) -> None:
        if not pattern.match(name):
            self.add(f"{path}.{field}", f"{_shown(name)} is not allowed: use {allowed}")

    def check_count(self, path: str, count: int, least: int, most: int) -> None:
        if count < least:
            self.add(path, f"has {count} items: give at least {least}")
        elif count > most:
            self.add(path, f"has {count} items: give at most {most}")

    def check_range(
        self, path: str, field: str, value: int, least: int, most: int, *, unit: str = ""
    ) -> None:
        if not least <= value <= most:
            self.add(f"{path}.{field}", f"is {value}{unit}: choose {least}{unit} to {most}{unit}")

    def check_payload(self, path: str, payload: Payload) -> None:
        self.check_size(path, "content_type", payload.content_type, self._limits.content_type_bytes_max)
        size, most = len(payload.data), self._limits.payload_bytes_max
        if size > most:
            self.add(
                f"{path}.data",
                f"has {size} bytes, at most {most} travel inline: store it elsewhere and send a reference",
                Reason.PAYLOAD_TOO_LARGE,
                {"limit_bytes": str(most), "size_bytes": str(size)},
            )

    def check_claims(self, path: str, claims: Sequence[ResourceClaim]) -> None:
        self.check_count(path, len(claims), 0, self._limits.resource_max)
        first: dict[str, int] = {}
        for index, claim in enumerate(claims):
            at = f"{path}[{index}]"
            self.check_name(at, "resource", claim.resource, RESOURCE, "1 to 128 of A-Z a-z 0-9 . _ -")
            if (other := first.setdefault(claim.resource, index)) != index:
                self.add(f"{at}.resource", f"names the resource of {path}[{other}] again: claim it once")

    # The parts of a submission.

    def check_collaboration(self, spec: CollaborationSpec) -> None:
        limits, path = self._limits, "collaboration"
        if spec.name:
            self.check_size(path, "name", spec.name, limits.name_bytes_max)
        if kind := spec.collaboration_type:
            self.check_size(path, "collaboration_type", kind, limits.collaboration_type_bytes_max)
        self.check_count("collaboration.tasks", len(spec.tasks), 1, limits.task_max)
        if spec.coordinator_agent:
            self.check_name(path, "coordinator_agent", spec.coordinator_agent, AGENT_ID, _AGENT_ALLOWED)
        self.check_payload("collaboration.shared_context", spec.shared_context)
        if spec.weights != ALIKE:
            for name, weight in spec.weights._asdict().items():
                if not 0.0 <= weight <= limits.weight_max:
                    most = f"{limits.weight_max:g}"
                    self.add(f"collaboration.policy_weights.{name}", f"is {weight:g}: choose 0 to {most}")

    def check_task(self, path: str, task: TaskSpec) -> None:
        limits = self._limits
        self.check_name(path, "task_id", task.task_id, NAME_64, "1 to 64 of A-Z a-z 0-9 . _ -")
        if task.task_name:
            self.check_size(path, "task_name", task.task_name, limits.name_bytes_max)
        if task.description:
            self.check_size(path, "description", task.description, limits.description_bytes_max)
        if task.task_type:
            self.check_name(path, "task_type", task.task_type, SKILL, _SKILL_ALLOWED)
        self.check_count(f"{path}.required_skills", len(task.required_skills), 1, limits.skill_max)
        for index, skill in enumerate(task.required_skills):
            self.check_name(path, f"required_skills[{index}]", skill, SKILL, _SKILL_ALLOWED)
        if agents := task.required_agents:
            self.check_count(f"{path}.required_agents", len(agents), 0, limits.required_agent_max)
            for index, agent in enumerate(agents):
                self.check_name(path, f"required_agents[{index}]", agent, AGENT_ID, _AGENT_ALLOWED)
        if task.resources:
            self.check_claims(f"{path}.resources", task.resources)
        if task.needs:
            self.check_count(f"{path}.needs", len(task.needs), 0, limits.need_max)
            for name, amount in task.needs:
                self.check_name(path, "needs", name, SKILL, _SKILL_ALLOWED)
                self.check_range(path, "needs", amount, 1, limits.need_amount_max)
        if task.payload.data or task.payload.content_type:
            self.check_payload(f"{path}.payload", task.payload)
        self._check_times(path, task)

    def _check_times(self, path: str, task: TaskSpec) -> None:
        limits = self._limits
        longest = limits.duration_ms_max
        self.check_range(path, "estimated_duration", task.estimated_duration_ms, 1, longest, unit=" ms")
        self.check_range(path, "attempt_timeout", task.attempt_timeout_ms, 1, longest, unit=" ms")
        retry = task.retry
        self.check_range(path, "retry_policy.attempt_max", retry.attempt_max, 1, limits.attempt_max)
        self.check_range(path, "retry_policy.backoff", retry.backoff_ms, 0, limits.backoff_ms_max, unit=" ms")
        self.check_range(path, "retry_policy.backoff_max", retry.backoff_max_ms, 0, longest, unit=" ms")

    # The graph.

    def check_dependencies(self, tasks: Sequence[TaskSpec]) -> None:
        index_of: dict[TaskId, int] = {}
        for index, task in enumerate(tasks):
            if (other := index_of.setdefault(task.task_id, index)) != index:
                self.add(
                    f"collaboration.tasks[{index}].task_id",
                    f"{_shown(task.task_id)} is already tasks[{other}]: give each task an id of its own",
                )
        if not [task for task in tasks if task.dependencies]:
            return
        suggest = _suggester(index_of)
        for index, task in enumerate(tasks):
            path = f"collaboration.tasks[{index}].dependencies"
            self.check_count(path, len(task.dependencies), 0, self._limits.dependency_max)
            seen: set[TaskId] = set()
            for place, dependency in enumerate(task.dependencies):
                if dependency not in index_of:
                    self.add(f"{path}[{place}]", f"no task {_shown(dependency)} here{suggest(dependency)}")
                elif dependency in seen:
                    self.add(f"{path}[{place}]", f"{_shown(dependency)} is named twice: name it once")
                seen.add(dependency)
        self._check_cycle(tasks, index_of)

    def _check_cycle(self, tasks: Sequence[TaskSpec], index_of: Mapping[TaskId, int]) -> None:
        cycle = find_cycle({task_id: tasks[index].dependencies for task_id, index in index_of.items()})
        if cycle is None:
            return
        at = index_of[cycle[0]]
        story = _walk(cycle)
        self.add(
            f"collaboration.tasks[{at}].dependencies[{tasks[at].dependencies.index(cycle[1])}]",
            f"the tasks wait for each other, {story}: take one of these dependencies away",
            Reason.CYCLIC_DEPENDENCY,
            {"cycle": story},
        )

    # Time.

    def check_deadlines_ahead(self, deadlines: Iterable[tuple[str, Instant]], now: Instant) -> None:
        for path, deadline in deadlines:
            if deadline <= now:
                at = {"deadline": rfc3339(deadline), "now": rfc3339(now)}
                self.add(
                    path,
                    f"{at['deadline']} has passed, it is {at['now']}: choose a later one or none",
                    Reason.DEADLINE_IN_PAST,
                    at,
                )

    def check_deadlines_possible(self, spec: CollaborationSpec, now: Instant) -> None:
        deps = {task.task_id: task.dependencies for task in spec.tasks}
        durations = {task.task_id: task.estimated_duration_ms for task in spec.tasks}
        if spec.deadline is not None:
            path = critical_path(deps, durations)
            left_ms = spec.deadline - now
            if path.length_ms > left_ms:
                chain = f"the chain {_walk(path.tasks)}"
                self._add_impossible("collaboration.deadline", chain, path.length_ms, left_ms)
        finish = earliest_finish(deps, durations)
        for index, task in enumerate(spec.tasks):
            if task.deadline is None:
                continue
            needed_ms, left_ms = finish[task.task_id], task.deadline - now
            if needed_ms > left_ms:
                what = "this task with all that it depends on"
                self._add_impossible(f"collaboration.tasks[{index}].deadline", what, needed_ms, left_ms)

    def _add_impossible(self, path: str, what: str, needed_ms: int, left_ms: int) -> None:
        self.add(
            path,
            f"{what} needs {needed_ms} ms, {left_ms} ms are left: choose a later deadline, shorter tasks or "
            f"fewer dependencies",
            Reason.DEADLINE_IMPOSSIBLE,
            {"needed_ms": str(needed_ms), "left_ms": str(left_ms)},
        )


_SKILL_ALLOWED = "1 to 64 of a-z 0-9 . _ -"
_AGENT_ALLOWED = "1 to 64 of a-z 0-9 -, beginning and ending with a letter or digit"


def _deadlines(spec: CollaborationSpec) -> list[tuple[str, Instant]]:
    found = [] if spec.deadline is None else [("collaboration.deadline", spec.deadline)]
    for index, task in enumerate(spec.tasks):
        if task.deadline is not None:
            found.append((f"collaboration.tasks[{index}].deadline", task.deadline))
    return found


def _suggester(names: Iterable[TaskId]) -> Callable[[TaskId], str]:
    """Return a function that says which name was meant, for the first few that it is asked about."""
    known = list(islice(names, SUGGESTION_NAMES_MAX))
    asked = 0

    def suggest(name: TaskId) -> str:
        nonlocal asked
        asked += 1
        if asked > SUGGESTIONS_MAX or len(name) > SHOWN_MAX:
            return ""
        near = get_close_matches(name, known, n=1)
        return f": did you mean {_shown(near[0])}?" if near else ""

    return suggest


def _walk(tasks: Sequence[TaskId]) -> str:
    """Return "a -> b -> c", with the middle of a long walk counted instead of named."""
    named = [_shown(task, quote=False) for task in tasks[:CYCLE_NAMED_MAX]]
    if len(tasks) > CYCLE_NAMED_MAX:
        half = CYCLE_NAMED_MAX // 2
        last = [_shown(task, quote=False) for task in tasks[-half:]]
        named = [*named[:half], f"({len(tasks) - CYCLE_NAMED_MAX} more)", *last]
    return " -> ".join(named)


def _shown(text: str, *, quote: bool = True) -> str:
    """Return `text` as it may be repeated in an error: printable and short."""
    printable = repr(text[: SHOWN_MAX + 1])[1:-1]
    short = printable if len(printable) <= SHOWN_MAX else f"{printable[:SHOWN_MAX]}…"
    return f"'{short}'" if quote else short
