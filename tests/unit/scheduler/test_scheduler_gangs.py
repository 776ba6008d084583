"""Tasks that several agents do at once: all start together or none does."""

from __future__ import annotations

import pytest
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb

from services.common.core.errors import ServiceError
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign, CancelAttempt
from services.scheduler.core.events import ResultReport, WorkFrame
from services.scheduler.core.model import Failure, FailureKind, TaskState
from services.scheduler.core.queries import waiting_for
from services.scheduler.wire import specs
from services.scheduler.wire import work as work_wire
from tests.unit.scheduler.scheduler_stage import EMERGENCY, HIGH, Stage, assigned, gang, only, task


def agents_of(stage: Stage, *names: str) -> set[str]:
    return {stage.task(name).attempts[-1].instance.agent_id for name in names}


def test_all_members_start_in_one_batch_at_different_agents() -> None:
    stage = Stage()
    for name in ("a", "b"):
        stage.agent(name, slots=4)
    assert assigned(stage.submit(*gang("g", size=3))) == []
    assert waiting_for(stage.state.book, stage.task("g")).startswith("3 free agents at once")
    stage.agent("c")
    assert agents_of(stage, "g", "g.1", "g.2") == {"a", "b", "c"}


def test_members_with_skills_of_their_own_are_matched() -> None:
    """The only agent that can fly must not be used up by a member that digs."""
    stage = Stage()
    stage.agent("both", "dig", "fly")
    stage.agent("digger", "dig", level=0.2)
    [first] = gang("g", size=2, skill="dig")[:1]
    [second] = gang("g", size=2, skill="fly")[1:]
    stage.submit(first, second)
    assert stage.task("g").attempts[-1].instance.agent_id == "digger"
    assert stage.task("g.1").attempts[-1].instance.agent_id == "both"


def test_dependents_wait_for_every_member() -> None:
    stage = Stage()
    streams = {name: stage.agent(name) for name in ("a", "b")}
    stage.submit(*gang("g", size=2), task("after", "g", "g.1"))
    for name in ("g", "g.1"):
        assert stage.task("after").state is TaskState.PENDING
        agent = stage.task(name).attempts[-1].instance.agent_id
        stage.finish(streams[agent], name)
    assert len(stage.task("after").attempts) == 1


def test_a_lost_member_stops_the_others_and_they_start_again_together() -> None:
    stage = Stage()
    streams = {name: stage.agent(name) for name in ("a", "b")}
    stage.submit(*gang("g", size=2))
    lost = stage.task("g").attempts[-1].instance.agent_id
    other = "b" if lost == "a" else "a"
    stage.unlink(streams[lost])
    effects = stage.pass_time(5_000)
    [stopped] = only(effects, CancelAttempt)
    assert stopped.reason == "member g of its gang stopped"
    stage.frame(streams[other], credits=1)
    assert {stage.task(name).state for name in ("g", "g.1")} == {TaskState.READY}
    stage.link(lost, slots=1)
    assert {stage.task(name).state for name in ("g", "g.1")} == {TaskState.ASSIGNED}


def test_a_member_with_its_result_keeps_it() -> None:
    stage = Stage()
    streams = {name: stage.agent(name) for name in ("a", "b")}
    stage.submit(*gang("g", size=2))
    done = stage.task("g").attempts[-1].instance.agent_id
    stage.finish(streams[done], "g")
    other = stage.task("g.1").attempts[-1].instance.agent_id
    failure = Failure(FailureKind.TRANSIENT, "HANDLER_RAISED")
    stage.frame(streams[other], results=(ResultReport(stage.ref("g.1"), failure),), credits=1)
    stage.pass_time(5_000)
    assert stage.task("g").state is TaskState.SUCCEEDED
    assert len(stage.task("g.1").attempts) == 2


def test_a_member_that_fails_for_good_fails_its_gang() -> None:
    stage = Stage()
    streams = {name: stage.agent(name) for name in ("a", "b")}
    stage.submit(*gang("g", size=2), task("after", "g", "g.1"))
    agent = stage.task("g.1").attempts[-1].instance.agent_id
    failure = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
    stage.frame(streams[agent], results=(ResultReport(stage.ref("g.1"), failure),), credits=1)
    assert stage.task("g").state is TaskState.FAILED
    assert stage.task("g").failure == Failure(
        FailureKind.PERMANENT, "GANG_FAILED", "member g.1 of its gang failed"
    )
    assert stage.task("after").state is TaskState.CANCELLED


def test_without_its_lock_no_member_starts() -> None:
    stage = Stage()
    holder = stage.agent("holder", "hold")
    for name in ("a", "b"):
        stage.agent(name)
    stage.submit(task("first", skill="hold", locks=("bridge",)), request_id="r0")
    assert assigned(stage.submit(*gang("g", size=2, locks=("bridge",)))) == []
    effects = stage.finish(holder, "first", request_id="r0")
    assert sorted(assigned(effects)) == ["g", "g.1"]


def test_a_gang_comes_after_more_urgent_single_tasks_and_before_others() -> None:
    stage = Stage()
    streams = []
    for name in ("a", "b"):
        stage.know(name, "work")
        streams.append(stage.link(name, slots=0))
    stage.submit(*gang("g", size=2), task("plain"))
    stage.submit(task("urgent", priority=HIGH), request_id="r2")
    offered = [2, 1]
    frames = [
        WorkFrame("f", stream, 0.5, credits=more) for stream, more in zip(streams, offered, strict=True)
    ]
    order = assigned(stage.batch(*frames))
    assert order[0] == "urgent"
    assert sorted(order[1:]) == ["g", "g.1"]
    assert not stage.task("plain").attempts


def test_an_aged_gang_keeps_agents_until_there_are_enough() -> None:
    """A stream of small tasks must not starve it; an emergency still passes."""
    stage = Stage(Settings(ageing_ms=1_000))
    streams = {name: stage.agent(name) for name in ("a", "b")}
    stage.submit(task("x"), task("y"), request_id="r0")
    stage.submit(*gang("g", size=2))
    stage.submit(*(task(f"t{number}") for number in range(20)), request_id="flood")
    stage.pass_time(1_500)
    where = {name: stage.task(name, "r0").attempts[-1].instance.agent_id for name in ("x", "y")}
    assert assigned(stage.finish(streams[where["x"]], "x", request_id="r0")) == []
    assert assigned(stage.submit(task("now"), priority=EMERGENCY, request_id="e")) == ["now"]
    assert assigned(stage.finish(streams[where["x"]], "now", request_id="e")) == []
    assert sorted(assigned(stage.finish(streams[where["y"]], "y", request_id="r0"))) == ["g", "g.1"]


def test_a_gang_that_waits_for_agents_that_nobody_knows_says_so() -> None:
    stage = Stage()
    stage.agent("a")
    stage.submit(*gang("g", size=2))
    assert "only 1 " in waiting_for(stage.state.book, stage.task("g"))
    stage.know("b", "work")
    assert "only" not in waiting_for(stage.state.book, stage.task("g"))


def test_an_aged_gang_keeps_nobody_from_work_while_its_agents_are_not_there() -> None:
    stage = Stage(Settings(ageing_ms=1_000))
    stage.agent("a", "dig")
    stage.agent("b", "fly")
    stage.submit(*gang("g", size=2, skills=["dig"]))
    stage.pass_time(1_500)
    assert assigned(stage.submit(task("x", skills=["dig"]), request_id="r2")) == ["x"]


def test_agents_that_drain_are_not_counted_for_an_aged_gang() -> None:
    stage = Stage(Settings(ageing_ms=1_000))
    first, leaving = stage.agent("a"), stage.agent("b")
    stage.submit(task("x"), task("y"), request_id="r0")
    stage.submit(*gang("g", size=2))
    stage.pass_time(1_500)
    mine, other = ("x", "y") if stage.task("x", "r0").attempts[-1].instance.agent_id == "a" else ("y", "x")
    # What it had not started moves as soon as there is an agent, the gang or not.
    assert assigned(stage.frame(leaving, drain=True)) == []
    assert assigned(stage.finish(first, mine, request_id="r0")) == [other]


def request(**gang_fields: object) -> service_pb.SubmitCollaborationRequest:
    message = service_pb.SubmitCollaborationRequest(request_id="r")
    one = message.collaboration.tasks.add(task_id="g", required_skills=["dig"])
    for name, value in gang_fields.items():
        setattr(one.gang, name, value)
    one.resources.add(resource="bridge")
    message.collaboration.tasks.add(task_id="after", required_skills=["dig"], dependencies=["g"])
    return message


def test_a_gang_is_made_into_one_task_for_each_member() -> None:
    message = request(size=3)
    for skill in ("dig", "fly", "see"):
        message.collaboration.tasks[0].gang.members.add(required_skills=[skill])
    spec = specs.submission(message, "operator/admin").spec
    assert [each.task_id for each in spec.tasks] == ["g", "after", "g.1", "g.2"]
    assert [each.required_skills for each in spec.tasks] == [("dig",), ("dig",), ("fly",), ("see",)]
    assert spec.tasks[1].dependencies == ("g", "g.1", "g.2")
    assert [len(each.resources) for each in spec.tasks] == [1, 0, 0, 0]
    assert [each.task_type for each in spec.tasks if each.gang] == ["dig"] * 3


@pytest.mark.parametrize("fields", [{"size": 1}, {"size": 65}, {"size": 2, "rank": 1}])
def test_a_gang_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ServiceError, match="gang"):
        specs.submission(request(**fields), "operator/admin")


def test_every_member_is_told_of_its_peers() -> None:
    stage = Stage()
    for name in ("a", "b"):
        stage.agent(name)
    given = only(stage.submit(*gang("g", size=2)), Assign)
    frame = work_wire.pack(given, epoch=1, silence_ms_max=1, probe_interval_ms=1)
    for assignment in frame.assignments:
        peers = [(peer.rank, peer.task_id) for peer in assignment.gang_peers]
        assert peers == [(0, "g"), (1, "g.1")]
        assert {peer.agent_id for peer in assignment.gang_peers} == {"a", "b"}
