"""An agent against stand-in services over real sockets: assignments, results, reconnects, fences, drain."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from muster.common.v1 import fencing_pb2, payload_pb2
from muster.scheduler.v1 import task_pb2, work_pb2

from agent_client import (
    Agent,
    FencedError,
    MusterError,
    PermanentFailure,
    Task,
    TaskCancelled,
    TransientFailure,
)
from services.common.core.errors import Reason, ServiceError
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane


def json_payload(value: Any) -> payload_pb2.Payload:
    return payload_pb2.Payload(content_type="application/json", data=json.dumps(value).encode())


def value(result: work_pb2.AttemptResult) -> Any:
    return json.loads(result.result.data)


@pytest.fixture
def agent(plane: FakePlane) -> Agent:
    return Agent("field-1", home=plane.home, slots=2)


async def test_a_handler_sees_the_whole_assignment(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    seen: list[Task] = []

    @agent.handler("plan")
    async def plan(task: Task) -> dict[str, Any]:
        seen.append(task)
        return {"sum": task.payload["a"] + task.inputs["other"]}

    deadline = Timestamp()
    deadline.FromSeconds(2_000_000_000)
    async with agent:
        await agent.wait_ready()
        attempt = plane.assign(
            "t1",
            inputs={"other": json_payload(2)},
            shared_context=json_payload({"river": "Qinghe"}),
            members=["a", "b"],
            coordinator_agent="a",
            requester="operator/admin",
            deadline=deadline,
            collaboration_name="flood",
            locks=[work_pb2.HeldLock(resource="r", token=fencing_pb2.FencingToken(epoch=3, number=9))],
        )
        plane.send_assignment(
            work_pb2.Assignment(
                attempt=work_pb2.AttemptRef(
                    collaboration_id="c1",
                    task_id="t2",
                    token=fencing_pb2.FencingToken(epoch=1, number=5),
                ),
                spec=task_pb2.TaskSpec(
                    task_id="t2",
                    task_name="the second",
                    description="add",
                    task_type="plan",
                    required_skills=["x"],
                    payload=json_payload({"a": 1}),
                ),
                inputs={"other": json_payload(2)},
            )
        )
        await eventually(lambda: len(plane.results) == 2)

    by_task = {result.attempt.task_id: result for result in plane.results}
    # The first has no payload, so that its handler raises; its attempt ends as a transient failure.
    assert by_task["t1"].attempt == attempt
    assert by_task["t1"].failure.reason == "HANDLER_RAISED"
    assert value(by_task["t2"]) == {"sum": 3}
    first, second = seen
    assert (first.members, first.coordinator, first.requester) == (("a", "b"), "a", "operator/admin")
    assert first.shared_context == {"river": "Qinghe"}
    assert first.deadline is not None
    assert first.deadline.timestamp() == 2_000_000_000
    assert first.time_left is not None
    assert str(first.locks["r"]) == "3.9"
    assert (second.name, second.description, second.type, second.collaboration_name) == (
        "the second",
        "add",
        "plan",
        "",
    )
    started = [start.attempt.task_id for frame in plane.work.frames for start in frame.started]
    assert sorted(started) == ["t1", "t2"]


async def test_plain_functions_run_in_threads_and_report_progress(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    here = threading.get_ident()
    go_on = threading.Event()

    @agent.handler("plan")
    def plan(task: Task) -> bytes:
        task.progress(0.25, "thinking")
        go_on.wait(30)
        return b"other thread" if threading.get_ident() != here else b"same thread"

    async with agent:
        await agent.wait_ready()
        plane.assign("t")
        await eventually(lambda: any(frame.progress for frame in plane.work.frames))
        go_on.set()
        await eventually(lambda: plane.results)
    assert plane.results[0].result.data == b"other thread"


@pytest.mark.parametrize(
    ("error", "kind", "reason", "message"),
    [
        (ValueError("no gauge"), "TRANSIENT", "HANDLER_RAISED", "ValueError: no gauge"),
        (TransientFailure("busy", reason="GAUGE_BUSY"), "TRANSIENT", "GAUGE_BUSY", "busy"),
        (PermanentFailure("no such river"), "PERMANENT", "PERMANENT_FAILURE", "no such river"),
        (SystemExit(3), "TRANSIENT", "HANDLER_RAISED", "SystemExit: 3"),
    ],
)
async def test_what_a_handler_raises_becomes_a_typed_failure(
    plane: FakePlane,
    agent: Agent,
    eventually: Eventually,
    *,
    error: BaseException,
    kind: str,
    reason: str,
    message: str,
) -> None:
    @agent.handler("async")
    async def fail(_: Task) -> None:
        raise error

    @agent.handler("sync")
    def fail_in_thread(_: Task) -> None:
        raise error

    async with agent:
        await agent.wait_ready()
        plane.assign("a", "async")
        plane.assign("b", "sync")
        await eventually(lambda: len(plane.results) == 2)
    for result in plane.results:
        assert task_pb2.FailureKind.Name(result.failure.kind) == f"FAILURE_KIND_{kind}"
        assert (result.failure.reason, result.failure.message) == (reason, message)


async def test_results_that_can_not_travel_fail_the_task_for_good(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    @agent.handler("odd")
    def odd(_: Task) -> object:
        return object()

    @agent.handler("large")
    def large(_: Task) -> bytes:
        return b"x" * 65_537

    async with agent:
        await agent.wait_ready()
        for skill in ("odd", "large", "unknown"):
            plane.assign(skill, skill)
        await eventually(lambda: len(plane.results) == 3)
    failures = {result.attempt.task_id: result.failure for result in plane.results}
    assert failures["odd"].reason == "INVALID_FIELD"
    assert "result: can not be written as JSON" in failures["odd"].message
    assert failures["large"].reason == "PAYLOAD_TOO_LARGE"
    assert failures["large"].kind == task_pb2.FAILURE_KIND_PERMANENT
    assert failures["unknown"].reason == "NO_HANDLER"
    assert "it handles large, odd" in failures["unknown"].message


async def test_heartbeats_survive_a_handler_that_blocks_its_loop(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    """P2."""
    blocked = threading.Event()

    @agent.handler("plan")
    async def plan(_: Task) -> str:
        blocked.set()
        time.sleep(2.5 * plane.registry.lease_ttl_ms / 1000)  # sleeps: blocking the loop is the test
        return "woke up"

    async with agent:
        await agent.wait_ready()
        plane.work.say(work_pb2.WorkResponse(probe_nonce=1))
        plane.assign("t")
        await eventually(blocked.is_set)
        # The loop of this test is the handler's loop: what follows runs when it is free again.
        await eventually(lambda: plane.results)
    assert len(plane.registry.sessions) == 1
    assert len(plane.scheduler.streams) == 1
    beats = [frame for frame in plane.registry.sessions[0].frames if frame.HasField("heartbeat")]
    assert len(beats) >= 20


async def test_probes_are_answered_while_the_loop_is_blocked(plane: FakePlane, agent: Agent) -> None:
    agent.handler("plan")(lambda task: None)
    async with agent:
        await agent.wait_ready()
        plane.work.say(work_pb2.WorkResponse(probe_nonce=42))
        deadline = time.monotonic() + 10
        # No await: nothing of this loop runs meanwhile.
        while not any(frame.probe_nonce == 42 for frame in plane.work.frames):
            assert time.monotonic() < deadline
            time.sleep(0.001)  # sleeps: nothing of this loop may run meanwhile


async def test_the_report_says_that_work_reaches_the_agent(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    """P1."""
    agent.handler("plan")(lambda task: None)
    plane.registry.heartbeat_interval_ms = 60_000
    plane.registry.lease_ttl_ms = 600_000

    def newest() -> Any:
        frames = [frame for frame in plane.registry.sessions[0].frames if frame.HasField("heartbeat")]
        return frames[-1].heartbeat.load if frames else None

    async with agent:
        await agent.wait_ready()
        # Said at once, not with the next regular heartbeat.
        await eventually(lambda: newest() and newest().work_stream_open)
        await eventually(lambda: newest().HasField("last_probe_time"))
        assert newest().coordinator_epoch == plane.scheduler.epoch
        assert newest().slots == 2
        plane.leader = ""
        plane.schedulers["scheduler1"].streams[-1].say(ServiceError(Reason.SHUTTING_DOWN, "bye"))
        await eventually(lambda: not newest().work_stream_open)


async def test_a_result_is_sent_again_until_it_is_acked(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    plane.scheduler.acks = False

    @agent.handler("plan")
    async def plan(task: Task) -> str:
        return task.id

    async with agent:
        await agent.wait_ready()
        attempt = plane.assign("t")
        await eventually(lambda: len(plane.results) == 1)
        await plane.down("scheduler1")
        plane.scheduler.acks = True
        await plane.up("scheduler1")
        await eventually(lambda: len(plane.results) == 2)
        assert list(plane.work.hello.held) == [attempt]
        assert plane.results[0] == plane.results[1]
        agent.drain()


async def test_running_attempts_survive_a_lost_stream_and_a_new_leader(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    runs: list[str] = []
    go_on = asyncio.Event()

    @agent.handler("plan")
    async def plan(task: Task) -> str:
        runs.append(task.id)
        await go_on.wait()
        return "done"

    async with agent:
        await agent.wait_ready()
        attempt = plane.assign("t")
        await eventually(lambda: runs)
        # The old leader answers but leads no more: it names the new one.
        plane.leader = "scheduler2"
        plane.schedulers["scheduler2"].epoch = 2
        plane.schedulers["scheduler1"].streams[-1].say(
            ServiceError(
                Reason.NOT_COORDINATOR,
                "a new one was elected",
                metadata={"coordinator": plane.addresses["scheduler2"]},
            )
        )
        await eventually(lambda: plane.scheduler.streams)
        assert list(plane.work.hello.held) == [attempt]
        # Assigned again by a leader that is not sure: it is held already.
        plane.send_assignment(work_pb2.Assignment(attempt=attempt))
        go_on.set()
        await eventually(lambda: plane.results)
        assert value_text(plane.results[0]) == "done"
    assert runs == ["t"]


def value_text(result: work_pb2.AttemptResult) -> str:
    return result.result.data.decode()


async def test_a_leader_that_falls_silent_is_left(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    agent.handler("plan")(lambda task: None)
    plane.scheduler.silence_max_ms = 150
    async with agent:
        await agent.wait_ready()
        await eventually(lambda: len(plane.scheduler.streams) >= 2)


async def test_credits_follow_the_free_slots(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    go_on = asyncio.Event()

    @agent.handler("plan")
    async def plan(_: Task) -> None:
        await go_on.wait()

    def granted() -> int:
        return sum(frame.credits for frame in plane.work.frames)

    async with agent:
        await agent.wait_ready()
        await eventually(lambda: granted() == 2)
        first = plane.assign("a")
        # A repeated assignment uses a credit too, which is given back.
        plane.send_assignment(work_pb2.Assignment(attempt=first))
        await eventually(lambda: granted() == 3)
        plane.assign("b")
        go_on.set()
        await eventually(lambda: granted() == 5)


async def test_a_cancelled_attempt_is_answered(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    running: list[Task] = []

    @agent.handler("async")
    async def wait(task: Task) -> None:
        running.append(task)
        await asyncio.Event().wait()

    @agent.handler("sync")
    def wait_in_thread(task: Task) -> str:
        running.append(task)
        assert task.wait_cancelled(30)
        task.check_cancelled()
        return "not reached"

    async with agent:
        await agent.wait_ready()
        attempts = [plane.assign("a", "async"), plane.assign("b", "sync")]
        await eventually(lambda: len(running) == 2)
        for attempt in attempts:
            plane.work.say(
                work_pb2.WorkResponse(cancels=[work_pb2.AttemptCancel(attempt=attempt, reason="too late")])
            )
        await eventually(lambda: len(plane.results) == 2)
    assert all(result.cancelled for result in plane.results)
    with pytest.raises(TaskCancelled, match="too late"):
        running[0].check_cancelled()


async def test_a_fenced_attempt_stops_and_its_result_goes_nowhere(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    stopped: list[str] = []
    running: list[str] = []

    @agent.handler("async")
    async def wait(_: Task) -> None:
        running.append("async")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("async")

    @agent.handler("sync")
    def wait_in_thread(task: Task) -> str:
        running.append("sync")
        task.wait_cancelled(30)
        stopped.append("sync")
        return "a late result"

    @agent.handler("plan")
    async def plan(_: Task) -> str:
        return "ok"

    async with agent:
        await agent.wait_ready()
        attempts = [plane.assign("a", "async"), plane.assign("b", "sync")]
        await eventually(lambda: len(running) == 2)
        plane.work.say(
            work_pb2.WorkResponse(
                cancels=[work_pb2.AttemptCancel(attempt=attempt, fenced=True) for attempt in attempts]
            )
        )
        await eventually(lambda: sorted(stopped) == ["async", "sync"])
        plane.assign("c")
        await eventually(lambda: plane.results)
    assert [result.attempt.task_id for result in plane.results] == ["c"]


async def test_a_drain_finishes_what_is_held_and_says_farewell(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    go_on = asyncio.Event()
    running: list[str] = []

    @agent.handler("plan")
    async def plan(task: Task) -> str:
        running.append(task.id)
        await go_on.wait()
        return "finished"

    life = asyncio.create_task(agent.serve())
    await eventually(lambda: plane.scheduler.streams)
    await agent.wait_ready()
    plane.assign("t")
    await eventually(lambda: running)
    agent.drain()
    await eventually(lambda: any(frame.drain for frame in plane.work.frames))
    # Two streams: either service may hear of it first.
    await eventually(lambda: any(frame.HasField("drain") for frame in plane.registry.sessions[0].frames))
    assert not life.done()
    go_on.set()
    await life
    assert [value_text(result) for result in plane.results] == ["finished"]
    assert plane.registry.sessions[0].frames[-1].HasField("farewell")


async def test_a_newer_process_takes_the_place(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    """P3, the older one's side."""
    agent.handler("plan")(lambda task: None)
    life = asyncio.create_task(agent.serve())
    await eventually(lambda: plane.registry.sessions)
    # As a registry does, it says so again to a client that did not hear why its stream ended.
    plane.registry.refusal = ServiceError(Reason.INCARNATION_FENCED, "incarnation 2 is live")
    plane.registry.sessions[0].say(plane.registry.refusal)
    with pytest.raises(FencedError, match="incarnation 2 is live"):
        await life


async def test_a_wrong_set_up_is_said_at_once(plane: FakePlane, agent: Agent) -> None:
    agent.handler("plan")(lambda task: None)
    plane.registry.refusal = ServiceError(Reason.INVALID_FIELD, "skills[0].name: is no name")
    with pytest.raises(MusterError, match=r"skills\[0\]"):
        await agent.serve()


async def test_an_absent_plane_is_waited_for(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    agent.handler("plan")(lambda task: "here")
    await plane.down("registry")
    async with agent:
        await plane.up("registry")
        await agent.wait_ready()
        plane.assign("t")
        await eventually(lambda: plane.results)


async def test_a_session_is_resumed_and_the_other_streams_do_not_notice(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    agent.handler("plan")(lambda task: "here")
    async with agent:
        await agent.wait_ready()
        await plane.down("registry")
        await plane.up("registry")
        await eventually(lambda: len(plane.registry.sessions) == 2)
        assert plane.registry.sessions[1].hello.resume_session_id == "s1"
        plane.assign("t")
        await eventually(lambda: plane.results)
    assert len(plane.scheduler.streams) == 1
    assert len(plane.broker.streams) == 1


async def test_a_new_incarnation_opens_every_stream_anew(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    agent.handler("plan")(lambda task: "here")
    plane.registry.resumes = False
    async with agent:
        await agent.wait_ready()
        plane.registry.sessions[0].say(ServiceError(Reason.SHUTTING_DOWN, "bye"))
        await eventually(lambda: len(plane.scheduler.streams) == 2 and len(plane.broker.streams) == 2)
        assert plane.work.hello.incarnation == 2
        assert plane.mailbox.hello.incarnation == 2
        assert plane.mailbox.hello.resume_ack_token == 0
        plane.assign("t")
        await eventually(lambda: plane.results)


async def test_a_registry_that_stops_acking_is_left_after_one_lease(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    plane.registry.acks = False
    plane.registry.lease_ttl_ms = 200
    agent.handler("plan")(lambda task: None)
    async with agent:
        await agent.wait_ready()
        await eventually(lambda: len(plane.registry.sessions) >= 2)


async def test_schedulers_are_found_while_the_registry_is_away(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    agent.handler("plan")(lambda task: "here")
    async with agent:
        await agent.wait_ready()
        await plane.down("registry")
        # The session goes on trying; the work stream needs an incarnation, not a living session.
        plane.leader = "scheduler2"
        await plane.down("scheduler1")
        await plane.up("registry")
        await eventually(lambda: plane.schedulers["scheduler2"].streams)


async def test_a_frame_that_nobody_can_have_meant_costs_a_link_and_not_the_agent(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    agent.handler("plan")(lambda task: "here")
    async with agent:
        await agent.wait_ready()
        plane.assign("t", deadline=Timestamp(seconds=10**15))
        await eventually(lambda: len(plane.scheduler.streams) == 2)
        plane.assign("u")
        await eventually(lambda: plane.results)
    assert [result.attempt.task_id for result in plane.results] == ["u"]


async def test_an_agent_that_can_do_nothing_is_told(plane: FakePlane) -> None:
    with pytest.raises(MusterError, match=r"neither skills nor handlers: add @agent\.handler"):
        await Agent("field-1", home=plane.home).serve()
    with pytest.raises(MusterError, match="muster agents enroll stranger"):
        await Agent("stranger", ["x"], home=plane.home).serve()
    agent = Agent("field-1", home=plane.home)
    agent.handler("x")(lambda task: None)
    with pytest.raises(ValueError, match="two handlers for x"):
        agent.handler("x")(lambda task: None)
    agent.on_message()(lambda delivery: None)
    with pytest.raises(ValueError, match="two handlers for all other messages"):
        agent.on_message()(lambda delivery: None)
    with pytest.raises(RuntimeError, match="not running"):
        agent.send("other", 1)
    with pytest.raises(ValueError, match="at least one slot"):
        Agent("field-1", slots=0)
