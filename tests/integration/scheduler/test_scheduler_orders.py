"""Pause and resume, profiles, judgements and alerts, asked over real sockets."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import grpc
import pytest
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import policy_pb2 as policy_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import Plane, refused, submission, task

SUSPENDED = collaboration_pb.COLLABORATION_STATE_SUSPENDED


async def error_of(call: Any) -> ServiceError:
    async with refused() as errors:
        await call
    return errors[0]


async def done(plane: Plane) -> str:
    """Return a collaboration whose task "t" was done by field-1."""
    agent = await plane.agent("field-1")
    accepted = await (await plane.stub()).SubmitCollaboration(submission())
    assignment = await agent.assignment("t")
    await agent.finish(assignment)
    assert await agent.ack(assignment.attempt) is None
    return str(accepted.collaboration_id)


async def test_a_pause_outlives_its_leader_and_ends_by_a_resume(start_plane: StartPlane) -> None:
    plane = await start_plane("one", "two")
    stub = await plane.stub()
    name = (await stub.SubmitCollaboration(submission(task("a"), task("b", "a")))).collaboration_id
    answer = await stub.PauseCollaboration(
        pb.PauseCollaborationRequest(collaboration_id=name, reason="the bridge is closed")
    )
    assert answer.collaboration.state == SUSPENDED
    await plane.stop_replica(await plane.leader())
    stub = await plane.stub()
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=name))
    assert found.collaboration.state == SUSPENDED
    assert "paused" in found.collaboration.tasks[0].waiting_for
    agent = await plane.agent("field-1", slots=2)
    await stub.ResumeCollaboration(pb.ResumeCollaborationRequest(collaboration_id=name))
    assert (await agent.assignment("a")).attempt.token.number == 1
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=name))
    assert found.collaboration.state == collaboration_pb.COLLABORATION_STATE_ACTIVE


async def test_pause_and_resume_say_why_they_are_refused(start_plane: StartPlane) -> None:
    plane = await start_plane()
    operator, chief = await plane.stub(), await plane.stub("agent/chief")
    name = (await operator.SubmitCollaboration(submission())).collaboration_id
    for method, request in (
        ("PauseCollaboration", pb.PauseCollaborationRequest),
        ("ResumeCollaboration", pb.ResumeCollaborationRequest),
    ):
        foreign = await error_of(getattr(chief, method)(request(collaboration_id=name)))
        assert foreign.reason is Reason.ACCESS_DENIED
        unknown = await error_of(getattr(operator, method)(request(collaboration_id="c-none")))
        assert unknown.reason is Reason.COLLABORATION_NOT_FOUND
        wordy = await error_of(getattr(operator, method)(request(collaboration_id=name, reason="x" * 1_025)))
        assert [violation.field for violation in wordy.violations] == ["reason"]
    await operator.CancelCollaboration(pb.CancelCollaborationRequest(collaboration_id=name))
    ended = await error_of(operator.PauseCollaboration(pb.PauseCollaborationRequest(collaboration_id=name)))
    assert (ended.reason, ended.metadata["state"]) == (Reason.WRONG_STATE, "CANCELLED")


async def test_a_profile_shows_what_was_learned_and_judged(start_plane: StartPlane) -> None:
    plane = await start_plane()
    name = await done(plane)
    stub = await plane.stub()
    judged = await stub.AssessTask(
        pb.AssessTaskRequest(collaboration_id=name, task_id="t", score=0.25, comment="half of it is missing")
    )
    assert judged.agent_id == "field-1"
    profile = (await stub.GetAgentProfile(pb.GetAgentProfileRequest(agent_id="field-1"))).profile
    assert profile.agent_id == "field-1"
    [row] = profile.types
    assert (row.task_type, row.run_count, row.judgements) == ("work", 1, 1.0)
    assert row.quality.low < row.quality.high
    assert [link.instance_id for link in profile.links] == ["0"]
    own = await plane.stub("agent/field-1")
    assert (await own.GetAgentProfile(pb.GetAgentProfileRequest(agent_id="field-1"))).profile.agent_id
    other = await error_of(own.GetAgentProfile(pb.GetAgentProfileRequest(agent_id="field-2")))
    assert other.reason is Reason.ACCESS_DENIED
    nobody = await error_of(stub.GetAgentProfile(pb.GetAgentProfileRequest(agent_id="nobody")))
    assert nobody.reason is Reason.AGENT_NOT_FOUND


@pytest.mark.parametrize("agent_id", ["", "No Such Name", "x" * 65])
async def test_a_profile_of_no_name_is_refused_by_its_field(start_plane: StartPlane, agent_id: str) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    error = await error_of(stub.GetAgentProfile(pb.GetAgentProfileRequest(agent_id=agent_id)))
    assert error.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.violations] == ["agent_id"]


async def test_judgements_that_make_no_sense_are_refused_by_their_field(start_plane: StartPlane) -> None:
    plane = await start_plane()
    name = await done(plane)
    stub = await plane.stub()

    async def refusal(**fields: Any) -> ServiceError:
        request = pb.AssessTaskRequest(**{"collaboration_id": name, "task_id": "t", "score": 0.5, **fields})
        return await error_of(stub.AssessTask(request))

    for fields, field in (
        ({"score": 1.5}, "score"),
        ({"score": -0.1}, "score"),
        ({"score": float("nan")}, "score"),
        ({"comment": "x" * 1_025}, "comment"),
    ):
        error = await refusal(**fields)
        assert error.reason is Reason.INVALID_FIELD
        assert [violation.field for violation in error.violations] == [field]
    assert (await refusal(collaboration_id="c-none")).reason is Reason.COLLABORATION_NOT_FOUND
    assert (await refusal(task_id="nothing")).reason is Reason.TASK_NOT_FOUND
    open_one = (await stub.SubmitCollaboration(submission(task("later", "t2"), task("t2")))).collaboration_id
    error = await refusal(collaboration_id=open_one, task_id="later")
    assert (error.reason, error.metadata["state"]) == (Reason.WRONG_STATE, "PENDING")
    chief = await plane.stub("agent/chief")
    request = pb.AssessTaskRequest(collaboration_id=name, task_id="t", score=0.5)
    assert (await error_of(chief.AssessTask(request))).reason is Reason.ACCESS_DENIED


async def test_alerts_stand_and_are_cleared(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    assert not (await stub.ListAlerts(pb.ListAlertsRequest(include_cleared=True))).alerts
    spec = task("slow")
    spec.estimated_duration.FromSeconds(60)
    name = ""
    # It can just be met when it is submitted, and no agent is there; a busy machine needs more room for that.
    for room_s in (1.5, 4.0, 12.0):
        request = submission(spec)
        request.collaboration.deadline.FromMilliseconds(round((time.time() + 60 + room_s) * 1_000))
        with contextlib.suppress(grpc.aio.AioRpcError):
            name = (await stub.SubmitCollaboration(request)).collaboration_id
            break
    watch = stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=name))
    warned = collaboration_pb.DeadlineWarning()
    while not warned.cause_task_id:
        for event in (await watch.read()).events:
            warned.MergeFrom(event.deadline_warning)
    watch.cancel()
    assert (warned.task_id, warned.cause_task_id) == ("", "slow")
    [alert] = (await stub.ListAlerts(pb.ListAlertsRequest())).alerts
    assert alert.subject == f"collaboration/{name}"
    await stub.CancelCollaboration(pb.CancelCollaborationRequest(collaboration_id=name))
    assert not (await stub.ListAlerts(pb.ListAlertsRequest())).alerts
    [cleared] = (await stub.ListAlerts(pb.ListAlertsRequest(include_cleared=True))).alerts
    assert cleared.HasField("clear_time")
    chief = await plane.stub("agent/chief")
    assert (await error_of(chief.ListAlerts(pb.ListAlertsRequest()))).reason is Reason.ACCESS_DENIED


async def test_policies_adapt_and_are_frozen_and_reset_under_the_next_leader(start_plane: StartPlane) -> None:
    plane = await start_plane("one", "two", scheduling_policy="ADAPTIVE")
    name = await done(plane)
    stub = await plane.stub()
    policy = (await stub.GetAdaptivePolicy(pb.GetAdaptivePolicyRequest())).policy
    assert (policy.enabled, policy.frozen, policy.default_policy) == (True, False, "PRIORITY")
    assert [load.load for load in policy.loads] == ["light", "busy", "full"]
    assert sum(arm.trials for load in policy.loads for arm in load.arms) == 1
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=name))
    assert "PRIORITY" in found.collaboration.tasks[0].attempts[0].explanation
    freeze = pb.ChangeAdaptivePolicyRequest(action=policy_pb.POLICY_ACTION_FREEZE, reason="a drill")
    assert (await stub.ChangeAdaptivePolicy(freeze)).policy.frozen
    await plane.stop_replica(await plane.leader())
    stub = await plane.stub()
    policy = (await stub.GetAdaptivePolicy(pb.GetAdaptivePolicyRequest())).policy
    assert policy.frozen
    assert sum(arm.trials for load in policy.loads for arm in load.arms) == 1
    reset = pb.ChangeAdaptivePolicyRequest(action=policy_pb.POLICY_ACTION_RESET)
    policy = (await stub.ChangeAdaptivePolicy(reset)).policy
    assert not any(arm.trials for load in policy.loads for arm in load.arms)


async def test_changes_of_policies_are_refused_with_what_is_wrong(start_plane: StartPlane) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    assert not (await stub.GetAdaptivePolicy(pb.GetAdaptivePolicyRequest())).policy.enabled
    freeze = pb.ChangeAdaptivePolicyRequest(action=policy_pb.POLICY_ACTION_FREEZE)
    wordy = pb.ChangeAdaptivePolicyRequest(action=policy_pb.POLICY_ACTION_FREEZE, reason="x" * 1_025)
    for request, field in ((pb.ChangeAdaptivePolicyRequest(), "action"), (wordy, "reason")):
        error = await error_of(stub.ChangeAdaptivePolicy(request))
        assert error.reason is Reason.INVALID_FIELD
        assert [violation.field for violation in error.violations] == [field]
    assert (await error_of(stub.ChangeAdaptivePolicy(freeze))).reason is Reason.WRONG_STATE
    chief = await plane.stub("agent/chief")
    assert (await error_of(chief.ChangeAdaptivePolicy(freeze))).reason is Reason.ACCESS_DENIED
