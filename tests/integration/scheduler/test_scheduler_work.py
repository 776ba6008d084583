"""Submit, assign, result: the main job over real sockets and a real etcd."""

from __future__ import annotations

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1 import task_pb2 as task_pb

from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import submission, task


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
