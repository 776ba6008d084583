"""What requesters and watchers see of collaborations, as messages and as frames."""

from __future__ import annotations

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import CollaborationId, TaskId
from services.common.core.instants import Instant
from services.common.rpc.status import from_status
from services.scheduler.core.changes import Progress
from services.scheduler.core.effects import Accepted
from services.scheduler.core.events import ResultReport
from services.scheduler.core.model import Failure, FailureKind, Payload
from services.scheduler.wire import answers, values, views
from tests.unit.scheduler.scheduler_stage import Stage, task


def test_a_collaboration_is_shown_whole() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=1)
    rows = {name: task_pb.TaskSpec(task_id=name).SerializeToString() for name in ("x", "y")}
    stage.submit(task("x", encoded=rows["x"]), task("y", "x", encoded=rows["y"]))
    shown = views.whole_collaboration(stage.state.book, stage.collaboration())
    assert [row.spec.task_id for row in shown.tasks] == ["x", "y"]
    assert shown.tasks[1].waiting_for == "tasks x"
    assert shown.tasks[0].attempts[0].agent_id == "a"
    assert not shown.HasField("result")
    stage.finish(stream, "x")
    stage.finish(stream, "y")
    shown = views.whole_collaboration(stage.state.book, stage.collaboration())
    assert shown.result.outputs["y"].data == b"y"
    assert shown.task_succeeded_count == shown.task_count == 2
    assert shown.collaboration_type == "general"
    assert shown.end_time.seconds


def test_results_beyond_the_bound_are_left_to_the_tasks() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=50)
    names = [f"t{number}" for number in range(50)]
    stage.submit(*(task(name) for name in names))
    big = Payload("", bytes(60_000))
    stage.frame(stream, results=tuple(ResultReport(stage.ref(name), big) for name in names))
    message = views.collaboration_message(stage.collaboration().view())
    assert 30 <= len(message.result.outputs) < 50
    assert message.ByteSize() < views.ANSWER_BYTES_MAX
    assert len(message.result.contributions) == 50


def test_changes_become_events() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("x"), task("y", "x"), name="n", shared_context=Payload("t/x", b"ctx"))
    for _ in range(2):
        for change in stage.collaboration().history.since(0) or []:
            raw = views.encode_event(stage.state.book, change)
            event = collaboration_pb.CollaborationEvent.FromString(raw)
            assert event.collaboration_id == stage.collaboration().collaboration_id
            assert event.generation == change.generation
        stage.finish(stream, "x")
        stage.finish(stream, "y")
    shown = views.collaboration_message(stage.collaboration().view())
    assert (shown.name, shown.request_id) == ("n", stage.collaboration().submission.request_id)
    assert shown.shared_context.data == b"ctx"
    assert [row.task_id for row in shown.result.contributions] == ["x", "y"]
    assert shown.members == ["a"]


def test_events_say_when_and_what() -> None:
    stage = Stage()
    stream = stage.agent("a")
    row = task_pb.TaskSpec(task_id="x", required_skills=["s"])
    late = Instant(stage.now + 3_600_000)
    stage.submit(task("x", encoded=row.SerializeToString()), deadline=late)
    began = stage.now
    ref = stage.ref("x")
    stage.frame(stream, started=(ref,))
    stage.finish(stream, "x")
    collaboration = stage.collaboration()
    events = [
        collaboration_pb.CollaborationEvent.FromString(views.encode_event(stage.state.book, change))
        for change in collaboration.history.since(0) or []
    ]
    shown = [event.collaboration for event in events if event.HasField("collaboration")]
    assert [values.instant(one.submit_time) for one in shown] == [collaboration.submit_time] * len(shown)
    assert [values.instant(one.deadline) for one in shown] == [late] * len(shown)
    assert [one.HasField("end_time") for one in shown] == [False] * (len(shown) - 1) + [True]
    assert [one.generation for one in shown] == [
        event.generation for event in events if event.HasField("collaboration")
    ]
    assert values.instant(events[0].event_time) == began
    last, done = shown[-1], [event.task for event in events if event.HasField("task")][-1]
    assert values.instant(events[-1].event_time) == values.instant(last.end_time) == collaboration.end_time
    [contribution] = last.result.contributions
    assert (contribution.task_id, contribution.agent_id, contribution.attempt_number) == ("x", "a", 1)
    assert values.instant(contribution.end_time) == collaboration.end_time
    assert done.spec == row
    assert (done.progress, done.result.data) == (1.0, b"x")
    assert values.instant(done.ready_time) == began
    assert values.instant(done.end_time) == collaboration.end_time
    assert values.token(done.attempts[0].token) == ref.token
    assert done.attempts[0].HasField("start_time")
    progress = Progress(collaboration.collaboration_id, TaskId("x"), 1, 0.5, "half", began)
    raw = views.encode_event(stage.state.book, progress)
    event = collaboration_pb.CollaborationEvent.FromString(raw)
    assert (event.collaboration_id, event.generation) == (collaboration.collaboration_id, 0)
    assert (event.progress.progress, event.progress.stage) == (0.5, "half")
    assert values.instant(event.event_time) == began


def test_a_failed_collaboration_says_why() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("x"))
    why = Failure(FailureKind.PERMANENT, "NO", "it can not be done")
    stage.frame(stream, results=(ResultReport(stage.ref("x"), why),))
    shown = views.collaboration_message(stage.collaboration().view())
    assert (shown.failure.reason, shown.state) == ("NO", collaboration_pb.COLLABORATION_STATE_FAILED)
    assert not shown.HasField("result")


def test_outcomes_of_a_submit_stream_are_messages() -> None:
    accepted = Accepted(CollaborationId("c-1"), 3, already_accepted=True, warnings=("w",))
    refused = ServiceError(Reason.QUOTA_EXCEEDED, "later")
    raw = answers.submit_frame(
        [answers.encode_outcome("r1", accepted), answers.encode_outcome("r2", refused)]
    )
    first, second = service_pb.SubmitResponse.FromString(raw).outcomes
    assert (first.request_id, first.accepted.generation, first.accepted.already_accepted) == ("r1", 3, True)
    assert second.request_id == "r2"
    assert from_status(second.error).reason is Reason.QUOTA_EXCEEDED


def test_frames_of_events_are_bounded_by_count_and_bytes() -> None:
    def sizes(count: int, events_max: int, bytes_max: int) -> list[int]:
        frames = views.watch_frames([event] * count, events_max, bytes_max)
        return [len(service_pb.WatchCollaborationsResponse.FromString(frame).events) for frame in frames]

    event = collaboration_pb.CollaborationEvent(collaboration_id="c" * 100).SerializeToString()
    assert sizes(10, 4, 10**6) == [4, 4, 2]
    assert sizes(10, 100, 250) == [2, 2, 2, 2, 2]
    assert sizes(1, 100, 1) == [1]
    assert sizes(0, 1, 1) == []
