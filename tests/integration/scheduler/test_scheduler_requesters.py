"""Streams of submissions, lists, watches, and who may do what."""

from __future__ import annotations

from typing import Any

import pytest
from muster.common.v1 import page_pb2
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.errors import Reason
from services.common.rpc.status import from_status
from tests.conftest import Eventually
from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import Plane, refused, submission, task


async def test_frames_of_submissions_are_answered_by_request_id(start_plane: StartPlane) -> None:
    plane = await start_plane(submissions_max=10)
    stub = await plane.stub()
    call = stub.Submit()
    for frame in range(4):
        rows = [submission(request_id=f"r-{frame}-{row}") for row in range(20)]
        rows.append(submission(task("a", "a"), request_id=f"bad-{frame}"))
        rows.append(pb.SubmitCollaborationRequest(request_id=f"empty-{frame}"))
        await call.write(pb.SubmitRequest(submissions=rows))
    await call.done_writing()
    outcomes = {row.request_id: row async for frame in call for row in frame.outcomes}
    assert len(outcomes) == 88
    for request_id, outcome in outcomes.items():
        if request_id.startswith("r-"):
            assert outcome.accepted.collaboration_id
        else:
            assert from_status(outcome.error).violations
    listed = await stub.ListCollaborations(pb.ListCollaborationsRequest())
    assert len(listed.collaborations) == 80


async def test_a_frame_with_too_many_submissions_ends_the_stream(start_plane: StartPlane) -> None:
    plane = await start_plane()
    call = (await plane.stub()).Submit()
    await call.write(pb.SubmitRequest(submissions=[submission()] * 257))
    async with refused() as errors:
        async for _ in call:
            pass
    assert errors[0].reason is Reason.INVALID_FIELD


async def test_lists_are_pages_newest_first(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    names = [(await stub.SubmitCollaboration(submission())).collaboration_id for _ in range(7)]
    await stub.CancelCollaboration(pb.CancelCollaborationRequest(collaboration_id=names[2]))
    page = page_pb2.PageRequest(page_size=3)
    seen: list[str] = []
    while True:
        answer = await stub.ListCollaborations(pb.ListCollaborationsRequest(page=page))
        assert len(answer.collaborations) <= 3
        seen += [each.collaboration_id for each in answer.collaborations]
        page.page_token = answer.page.next_page_token
        if not page.page_token:
            break
    assert seen == names[::-1]
    cancelled = await stub.ListCollaborations(
        pb.ListCollaborationsRequest(states=[collaboration_pb.COLLABORATION_STATE_CANCELLED])
    )
    assert [each.collaboration_id for each in cancelled.collaborations] == [names[2]]
    for bad in (
        pb.ListCollaborationsRequest(page=page_pb2.PageRequest(page_size=1_001)),
        pb.ListCollaborationsRequest(page=page_pb2.PageRequest(page_token="x")),
        pb.ListCollaborationsRequest(states=[77]),  # type: ignore[list-item]  # a number without a name
    ):
        async with refused() as errors:
            await stub.ListCollaborations(bad)
        assert errors[0].reason is Reason.INVALID_FIELD


async def test_agents_see_and_stop_their_own_only(start_plane: StartPlane) -> None:
    plane = await start_plane()
    operator, chief = await plane.stub(), await plane.stub("agent/chief")
    theirs = (await operator.SubmitCollaboration(submission())).collaboration_id
    own = (await chief.SubmitCollaboration(submission())).collaboration_id
    for call in (
        chief.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=theirs)),
        chief.CancelCollaboration(pb.CancelCollaborationRequest(collaboration_id=theirs)),
    ):
        async with refused() as errors:
            await call
        assert errors[0].reason is Reason.ACCESS_DENIED
    async with refused() as errors:
        async for _ in chief.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=theirs)):
            pass
    assert errors[0].reason is Reason.ACCESS_DENIED
    listed = await chief.ListCollaborations(pb.ListCollaborationsRequest())
    assert [each.collaboration_id for each in listed.collaborations] == [own]
    cancel = pb.CancelCollaborationRequest(collaboration_id=own)
    assert (await operator.CancelCollaboration(cancel)).collaboration.requester == "agent/chief"


@pytest.mark.parametrize(
    ("principal", "method", "request_message"),
    [
        ("operator/admin", "Work", None),
        ("service/registry", "SubmitCollaboration", submission()),
        ("service/broker", "CancelCollaboration", pb.CancelCollaborationRequest()),
        ("agent/chief", "GetMembers", pb.GetMembersRequest()),
        ("operator/admin", "GetMembers", pb.GetMembersRequest()),
        ("service/registry", "GetMembers", pb.GetMembersRequest()),
    ],
)
async def test_what_is_not_allowed_is_denied(
    start_plane: StartPlane, principal: str, method: str, request_message: Any
) -> None:
    plane = await start_plane()
    stub = await plane.stub(principal)
    async with refused() as errors:
        if request_message is None:
            await getattr(stub, method)().read()
        else:
            await getattr(stub, method)(request_message)
    assert errors[0].reason is Reason.ACCESS_DENIED


async def test_the_broker_is_told_who_belongs_together(start_plane: StartPlane) -> None:
    plane = await start_plane()
    chief, broker = await plane.stub("agent/chief"), await plane.stub("service/broker")
    made = submission()
    made.collaboration.coordinator_agent = "leader"
    own = (await chief.SubmitCollaboration(made)).collaboration_id
    answer = await broker.GetMembers(pb.GetMembersRequest(collaboration_id=own))
    assert set(answer.members) >= {"chief", "leader"}
    assert answer.generation >= 1
    async with refused() as errors:
        await broker.GetMembers(pb.GetMembersRequest(collaboration_id="c-none"))
    assert errors[0].reason is Reason.COLLABORATION_NOT_FOUND


async def watched(call: Any, until: Any) -> list[collaboration_pb.CollaborationEvent]:
    """Return the events of a watch up to the first for which `until` holds."""
    events: list[collaboration_pb.CollaborationEvent] = []
    while True:
        for event in (await call.read()).events:
            events.append(event)
            if until(event):
                call.cancel()
                return events


def completed(event: collaboration_pb.CollaborationEvent) -> bool:
    return event.collaboration.state == collaboration_pb.COLLABORATION_STATE_COMPLETED


async def done(plane: Plane, *tasks: task_pb.TaskSpec) -> str:
    """Return a collaboration that was done by one agent."""
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=1)
    answer = await stub.SubmitCollaboration(submission(*tasks))
    for each in tasks:
        await agent.finish(await agent.assignment(each.task_id), each.task_id.encode())
    await agent.ack((await agent.assignment(tasks[-1].task_id)).attempt)
    return str(answer.collaboration_id)


async def test_a_watcher_sees_every_generation_from_where_it_stopped(start_plane: StartPlane) -> None:
    plane = await start_plane()
    name = await done(plane, task("x"), task("y", "x"))
    stub = await plane.stub()
    whole = await watched(
        stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=name, from_generation=1)),
        completed,
    )
    assert [event.generation for event in whole] == list(range(2, whole[-1].generation + 1))
    assert whole[-1].collaboration.result.outputs["y"].data == b"y"
    part = await watched(
        stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=name, from_generation=5)),
        completed,
    )
    assert part == whole[4:]
    only = await watched(
        stub.WatchCollaborations(
            pb.WatchCollaborationsRequest(collaboration_id=name, from_generation=1, collaborations_only=True)
        ),
        completed,
    )
    assert only == [event for event in whole if event.HasField("collaboration")]


async def test_a_watch_from_nothing_begins_with_a_snapshot_and_goes_on_live(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    answer = await stub.SubmitCollaboration(submission(task("x"), task("y")))
    call = stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=answer.collaboration_id))
    first = await call.read()
    assert [event.WhichOneof("change") for event in first.events] == ["collaboration", "task", "task"]
    assert first.events[1].task.waiting_for.startswith("an agent with the skill work")
    agent = await plane.agent("field-1", slots=2)
    for name in ("x", "y"):
        await agent.finish(await agent.assignment(name))
    events = await watched(call, completed)
    assert [event.generation for event in events] == list(range(2, events[-1].generation + 1))


async def test_what_is_no_longer_kept_is_an_explicit_gap(start_plane: StartPlane) -> None:
    plane = await start_plane(history_max=2)
    name = await done(plane, task("x"), task("y", "x"))
    call = (await plane.stub()).WatchCollaborations(
        pb.WatchCollaborationsRequest(collaboration_id=name, from_generation=1)
    )
    events = await watched(call, completed)
    assert events[0].gap.from_generation == 1
    assert events[0].gap.to_generation == events[0].generation == events[1].generation
    assert completed(events[1])


async def test_a_watcher_of_everything_sees_what_it_submitted_and_will_submit(
    start_plane: StartPlane,
) -> None:
    plane = await start_plane()
    stub, other = await plane.stub(), await plane.stub("agent/chief")
    first = (await stub.SubmitCollaboration(submission(name="first"))).collaboration_id
    call = stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaborations_only=True))
    snapshot = await call.read()
    assert [event.collaboration_id for event in snapshot.events] == [first]
    await other.SubmitCollaboration(submission(name="not for us"))
    second = (await stub.SubmitCollaboration(submission(name="second"))).collaboration_id
    agent = await plane.agent("field-1", slots=9)
    assignment = await agent.wait(
        lambda: next(
            (row for row in agent.all("assignments") if row.attempt.collaboration_id == second), None
        )
    )
    await agent.finish(assignment)
    events = await watched(call, completed)
    assert {event.collaboration_id for event in events} == {first, second}
    assert all(event.HasField("collaboration") for event in events)


async def test_a_slow_watcher_gets_a_gap_and_a_snapshot(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    plane = await start_plane(watcher_events_max=3)
    stub = await plane.stub()
    call = stub.WatchCollaborations(pb.WatchCollaborationsRequest())
    names = set()
    for frame in range(4):
        submit = stub.Submit()
        rows = [submission(request_id=f"slow-{frame}-{row}") for row in range(200)]
        await submit.write(pb.SubmitRequest(submissions=rows))
        await submit.done_writing()
        names |= {row.accepted.collaboration_id async for answer in submit for row in answer.outcomes}
    seen: set[str] = set()
    gaps = 0
    async for response in call:
        gaps += sum(event.HasField("gap") for event in response.events)
        seen |= {event.collaboration_id for event in response.events if event.HasField("collaboration")}
        if seen == names:
            break
    call.cancel()
    assert gaps


async def test_watch_streams_are_bounded(start_plane: StartPlane) -> None:
    plane = await start_plane(watchers_max=1)
    stub = await plane.stub()
    await stub.SubmitCollaboration(submission())
    first = stub.WatchCollaborations(pb.WatchCollaborationsRequest())
    await first.read()
    async with refused() as errors:
        await stub.WatchCollaborations(pb.WatchCollaborationsRequest()).read()
    assert errors[0].reason is Reason.QUOTA_EXCEEDED
    first.cancel()


async def test_an_answer_that_would_be_too_large_leaves_payloads_out(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    rows = [task(f"t{number}", payload={"data": bytes(60_000)}) for number in range(60)]
    answer = await stub.SubmitCollaboration(submission(*rows))
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=answer.collaboration_id))
    assert len(found.collaboration.tasks) == 60
    assert not any(each.spec.payload.data for each in found.collaboration.tasks)
