"""Every way in which a submission can be wrong is named: which field, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, ResourceName, Skill, TaskId
from services.common.core.instants import Instant, after
from services.scheduler.core.intake.validation import (
    validate,
    validate_claims,
    validate_payload,
)
from services.scheduler.core.model import (
    CollaborationSpec,
    Limits,
    LockMode,
    Payload,
    ResourceClaim,
    RetryPolicy,
    TaskSpec,
)

NOW = Instant(1_760_000_000_000)
LIMITS = Limits()
DAY_MS = 86_400_000


def task(task_id: str = "a", *dependencies: str, **fields: Any) -> TaskSpec:
    made = TaskSpec(TaskId(task_id), (Skill("forecast"),), dependencies=tuple(map(TaskId, dependencies)))
    return replace(made, **fields)


def spec(*tasks: TaskSpec, **fields: Any) -> CollaborationSpec:
    return replace(CollaborationSpec(tasks), **fields)


def error_of(submitted: CollaborationSpec) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        validate(submitted, NOW, LIMITS)
    return caught.value


def fields_of(error: ServiceError) -> list[str]:
    return [violation.field for violation in error.violations]


class TestAllowed:
    def test_a_small_dag(self) -> None:
        validate(spec(task("a"), task("b", "a"), task("c", "a", "b")), NOW, LIMITS)

    def test_everything_at_its_limit(self) -> None:
        others = tuple(task(f"d{n}") for n in range(LIMITS.dependency_max))
        largest = task(
            "x" * 64,
            *(other.task_id for other in others),
            task_name="n" * 256,
            description="é" * 2048,
            task_type="t" * 64,
            required_skills=tuple(Skill(f"s{n}") for n in range(16)),
            required_agents=tuple(AgentId(f"agent-{n}") for n in range(64)),
            resources=tuple(ResourceClaim(ResourceName(f"bridge-{n}")) for n in range(16)),
            payload=Payload("c" * 127, b"p" * 65_536),
            estimated_duration_ms=30 * DAY_MS,
            attempt_timeout_ms=1,
            retry=RetryPolicy(attempt_max=100, backoff_ms=3_600_000, backoff_max_ms=0),
        )
        whole = spec(
            largest,
            *others,
            name="n" * 256,
            collaboration_type="t" * 64,
            coordinator_agent="s-agent",
            deadline=after(NOW, 30 * DAY_MS + 1_000),
        )
        validate(whole, NOW, LIMITS)

    def test_ten_thousand_tasks_in_a_chain(self) -> None:
        tasks = [task("t0"), *(task(f"t{n}", f"t{n - 1}") for n in range(1, 10_000))]
        validate(spec(*tasks), NOW, LIMITS)


@pytest.mark.parametrize(
    ("submitted", "field", "part"),
    [
        (spec(), "collaboration.tasks", "at least 1"),
        (spec(task(), name="n" * 257), "collaboration.name", "at most 256"),
        (spec(task(), name="é" * 129), "collaboration.name", "258 bytes"),
        (spec(task(), collaboration_type="t" * 65), "collaboration.collaboration_type", "at most 64"),
        (spec(task(), coordinator_agent="S Agent"), "collaboration.coordinator_agent", "'S Agent'"),
        (
            spec(task(), shared_context=Payload("c" * 128)),
            "collaboration.shared_context.content_type",
            "at most 127",
        ),
        (spec(task("")), "collaboration.tasks[0].task_id", "1 to 64"),
        (spec(task("a b")), "collaboration.tasks[0].task_id", "'a b' is not allowed"),
        (spec(task("a\n")), "collaboration.tasks[0].task_id", r"'a\n' is not allowed"),
        (spec(task("x" * 65)), "collaboration.tasks[0].task_id", "not allowed"),
        (spec(task(task_name="n" * 257)), "collaboration.tasks[0].task_name", "at most 256"),
        (spec(task(description="n" * 4097)), "collaboration.tasks[0].description", "at most 4096"),
        (spec(task(task_type="A")), "collaboration.tasks[0].task_type", "a-z"),
        (spec(task(required_skills=())), "collaboration.tasks[0].required_skills", "at least 1"),
        (
            spec(task(required_skills=tuple(Skill(f"s{n}") for n in range(17)))),
            "collaboration.tasks[0].required_skills",
            "at most 16",
        ),
        (
            spec(task(required_skills=(Skill("ok"), Skill("Ü")))),
            "collaboration.tasks[0].required_skills[1]",
            "'Ü'",
        ),
        (
            spec(task(required_agents=tuple(AgentId(f"a{n}") for n in range(65)))),
            "collaboration.tasks[0].required_agents",
            "at most 64",
        ),
        (
            spec(task(required_agents=(AgentId("-a"),))),
            "collaboration.tasks[0].required_agents[0]",
            "beginning",
        ),
        (
            spec(task(resources=tuple(ResourceClaim(ResourceName(f"r{n}")) for n in range(17)))),
            "collaboration.tasks[0].resources",
            "at most 16",
        ),
        (
            spec(task(resources=(ResourceClaim(ResourceName("r/1")),))),
            "collaboration.tasks[0].resources[0].resource",
            "'r/1'",
        ),
        (
            spec(
                task(
                    resources=(
                        ResourceClaim(ResourceName("r")),
                        ResourceClaim(ResourceName("r"), LockMode.SHARED),
                    )
                )
            ),
            "collaboration.tasks[0].resources[1].resource",
            "claim it once",
        ),
        (spec(task(estimated_duration_ms=0)), "collaboration.tasks[0].estimated_duration", "1 ms"),
        (
            spec(task(estimated_duration_ms=30 * DAY_MS + 1)),
            "collaboration.tasks[0].estimated_duration",
            "2592000000 ms",
        ),
        (spec(task(attempt_timeout_ms=-1)), "collaboration.tasks[0].attempt_timeout", "is -1 ms"),
        (
            spec(task(retry=RetryPolicy(attempt_max=0))),
            "collaboration.tasks[0].retry_policy.attempt_max",
            "1 to 100",
        ),
        (
            spec(task(retry=RetryPolicy(backoff_ms=3_600_001))),
            "collaboration.tasks[0].retry_policy.backoff",
            "3600000",
        ),
        (
            spec(task(retry=RetryPolicy(backoff_max_ms=-1))),
            "collaboration.tasks[0].retry_policy.backoff_max",
            "0 ms",
        ),
        (spec(task("a"), task("b"), task("a")), "collaboration.tasks[2].task_id", "already tasks[0]"),
        (
            spec(task("observe"), task("forecast", "obsrve")),
            "collaboration.tasks[1].dependencies[0]",
            "did you mean 'observe'?",
        ),
        (
            spec(task("observe"), task("b", "elsewhere")),
            "collaboration.tasks[1].dependencies[0]",
            "no task 'elsewhere' here",
        ),
        (
            spec(task("a"), task("b", "a", "a")),
            "collaboration.tasks[1].dependencies[1]",
            "name it once",
        ),
        (
            spec(*(task(f"d{n}") for n in range(257)), task("x", *(f"d{n}" for n in range(257)))),
            "collaboration.tasks[257].dependencies",
            "at most 256",
        ),
    ],
)
def test_a_bad_field_is_named(submitted: CollaborationSpec, field: str, part: str) -> None:
    error = error_of(submitted)
    assert error.reason is Reason.INVALID_FIELD
    (violation,) = error.violations
    assert violation.field == field
    assert part in violation.description
    assert error.message.startswith(field)


def test_too_many_tasks_is_named() -> None:
    error = error_of(spec(*(task(f"t{n}") for n in range(10_001))))
    assert fields_of(error) == ["collaboration.tasks"]


def test_all_that_is_wrong_is_named_at_once_with_the_first_kinds_reason() -> None:
    error = error_of(
        spec(
            task("a", "b", payload=Payload(data=b"p" * 65_537)),
            task("b", "a", deadline=after(NOW, -1)),
            task("c", "z", required_skills=()),
        )
    )
    assert error.reason is Reason.INVALID_FIELD
    assert fields_of(error) == [
        "collaboration.tasks[2].required_skills",
        "collaboration.tasks[2].dependencies[0]",
        "collaboration.tasks[0].payload.data",
        "collaboration.tasks[0].dependencies[0]",
        "collaboration.tasks[1].deadline",
    ]
    assert error.message.endswith("(and 4 more)")


def test_a_payload_over_the_limit_has_its_own_reason_with_both_sizes() -> None:
    error = error_of(spec(task(), shared_context=Payload(data=b"p" * 65_537)))
    assert error.reason is Reason.PAYLOAD_TOO_LARGE
    assert fields_of(error) == ["collaboration.shared_context.data"]
    assert error.metadata == {"limit_bytes": "65536", "size_bytes": "65537"}


class TestCycle:
    def test_is_named_edge_by_edge(self) -> None:
        error = error_of(spec(task("start"), task("a", "start", "b"), task("b", "c"), task("c", "a")))
        assert error.reason is Reason.CYCLIC_DEPENDENCY
        assert error.metadata == {"cycle": "a -> b -> c -> a"}
        (violation,) = error.violations
        assert violation.field == "collaboration.tasks[1].dependencies[1]"
        assert "take one of these dependencies away" in violation.description

    def test_a_task_that_depends_on_itself(self) -> None:
        assert error_of(spec(task("a", "a"))).metadata == {"cycle": "a -> a"}

    def test_a_ring_of_ten_thousand_is_told_in_short(self) -> None:
        error = error_of(spec(*(task(f"t{n}", f"t{(n + 1) % 10_000}") for n in range(10_000))))
        assert error.metadata["cycle"] == (
            "t0 -> t1 -> t2 -> t3 -> t4 -> (9991 more) -> t9996 -> t9997 -> t9998 -> t9999 -> t0"
        )


class TestDeadlines:
    def test_in_the_past(self) -> None:
        error = error_of(spec(task(), deadline=NOW))
        assert error.reason is Reason.DEADLINE_IN_PAST
        assert fields_of(error) == ["collaboration.deadline"]
        assert error.metadata == {
            "deadline": "2025-10-09T08:53:20.000Z",
            "now": "2025-10-09T08:53:20.000Z",
        }

    def test_a_chain_that_is_too_long_for_the_whole(self) -> None:
        chain = (task("a"), task("b", "a", estimated_duration_ms=5_000), task("c", "b"), task("d"))
        validate(spec(*chain, deadline=after(NOW, 7_000)), NOW, LIMITS)
        error = error_of(spec(*chain, deadline=after(NOW, 6_999)))
        assert error.reason is Reason.DEADLINE_IMPOSSIBLE
        assert error.metadata == {"needed_ms": "7000", "left_ms": "6999"}
        (violation,) = error.violations
        assert violation.field == "collaboration.deadline"
        assert "the chain a -> b -> c needs 7000 ms, 6999 ms are left" in violation.description

    def test_a_task_that_cannot_be_reached_in_time(self) -> None:
        inside = (task("a"), task("b", "a", deadline=after(NOW, 2_000)), task("c", "b"))
        validate(spec(*inside), NOW, LIMITS)
        late = (task("a"), task("b", "a", deadline=after(NOW, 1_999)), task("c", "b"))
        error = error_of(spec(*late))
        assert error.reason is Reason.DEADLINE_IMPOSSIBLE
        assert fields_of(error) == ["collaboration.tasks[1].deadline"]
        assert error.metadata == {"needed_ms": "2000", "left_ms": "1999"}

    def test_is_not_judged_while_a_duration_means_nothing(self) -> None:
        error = error_of(spec(task(estimated_duration_ms=31 * DAY_MS), deadline=after(NOW, 1)))
        assert fields_of(error) == ["collaboration.tasks[0].estimated_duration"]

    def test_a_task_inherits_the_whole_ones_and_the_earlier_counts(self) -> None:
        soon, late, later = after(NOW, 10), after(NOW, 20), after(NOW, 30)
        whole = spec(task("a"), deadline=late)
        assert whole.deadline_of(task(deadline=soon)) == soon
        assert whole.deadline_of(task()) == late
        assert whole.deadline_of(task(deadline=later)) == late
        assert spec(task("a")).deadline_of(task(deadline=later)) == later
        assert spec(task("a")).deadline_of(task()) is None


class TestLockRequests:
    def test_claims_are_checked_at_their_own_path(self) -> None:
        claims = [ResourceClaim(ResourceName("bridge-3"))]
        validate_claims(claims, "lock_requests[0].claims", LIMITS)
        with pytest.raises(ServiceError) as caught:
            validate_claims([*claims, *claims], "lock_requests[0].claims", LIMITS)
        assert fields_of(caught.value) == ["lock_requests[0].claims[1].resource"]

    def test_no_claim_is_no_request(self) -> None:
        with pytest.raises(ServiceError) as caught:
            validate_claims([], "claims", LIMITS)
        assert fields_of(caught.value) == ["claims"]


def test_a_payload_is_checked_at_its_own_path() -> None:
    validate_payload(Payload(data=b"p" * 65_536), "results[0].result", LIMITS)
    with pytest.raises(ServiceError) as caught:
        validate_payload(Payload(data=b"p" * 65_537), "results[0].result", LIMITS)
    assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE
    assert fields_of(caught.value) == ["results[0].result.data"]


@given(
    st.lists(
        st.builds(
            TaskSpec,
            task_id=st.text(max_size=300).map(TaskId),
            required_skills=st.lists(st.text(max_size=300).map(Skill), max_size=20).map(tuple),
            dependencies=st.lists(st.text(max_size=300).map(TaskId), max_size=20).map(tuple),
            estimated_duration_ms=st.integers(),
            deadline=st.none() | st.integers(0, 2**62).map(Instant),
        ),
        max_size=20,
    )
)
def test_hostile_text_gets_a_short_printable_error(tasks: list[TaskSpec]) -> None:
    try:
        validate(CollaborationSpec(tuple(tasks)), NOW, LIMITS)
    except ServiceError as error:
        texts = [error.message, *error.metadata.values()]
        texts += [text for violation in error.violations for text in (violation.field, violation.description)]
        assert all(text.isprintable() for text in texts)
        # An error travels in trailers of at most 8 KiB, where it takes a third more as base64.
        assert sum(len(text.encode()) for text in texts) < 6_000
