"""Submit, assign, result: the main job over real sockets and a real etcd."""

from __future__ import annotations

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1 import task_pb2 as task_pb
from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import Reason
from tests.conftest import Eventually
from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import refused, submission, task


async def test_a_dag_is_done_and_its_results_are_collected(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=2)
    answer = await stub.SubmitCollaboration(
        submission(task("look"), task("plan", "look"), task("act", "plan"), name="flood")
    )
    for name in ("look", "plan", "act"):
        assignment = await agent.assignment(name)
        assert assignment.collaboration_name == "flood"
        assert assignment.coordinator_agent == "field-1"
        assert assignment.requester == "operator/admin"
        await agent.finish(assignment, name.encode())
        assert await agent.ack(assignment.attempt) is None
    act = await agent.assignment("act")
    assert {name: payload.data for name, payload in act.inputs.items()} == {"plan": b"plan"}
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=answer.collaboration_id))
    collaboration = found.collaboration
    assert collaboration.state == collaboration_pb.COLLABORATION_STATE_COMPLETED
    assert {name: payload.data for name, payload in collaboration.result.outputs.items()} == {"act": b"act"}
    assert [row.task_id for row in collaboration.result.contributions] == ["look", "plan", "act"]
    assert [each.state for each in collaboration.tasks] == [task_pb.TASK_STATE_SUCCEEDED] * 3
    assert "level 1.00" in collaboration.tasks[0].attempts[0].explanation


async def test_a_repeated_request_is_accepted_once_and_other_content_refused(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    request = submission(request_id="flood-1")
    first = await stub.SubmitCollaboration(request)
    again = await stub.SubmitCollaboration(request)
    assert (again.collaboration_id, again.already_accepted) == (first.collaboration_id, True)
    assert first.warnings == ["task t: no known agent has the skill work"]
    async with refused() as errors:
        await stub.SubmitCollaboration(submission(request_id="flood-1", name="other"))
    assert errors[0].reason is Reason.REQUEST_ID_REUSED
    # The same id of another requester is another request.
    other = await (await plane.stub("agent/chief")).SubmitCollaboration(request)
    assert other.collaboration_id != first.collaboration_id


async def test_a_bad_submission_gets_every_fault_named(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    for request, reason, field in (
        (submission(task("a", "b"), task("b", "a")), Reason.CYCLIC_DEPENDENCY, "collaboration.tasks[0]"),
        (submission(task("a b")), Reason.INVALID_FIELD, "collaboration.tasks[0].task_id"),
        (submission(request_id="no spaces"), Reason.INVALID_FIELD, "request_id"),
        (submission(priority=99), Reason.INVALID_FIELD, "collaboration.priority"),
        (pb.SubmitCollaborationRequest(request_id="x"), Reason.INVALID_FIELD, "collaboration"),
        (
            submission(task("t", payload={"data": bytes(65_537)})),
            Reason.PAYLOAD_TOO_LARGE,
            "collaboration.tasks[0].payload.data",
        ),
        (submission(task("t", deadline={"seconds": 5})), Reason.DEADLINE_IN_PAST, "collaboration.tasks[0]"),
    ):
        async with refused() as errors:
            await stub.SubmitCollaboration(request)
        assert errors[0].reason is reason
        assert any(row.field.startswith(field) for row in errors[0].violations), errors[0].violations


async def test_an_unknown_skill_fails_if_asked_to(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    async with refused() as errors:
        await stub.SubmitCollaboration(
            submission(
                task("t", skills=["fly"]),
                unknown_skill_policy=collaboration_pb.UNKNOWN_SKILL_POLICY_FAIL,
            )
        )
    assert errors[0].reason is Reason.UNKNOWN_SKILL
    assert errors[0].metadata["skills"] == "fly"


async def test_a_failed_attempt_is_tried_again_and_a_stale_result_refused(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=2)
    retry = task_pb.RetryPolicy(attempt_max=2)
    retry.backoff.FromMilliseconds(1)
    await stub.SubmitCollaboration(submission(task("t", retry_policy=retry)))
    first = await agent.assignment("t", 1)
    failed = work_pb.AttemptResult(attempt=first.attempt)
    failed.failure.reason = "HANDLER_RAISED"
    await agent.say(results=[failed], credits=1)
    second = await agent.assignment("t", 2)
    assert second.attempt.token.number == 2
    await agent.finish(first)
    # The failure's own ack carries no error; the stale result's does.
    await agent.wait(lambda: True if len(agent.all("result_acks")) == 2 else None)
    error = await agent.ack(first.attempt)
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert error.metadata["holder"] == "field-1/0"
    assert error.metadata["token"] == f"{second.attempt.token.epoch}.2"
    await agent.finish(second)
    assert await agent.ack(second.attempt) is None


async def test_work_of_a_dead_agent_goes_to_another(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    dead = await plane.agent("field-1")
    await stub.SubmitCollaboration(submission())
    first = await dead.assignment("t")
    alive = await plane.agent("field-2")
    await dead.close()
    second = await alive.assignment("t")
    assert second.attempt.token.number == first.attempt.token.number + 1
    # It was not dead: what it says now is void, and it is told to stop.
    await dead.link(await plane.stub("agent/field-1"), slots=0, held=[first.attempt])
    [cancel] = await dead.wait(lambda: dead.all("cancels") or None)
    assert (cancel.attempt, cancel.fenced) == (first.attempt, True)
    await dead.finish(first)
    error = await dead.ack(first.attempt)
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    await alive.finish(second)
    assert await alive.ack(second.attempt) is None


async def test_an_agent_that_comes_back_in_time_goes_on(start_plane: StartPlane) -> None:
    plane = await start_plane(reconnect_grace_ms=20_000)
    stub = await plane.stub()
    agent = await plane.agent("field-1")
    await stub.SubmitCollaboration(submission())
    assignment = await agent.assignment("t")
    await agent.link(await plane.stub("agent/field-1"), slots=0, held=[assignment.attempt])
    await agent.finish(assignment)
    assert await agent.ack(assignment.attempt) is None


async def test_an_older_incarnation_is_fenced(start_plane: StartPlane) -> None:
    plane = await start_plane()
    newer = await plane.agent("field-1", incarnation=2)
    await newer.wait(lambda: newer.frames or None)
    stub = await plane.stub("agent/field-1")
    call = stub.Work()
    await call.write(work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[1], incarnation=1)))
    async with refused() as errors:
        async for _ in call:
            pass
    assert errors[0].reason is Reason.INCARNATION_FENCED
    assert errors[0].metadata["incarnation"] == "2"
    assert newer.error is None


async def test_what_is_no_protocol_ends_the_stream_with_a_reason(start_plane: StartPlane) -> None:
    plane = await start_plane()
    hello = work_pb.WorkHello(versions=[1], incarnation=1)
    for frames, reason in (
        ([work_pb.WorkRequest(credits=1)], Reason.MALFORMED_FRAME),
        ([work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[9]))], Reason.UNSUPPORTED_VERSION),
        ([work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[1]))], Reason.INVALID_FIELD),
        ([work_pb.WorkRequest(hello=hello), work_pb.WorkRequest(hello=hello)], Reason.MALFORMED_FRAME),
        ([work_pb.WorkRequest(hello=hello), work_pb.WorkRequest(credits=2_000)], Reason.INVALID_FIELD),
        (
            [
                work_pb.WorkRequest(hello=hello),
                work_pb.WorkRequest(started=[work_pb.AttemptStarted()] * 1_025),
            ],
            Reason.INVALID_FIELD,
        ),
    ):
        stub = await plane.stub("agent/field-9")
        call = stub.Work()
        for frame in frames:
            await call.write(frame)
        async with refused() as errors:
            async for _ in call:
                pass
        assert errors[0].reason is reason, errors[0]


async def test_an_oversized_result_is_refused_and_the_attempt_goes_on(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1")
    await stub.SubmitCollaboration(submission())
    assignment = await agent.assignment("t")
    await agent.finish(assignment, bytes(65_537), slots=0)
    error = await agent.ack(assignment.attempt)
    assert error is not None
    assert error.reason is Reason.PAYLOAD_TOO_LARGE
    await agent.finish(assignment, bytes(65_536), slots=0)
    await agent.wait(lambda: True if len(agent.all("result_acks")) == 2 else None)
    assert await agent.ack(assignment.attempt) is None


async def test_a_silent_agent_is_probed_and_then_closed(start_plane: StartPlane) -> None:
    plane = await start_plane(probe_interval_ms=100, silence_ms_max=600)
    agent = await plane.agent("field-1")
    await agent.wait(lambda: sum(bool(frame.probe_nonce) for frame in agent.frames) >= 8 or None)
    assert agent.error is None
    agent.answer_probes = False
    assert (await agent.wait_ended()).reason is Reason.PEER_SILENT


async def test_cancelling_stops_what_runs(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1")
    answer = await stub.SubmitCollaboration(submission(task("x"), task("y", "x")))
    assignment = await agent.assignment("x")
    cancelled = await stub.CancelCollaboration(
        pb.CancelCollaborationRequest(collaboration_id=answer.collaboration_id, reason="the river fell")
    )
    assert cancelled.collaboration.state == collaboration_pb.COLLABORATION_STATE_CANCELLED
    assert cancelled.collaboration.failure.message == "the river fell"
    [cancel] = await agent.wait(lambda: agent.all("cancels") or None)
    assert (cancel.attempt, cancel.reason, cancel.fenced) == (assignment.attempt, "the river fell", True)
    async with refused() as errors:
        await stub.CancelCollaboration(pb.CancelCollaborationRequest(collaboration_id="c-none"))
    assert errors[0].reason is Reason.COLLABORATION_NOT_FOUND


async def test_progress_reaches_who_looks(start_plane: StartPlane, eventually: Eventually) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1")
    answer = await stub.SubmitCollaboration(submission())
    assignment = await agent.assignment("t")
    await agent.say(started=[work_pb.AttemptStarted(attempt=assignment.attempt)])
    report = work_pb.AttemptProgress(attempt=assignment.attempt, progress=0.5, stage="digging")
    await agent.say(progress=[report])
    request = pb.GetCollaborationRequest(collaboration_id=answer.collaboration_id)

    async def seen() -> bool:
        [found] = (await stub.GetCollaboration(request)).collaboration.tasks
        return (found.state, found.progress, found.stage) == (task_pb.TASK_STATE_RUNNING, 0.5, "digging")

    await eventually(seen)
