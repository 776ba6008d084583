"""Acceptance, idempotency, bounds, unknown skills, cancellation, deadlines, retention."""

from __future__ import annotations

import gc
import weakref

import pytest

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import CollaborationId
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change, CollaborationView, TaskView
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import (
    Accepted,
    CancelAttempt,
    Forget,
    Publish,
    SaveSpecs,
)
from services.scheduler.core.events import AgentsChanged, Refused, ReplyId
from services.scheduler.core.model import (
    CollaborationState,
    FailureKind,
    Payload,
    TaskState,
    UnknownSkillPolicy,
)
from services.scheduler.core.queries import waiting_for
from services.scheduler.core.running.results import aggregate
from tests.unit.scheduler.scheduler_stage import Stage, ack_errors, answer, assigned, only, task


def refusal(value: object) -> ServiceError:
    assert isinstance(value, ServiceError)
    return value


def test_a_repeated_request_gets_the_first_answer() -> None:
    stage = Stage()
    stage.know("a", "work")
    first, again = answer(stage.submit(task("t"))), stage.submit(task("t"))
    known = CollaborationId("c-r1")
    assert first == Accepted(known, 1, already_accepted=False, warnings=())
    assert answer(again) == Accepted(known, 1, already_accepted=True, warnings=())
    assert not only(again, SaveSpecs)


def test_the_same_request_id_with_other_content_is_refused_and_recorded() -> None:
    stage = Stage()
    stage.submit(task("t"))
    error = refusal(answer(stage.submit(task("other"))))
    assert error.reason is Reason.REQUEST_ID_REUSED
    assert stage.entries[-1].outcome is Outcome.REFUSED
    assert stage.entries[-1].reason == "REQUEST_ID_REUSED"


def test_a_faulty_submission_is_refused_and_leaves_nothing() -> None:
    stage = Stage()
    error = refusal(answer(stage.submit(task("a", "b"), task("b", "a"))))
    assert error.reason is Reason.CYCLIC_DEPENDENCY
    assert not stage.state.book.collaborations
    assert stage.entries[-1].operation == "collaboration.submit"


def test_what_the_edge_refused_is_recorded_and_answered() -> None:
    stage = Stage()
    error = ServiceError(Reason.INVALID_FIELD, "request_id: too long")
    event = Refused("c", "collaboration.submit", "collaboration/x", "agent/a", error, ReplyId(9))
    assert answer(stage.batch(event)) is error
    assert stage.entries[-1].actor == "agent/a"


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        (Settings(open_collaboration_max=1), "open_collaboration_max"),
        (Settings(open_task_max=2), "open_task_max"),
        (Settings(open_bytes_max=100), "open_bytes_max"),
    ],
)
def test_a_full_plane_says_which_bound_and_when_to_come_back(settings: Settings, limit: str) -> None:
    stage = Stage(settings)
    stage.agent("a", slots=2)
    fill = Payload("", bytes(30))
    stage.submit(task("x"), task("y"), shared_context=Payload("", bytes(60)))
    error = refusal(answer(stage.submit(task("t"), request_id="r2", shared_context=Payload("", bytes(60)))))
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.metadata["limit"] == limit
    assert error.retry_after_ms
    stage.finish(stage.link("a", 0, held=(stage.ref("x"), stage.ref("y"))), "x", "y")
    assert isinstance(answer(stage.submit(task("t"), request_id="r2", shared_context=fill)), Accepted)


def test_unknown_skills_are_waited_for_with_a_warning_or_refused() -> None:
    stage = Stage()
    stage.know("a", "dig")
    accepted = answer(stage.submit(task("t", skill="fly")))
    assert isinstance(accepted, Accepted)
    assert accepted.warnings == ("task t: no known agent has the skill fly",)
    assert waiting_for(stage.state.book, stage.task("t")) == "an agent with the skill fly: none is known"
    error = refusal(
        answer(
            stage.submit(
                task("t", skill="fly"), request_id="r2", unknown_skill_policy=UnknownSkillPolicy.FAIL
            )
        )
    )
    assert error.reason is Reason.UNKNOWN_SKILL
    assert error.metadata["skills"] == "fly"


def test_tasks_that_lack_the_same_are_named_in_one_warning() -> None:
    stage = Stage()
    tasks = [task(f"t{number}", skill="fly") for number in range(12)]
    accepted = answer(stage.submit(*tasks, task("dug", skill="dig")))
    assert isinstance(accepted, Accepted)
    assert accepted.warnings == (
        "tasks t0, t1, t2, t3, t4 and 7 more: no known agent has the skill fly",
        "task dug: no known agent has the skill dig",
    )


def test_skills_that_nobody_has_together_and_agents_that_lack_them_are_unknown_too() -> None:
    stage = Stage()
    stage.know("a", "dig")
    stage.know("b", "fly")
    tasks = (task("both", skills=("dig", "fly")), task("named", skill="dig", required_agents=("b",)))
    accepted = answer(stage.submit(*tasks))
    assert isinstance(accepted, Accepted)
    assert accepted.warnings == (
        "task both: no known agent has dig + fly together",
        "task named: none of b is known to have dig",
    )
    refused = stage.submit(*tasks, request_id="r2", unknown_skill_policy=UnknownSkillPolicy.FAIL)
    assert refusal(answer(refused)).reason is Reason.UNKNOWN_SKILL


def test_a_skill_stays_known_when_its_agent_is_away_and_is_forgotten_with_the_agent() -> None:
    stage = Stage()
    stage.know("a", "dig", gone=True)
    fail = UnknownSkillPolicy.FAIL
    accepted = stage.submit(task("t", skill="dig"), request_id="r1", unknown_skill_policy=fail)
    assert isinstance(answer(accepted), Accepted)
    stage.batch(AgentsChanged("agents", 0.0, (), snapshot=True))
    refused = stage.submit(task("t", skill="dig"), request_id="r2", unknown_skill_policy=fail)
    assert refusal(answer(refused)).reason is Reason.UNKNOWN_SKILL


def test_the_course_of_a_collaboration_is_one_event_for_each_generation() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=1)
    effects = stage.submit(task("x"), task("y", "x"))
    effects += stage.frame(stream, started=(stage.ref("x"),))
    effects += stage.finish(stream, "x")
    effects += stage.finish(stream, "y")
    changes = [effect.change for effect in only(effects, Publish) if isinstance(effect.change, Change)]
    assert [change.generation for change in changes] == list(range(1, len(changes) + 1))
    course = [
        f"{subject.task.key.task_id} {subject.state.name}"
        if isinstance(subject, TaskView)
        else subject.state.name
        for subject in (change.subject for change in changes)
        if isinstance(subject, TaskView | CollaborationView)
    ]
    assert course == [
        "INITIALIZING",
        "ACTIVE",
        "x ASSIGNED",
        "x RUNNING",
        "x SUCCEEDED",
        "y READY",
        "y ASSIGNED",
        "y SUCCEEDED",
        "COMPLETED",
    ]
    history = stage.collaboration().history
    assert history.since(0) == changes
    assert history.since(7) == changes[7:]


def test_a_history_beyond_its_bound_is_a_gap() -> None:
    stage = Stage(Settings(history_max=4))
    stream = stage.agent("a", slots=1)
    stage.submit(*(task(f"t{number}") for number in range(6)))
    for number in range(6):
        stage.finish(stream, f"t{number}")
    history = stage.collaboration().history
    assert history.since(0) is None
    assert len(history) < 8
    newest = stage.collaboration().generation
    assert history.since(newest) == []
    assert len(history.since(newest - 3) or ()) == 3


def test_results_of_sinks_and_contributions_in_order() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    stage.submit(task("x"), task("y"), task("z", "x"))
    streams = {"a": a, "b": b}
    for name in ("y", "x", "z"):
        agent = stage.task(name).attempts[-1].instance.agent_id
        stage.finish(streams[agent], name)
    assert aggregate(stage.collaboration()) is not None
    result = aggregate(stage.collaboration())
    assert result is not None
    assert {name: payload.data for name, payload in result.outputs.items()} == {"y": b"y", "z": b"z"}
    assert [row.task_id for row in result.contributions] == ["y", "x", "z"]
    assert stage.collaboration().state is CollaborationState.COMPLETED


def test_the_coordinator_is_the_preferred_agent_or_the_first_that_works() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    stage.submit(task("t"), request_id="r1")
    stage.submit(task("t"), request_id="r2", coordinator_agent="chief")
    assert stage.collaboration("r1").coordinator_agent == "a"
    assert stage.collaboration("r2").coordinator_agent == "chief"


def test_cancelling_ends_everything_at_once_and_fences_what_runs() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=1)
    stage.submit(task("x"), task("y", "x"), task("z"))
    effects = stage.cancel(reason="the river fell")
    assert isinstance(answer(effects), Collaboration)
    assert stage.collaboration().state is CollaborationState.CANCELLED
    assert {each.state for each in stage.collaboration().tasks.values()} == {TaskState.CANCELLED}
    [stop] = only(effects, CancelAttempt)
    assert (stop.attempt, stop.reason) == (stage.ref("x"), "the river fell")
    late = stage.finish(stream, "x")
    [error] = ack_errors(late)
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert isinstance(answer(stage.cancel()), Collaboration)


def test_what_has_ended_cannot_be_cancelled() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    stage.finish(stream, "t")
    error = refusal(answer(stage.cancel()))
    assert (error.reason, error.metadata["state"]) == (Reason.WRONG_STATE, "COMPLETED")
    assert refusal(answer(stage.cancel("r9"))).reason is Reason.COLLABORATION_NOT_FOUND


def test_a_deadline_fails_what_is_not_done_and_what_depends_on_it() -> None:
    stage = Stage()
    stage.agent("a", slots=1)
    stage.submit(task("x"), task("y", "x"), deadline=Instant(stage.now + 5_000))
    effects = stage.pass_time(5_000)
    assert only(effects, CancelAttempt)
    assert stage.task("x").failure is not None
    assert stage.task("x").failure.reason == "DEADLINE_PASSED"  # type: ignore[union-attr]
    assert stage.task("y").state in (TaskState.FAILED, TaskState.CANCELLED)
    assert stage.collaboration().state is CollaborationState.FAILED
    assert stage.collaboration().failure.kind is FailureKind.PERMANENT  # type: ignore[union-attr]


def test_a_met_deadline_leaves_no_timer() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"), deadline=Instant(stage.now + 5_000))
    stage.finish(stream, "t")
    stage.pass_time(6_000)
    assert stage.collaboration().state is CollaborationState.COMPLETED


def test_ended_collaborations_are_forgotten_after_their_window_and_freed_at_once() -> None:
    stage = Stage(Settings(retention_ms=10_000))
    stream = stage.agent("a")
    stage.submit(task("t"))
    stage.finish(stream, "t")
    stage.entries.clear()
    alive = weakref.ref(stage.collaboration())
    gc.disable()
    try:
        assert not only(stage.pass_time(9_999), Forget)
        assert only(stage.pass_time(1), Forget) == [Forget("c-r1")]  # type: ignore[arg-type]
        assert alive() is None, "it waits for the garbage collector"
    finally:
        gc.enable()
    assert not stage.store.headers
    assert not stage.store.tasks


def test_no_more_ended_collaborations_stay_than_the_bound() -> None:
    stage = Stage(Settings(retained_max=2))
    stream = stage.agent("a")
    for number in range(4):
        stage.submit(task("t"), request_id=f"r{number}")
        stage.finish(stream, "t", request_id=f"r{number}")
    assert sorted(stage.state.book.collaborations) == ["c-r2", "c-r3"]


def test_no_more_tasks_of_ended_collaborations_stay_than_the_bound() -> None:
    stage = Stage(Settings(retained_task_max=5))
    for number in range(3):
        stage.submit(task("x"), task("y"), request_id=f"r{number}")
        stage.cancel(f"r{number}")
    assert sorted(stage.state.book.collaborations) == ["c-r1", "c-r2"]


def test_inputs_that_cannot_travel_fail_the_task_that_wants_them() -> None:
    stage = Stage(Settings(input_bytes_max=10))
    stream = stage.agent("a", slots=2)
    stage.submit(task("part-one"), task("part-two"), task("sum", "part-one", "part-two"))
    effects = stage.finish(stream, "part-one", "part-two")
    assert assigned(effects) == []
    assert stage.task("sum").failure is not None
    assert stage.task("sum").failure.reason == "INPUTS_TOO_LARGE"  # type: ignore[union-attr]
    assert stage.collaboration().state is CollaborationState.FAILED


def test_why_a_task_waits() -> None:
    stage = Stage()
    stage.know("a", "work", "dig")
    stage.submit(task("x"), task("y", "x"), task("z", required_agents=("a",), skill="dig"))
    book = stage.state.book
    assert waiting_for(book, stage.task("y")) == "tasks x"
    assert waiting_for(book, stage.task("x")) == "a free agent with work"
    assert waiting_for(book, stage.task("z")) == "a free slot of a with dig"
    stage.link("a", slots=1)
    assert waiting_for(book, stage.task("x")) == ""


def test_views_do_not_change_with_what_they_show() -> None:
    stage = Stage()
    stream = stage.agent("a")
    effects = stage.submit(task("t"))
    views = [
        effect.change.subject
        for effect in only(effects, Publish)
        if isinstance(effect.change, Change) and isinstance(effect.change.subject, CollaborationView)
    ]
    stage.finish(stream, "t")
    assert [view.state.name for view in views] == ["INITIALIZING", "ACTIVE"]
