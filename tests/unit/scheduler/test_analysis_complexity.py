"""The complexity of a task: factors that add up, and that history moves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.core.analysis.analysing import analyse
from services.scheduler.core.analysis.complexity import Facts, complexity
from services.scheduler.core.events import ResultReport
from services.scheduler.core.model import Failure, FailureKind, RetryPolicy
from tests.unit.scheduler.scheduler_stage import Stage, task

SIMPLE = Facts(500, 1_000, 0.95, 1, 0, 0, 0, 0, 10)


@given(
    st.builds(
        Facts,
        st.floats(1, 1e10),
        st.floats(1, 1e10),
        st.floats(0, 1),
        *(st.integers(0, 300) for _ in range(4)),
        st.integers(0, 10**7),
        st.integers(0, 5_000),
    )
)
def test_factors_add_up_and_stay_in_their_bounds(facts: Facts) -> None:
    found = complexity(facts)
    assert found.score == pytest.approx(sum(factor.points for factor in found.factors))
    assert 0 <= found.score <= 100
    assert sum(factor.points_max for factor in found.factors) == 100
    assert all(0 <= factor.points <= factor.points_max and factor.reason for factor in found.factors)


@pytest.mark.parametrize(
    "change",
    [
        {"expected_ms": 60_000, "high_ms": 120_000},
        {"high_ms": 5_000},
        {"success": 0.6},
        {"skills": 3},
        {"resources": 2},
        {"dependencies": 7},
        {"dependents": 7},
        {"input_bytes": 9_000},
    ],
)
def test_more_of_anything_is_more_complex(change: dict[str, Any]) -> None:
    assert complexity(SIMPLE._replace(**change)).score > complexity(SIMPLE).score + 1


def test_history_replaces_what_was_declared() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t", task_type="survey"), request_id="before")
    before = analyse(stage.state.book, stage.task("t", "before"))
    assert before.source == "declared"
    stage.finish(stream, "t", request_id="before")
    once = RetryPolicy(attempt_max=1)
    for number in range(12):
        name = f"r{number}"
        stage.submit(task("t", task_type="survey", retry=once), request_id=name)
        stage.frame(stream, started=(stage.ref("t", name),))
        stage.pass_time(9_000)
        if number % 2:
            stage.finish(stream, "t", request_id=name)
        else:
            failure = Failure(FailureKind.PERMANENT, "BROKEN")
            stage.frame(stream, results=(ResultReport(stage.ref("t", name), failure),), credits=1)
    stage.submit(task("t", task_type="survey"), request_id="after")
    after = analyse(stage.state.book, stage.task("t", "after"))
    points = {factor.name: factor.points for factor in after.complexity.factors}
    for factor in before.complexity.factors:
        if factor.name in ("duration", "risk"):
            assert points[factor.name] > factor.points + 1, factor.name
    assert after.complexity.score > before.complexity.score
