"""Urgent gangs make room for all their members at once, or disturb nobody."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from services.common.core.entries import EntryDraft
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Effect, SuspendAttempt
from services.scheduler.core.events import ResultReport, StreamId, Suspended, WorkFrame
from services.scheduler.core.explain import explain
from services.scheduler.core.model import AttemptState, Payload, Priority, TaskState
from services.scheduler.core.placing.victims import WEIGHTS
from services.scheduler.core.queries import waiting_for
from tests.unit.scheduler.scheduler_stage import (
    EMERGENCY,
    HIGH,
    LOW,
    NORMAL,
    Stage,
    assigned,
    gang,
    only,
    task,
)

SETTINGS = Settings(suspend_grace_ms=2_000)
POINT = Payload("text/plain", b"half-way")


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


def busy(
    stage: Stage, agent: str, name: str, priority: Priority = LOW, *, gpu: int = 0, uses: int = 0
) -> StreamId:
    """Link an agent with one slot and let it run a task of a collaboration of its own."""
    stage.know(agent, "work", capacities=(("gpu", gpu),) if gpu else ())
    stream = stage.link(agent)
    needs = (("gpu", uses),) if uses else ()
    stage.submit(
        task(name, priority=priority, estimated_duration_ms=600_000, needs=needs), request_id=f"r-{name}"
    )
    assert stage.task(name, f"r-{name}").attempts[-1].instance.agent_id == agent
    stage.frame(stream, started=(stage.ref(name, f"r-{name}"),))
    return stream


def urgent(stage: Stage, size: int = 2, *, gpu: int = 0, **more: object) -> list[Effect]:
    needs = (("gpu", gpu),) if gpu else ()
    return stage.submit(*gang("g", size=size, priority=EMERGENCY, needs=needs, **more), request_id="now")


def victims_of(effects: list[Effect]) -> set[str]:
    return {ask.attempt.task_id for ask in only(effects, SuspendAttempt)}


def stops(stage: Stage, stream: StreamId, name: str, point: Payload | None = POINT) -> list[Effect]:
    report = ResultReport(stage.ref(name, f"r-{name}"), Suspended(point))
    return stage.frame(stream, results=(report,))


def entries(stage: Stage, operation: str) -> list[EntryDraft]:
    return [entry for entry in stage.entries if entry.operation == operation]


# Whom it takes.


def test_all_members_start_in_the_commit_in_which_the_victims_are_asked(stage: Stage) -> None:
    for name in "ab":
        busy(stage, name, f"slow-{name}")
    effects = urgent(stage)
    assert victims_of(effects) == {"slow-a", "slow-b"}
    assert sorted(assigned(effects)) == ["g", "g.1"]
    for name in "ab":
        record = stage.store.tasks[stage.task(f"slow-{name}", f"r-slow-{name}").key]
        assert record.attempts[-1].state is AttemptState.SUSPENDING
    assert {stage.task(name, "now").attempts[-1].instance.agent_id for name in ("g", "g.1")} == {"a", "b"}


def test_free_agents_come_first_and_nobody_more_than_needed_stops(stage: Stage) -> None:
    for name in "abc":
        busy(stage, name, f"slow-{name}")
    stage.agent("free")
    effects = urgent(stage, 2)
    assert len(victims_of(effects)) == 1
    assert "free" in {stage.task(name, "now").attempts[-1].instance.agent_id for name in ("g", "g.1")}
    assert only(stage.pass_time(1_000), SuspendAttempt) == []


def test_nobody_stops_for_a_gang_that_could_not_start(stage: Stage) -> None:
    busy(stage, "a", "slow")
    busy(stage, "b", "also", EMERGENCY)
    assert victims_of(urgent(stage)) == set()
    assert stage.task("slow", "r-slow").state is TaskState.RUNNING
    # One more is linked, and it can.
    stage.know("c", "work")
    stage.link("c")
    assert stage.task("slow", "r-slow").attempts[-1].state is AttemptState.SUSPENDING
    assert stage.task("g", "now").state is TaskState.ASSIGNED


def test_two_slots_of_one_agent_are_one_place(stage: Stage) -> None:
    stream = stage.agent("a", slots=2)
    stage.submit(task("x", priority=LOW), task("y", priority=LOW))
    stage.frame(stream, started=(stage.ref("x"), stage.ref("y")))
    assert victims_of(urgent(stage)) == set()


def test_members_with_skills_of_their_own_get_agents_that_have_them(stage: Stage) -> None:
    """The cheapest victim for the one who digs is the only one that can fly."""
    stage.agent("both", "dig", "fly")
    stage.submit(task("long", skill="dig", priority=LOW), request_id="r-long")
    stage.pass_time(5_000)
    stage.agent("digger", "dig")
    stage.submit(task("longer", skill="dig", priority=LOW), request_id="r-longer")
    stage.pass_time(5_000)
    [first] = gang("g", size=2, skill="dig", priority=EMERGENCY)[:1]
    [second] = gang("g", size=2, skill="fly", priority=EMERGENCY)[1:]
    effects = stage.submit(first, second, request_id="now")
    assert victims_of(effects) == {"long", "longer"}
    assert stage.task("g", "now").attempts[-1].instance.agent_id == "digger"
    assert stage.task("g.1", "now").attempts[-1].instance.agent_id == "both"


def test_members_of_gangs_and_the_same_class_are_left_alone(stage: Stage) -> None:
    for name in "ab":
        stage.agent(name)
    stage.submit(*gang("low", size=2, priority=LOW), request_id="r1")
    assert victims_of(urgent(stage)) == set()
    assert victims_of(stage.submit(task("one", priority=EMERGENCY), request_id="r2")) == set()


def test_high_gangs_wait_unless_configured() -> None:
    for preempting, asked in ((EMERGENCY, 0), (HIGH, 2)):
        stage = Stage(Settings(preempting_priority=preempting))
        for name in "ab":
            busy(stage, name, f"slow-{name}")
        effects = stage.submit(*gang("g", size=2, priority=HIGH), request_id="now")
        assert len(victims_of(effects)) == asked


def test_an_agent_that_is_deaf_to_the_request_gives_no_slot(stage: Stage) -> None:
    busy(stage, "a", "slow")
    stage.know("b", "work")
    stage.link("b", suspendable=False)
    stage.submit(task("deaf", priority=LOW), request_id="r-deaf")
    assert victims_of(urgent(stage)) == set()


def test_what_holds_a_lock_that_more_urgent_work_waits_for_is_left_alone(stage: Stage) -> None:
    busy(stage, "a", "slow")
    stage.agent("b")
    stage.submit(task("holder", priority=LOW, locks=["bridge"]), request_id="r-holder")
    stage.agent("c")
    stage.submit(task("waits", priority=EMERGENCY, locks=["bridge"]), request_id="r-waits")
    stage.submit(task("other", priority=EMERGENCY), request_id="r-other")
    assert victims_of(urgent(stage)) == set()
    assert stage.task("holder", "r-holder").state is TaskState.ASSIGNED


def test_without_its_lock_nobody_stops(stage: Stage) -> None:
    holder = stage.agent("holder", "hold")
    stage.submit(task("first", skill="hold", locks=("bridge",), priority=EMERGENCY), request_id="r0")
    for name in "ab":
        busy(stage, name, f"slow-{name}")
    assert victims_of(urgent(stage, locks=("bridge",))) == set()
    effects = stage.finish(holder, "first", request_id="r0")
    assert victims_of(effects) == {"slow-a", "slow-b"}
    assert sorted(assigned(effects)) == ["g", "g.1"]


@pytest.mark.parametrize("seed", range(60))
def test_the_least_weighted_work_is_lost_of_all_choices(seed: int) -> None:
    """Beside trying every choice: fewest victims first, then what they lose."""
    random = Random(seed)
    stage = Stage(SETTINGS)
    skills = ("dig", "fly")
    agents = [f"a{number}" for number in range(random.randint(3, 5))]
    having: dict[str, set[str]] = {}
    cost: dict[str, int] = {}
    began: dict[str, tuple[int, Priority]] = {}
    for name in agents:
        having[name] = set(random.sample(skills, random.randint(1, 2)))
        stream = stage.agent(name, *sorted(having[name]))
        if random.random() < 0.75:
            priority = random.choice((LOW, NORMAL, HIGH))
            stage.submit(
                task(
                    name,
                    skills=sorted(having[name]),
                    priority=priority,
                    required_agents=(name,),
                    estimated_duration_ms=600_000,
                ),
                request_id=f"r-{name}",
            )
            stage.frame(stream, started=(stage.ref(name, f"r-{name}"),))
            began[name] = stage.now, priority
        stage.pass_time(random.choice((1_000, 3_000)))
    for name, (since, priority) in began.items():
        cost[name] = (stage.now - since) * WEIGHTS[priority]
    size = random.randint(2, 3)
    wanted = [random.choice(skills) for _ in range(size)]
    choices = [
        (len([name for name in each if name in cost]), sum(cost.get(name, 0) for name in each))
        for each in product(agents, repeat=size)
        if len(set(each)) == size
        and all(skill in having[name] for name, skill in zip(each, wanted, strict=True))
    ]
    members = [
        gang("g", size=size, skill=skill, priority=EMERGENCY)[rank] for rank, skill in enumerate(wanted)
    ]
    taken = victims_of(stage.submit(*members, request_id="now"))
    if not choices:
        assert not taken
        return
    assert (len(taken), sum(cost[name] for name in taken)) == min(choices)
    assert stage.task("g", "now").state is TaskState.ASSIGNED


def test_what_ends_soon_is_spared_while_there_is_another(stage: Stage) -> None:
    for name in "ab":
        stage.agent(name)
    for name in ("short-1", "short-2"):
        stage.submit(task(name, priority=LOW, estimated_duration_ms=1_000), request_id=f"r-{name}")
    stage.pass_time(700)
    busy(stage, "c", "long")
    assert len(victims_of(urgent(stage)) & {"long"}) == 1


# What is kept while others save.


def kept(stage: Stage) -> dict[str, int]:
    instances = stage.state.book.instances.values()
    return {str(each.key.agent_id): len(each.kept) for each in instances if each.kept}


def saving(stage: Stage) -> tuple[StreamId, StreamId]:
    """Have two agents whose work takes all that a gang needs, and a gang that waits for it."""
    streams = busy(stage, "a", "x", gpu=4, uses=4), busy(stage, "b", "y", gpu=4, uses=4)
    effects = urgent(stage, gpu=2)
    assert victims_of(effects) == {"x", "y"}
    assert assigned(effects) == []
    assert kept(stage) == {"a": 1, "b": 1}
    return streams


def test_slots_are_kept_until_all_have_saved_and_then_all_start(stage: Stage) -> None:
    first, second = saving(stage)
    # It looks free, and it has all that these ask for; nobody gets it.
    small = stage.submit(task("small", priority=LOW), request_id="r-small")
    other = stage.submit(task("other", priority=EMERGENCY), request_id="r-other")
    assert assigned(small) == assigned(other) == []
    assert victims_of(other) == set()
    assert assigned(stops(stage, first, "x")) == []
    effects = stops(stage, second, "y")
    assert sorted(assigned(effects)) == ["g", "g.1"]
    assert kept(stage) == {}
    assert not stage.state.book.rooms


def test_who_does_not_stop_in_time_is_fenced_and_the_gang_starts(stage: Stage) -> None:
    first, _ = saving(stage)
    stops(stage, first, "x")
    assert sorted(assigned(stage.pass_time(2_000))) == ["g", "g.1"]


def test_a_result_instead_of_a_savepoint_frees_the_slot_as_well(stage: Stage) -> None:
    first, second = saving(stage)
    stops(stage, first, "x")
    effects = stage.finish(second, "y", request_id="r-y", slots=0)
    assert sorted(assigned(effects)) == ["g", "g.1"]
    assert stage.task("y", "r-y").state is TaskState.SUCCEEDED


def test_when_the_gang_goes_away_its_slots_are_for_all_again(stage: Stage) -> None:
    first, _ = saving(stage)
    stage.submit(task("small", priority=LOW), request_id="r-small")
    assert assigned(stage.cancel("now")) == ["small"]
    assert kept(stage) == {}
    # What had stopped goes on where there is room.
    assert stops(stage, first, "x")
    assert [entry.attributes["why"] for entry in entries(stage, "task.unkeep")] == [
        "c-now/g does not wait for an agent any more"
    ]


def test_when_a_slot_is_lost_the_gang_takes_another_and_nobody_more_stops(stage: Stage) -> None:
    first, second = saving(stage)
    stage.unlink(second)
    assert kept(stage) == {}
    stage.know("c", "work", capacities=(("gpu", 4),))
    stage.link("c")
    # What saves at a is counted as leaving.
    assert kept(stage) == {"a": 1, "c": 1}
    assert len(entries(stage, "task.preempt")) == 2
    assert sorted(assigned(stops(stage, first, "x"))) == ["g", "g.1"]


def test_what_was_asked_already_is_enough(stage: Stage) -> None:
    """After a slot was lost and came back, the same agents are chosen again."""
    first, second = saving(stage)
    held = stage.ref("y", "r-y")
    stage.unlink(second)
    assert kept(stage) == {}
    second = stage.link("b", 0, held=(held,))
    assert kept(stage) == {"a": 1, "b": 1}
    assert len(entries(stage, "task.preempt")) == 2
    stops(stage, first, "x")
    assert sorted(assigned(stops(stage, second, "y"))) == ["g", "g.1"]


def test_a_draining_agent_ends_what_is_kept(stage: Stage) -> None:
    first, second = saving(stage)
    stage.frame(first, drain=True)
    assert kept(stage) == {}
    assert second


def test_one_task_keeps_its_slot_as_well(stage: Stage) -> None:
    """A small task must not slip into the slot while what has the capacity saves."""
    stream = busy(stage, "a", "x", gpu=4, uses=4)
    fire = task("fire", priority=EMERGENCY, needs=(("gpu", 4),))
    stage.submit(task("small", priority=LOW), request_id="r-small")
    effects = stage.submit(fire, request_id="now")
    assert victims_of(effects) == {"x"}
    assert assigned(effects) == []
    effects = stops(stage, stream, "x")
    assert assigned(effects) == ["fire"]


def test_what_waits_says_for_whom_it_waits_and_why_it_started(stage: Stage) -> None:
    first, second = saving(stage)
    book = stage.state.book
    assert waiting_for(book, stage.task("g", "now")) == "x, y to save: kept for it meanwhile: a/0, b/0"
    stage.submit(task("small", priority=LOW), request_id="r-small")
    found = explain(book, stage.task("small", "r-small"), stage.now)
    assert [each.obstacle for each in found.candidates] == ["its free slots are kept for c-now/g"] * 2
    stage.pass_time(500)
    stops(stage, first, "x")
    stops(stage, second, "y")
    assert (
        stage.task("g", "now").attempts[-1].explanation.startswith("gang of 2: its slot was kept for 500 ms")
    )


def test_the_audit_log_tells_who_stopped_for_whom(stage: Stage) -> None:
    for name in "ab":
        busy(stage, name, f"slow-{name}")
    urgent(stage)
    told = entries(stage, "task.preempt")
    assert {entry.attributes["for"] for entry in told} == {"c-now/g", "c-now/g.1"}
    assert all("gang of 2" in entry.attributes["why"] for entry in told)
    assert "gang of 2, 2 make room" in stage.task("g", "now").attempts[-1].explanation


# Leaders and agents die.


def test_a_new_leader_counts_what_saves_and_takes_nobody_else(stage: Stage) -> None:
    saving(stage)
    refs = {name: stage.ref(name, f"r-{name}") for name in ("x", "y")}
    stage.take_over()
    assert not stage.state.book.rooms
    first = stage.link("a", 0, held=(refs["x"],))
    second = stage.link("b", 0, held=(refs["y"],))
    assert kept(stage) == {"a": 1, "b": 1}
    stops(stage, first, "x")
    assert sorted(assigned(stops(stage, second, "y"))) == ["g", "g.1"]
    assert len(entries(stage, "task.preempt")) == 2


def test_a_leader_that_dies_before_its_commit_has_stopped_nobody(stage: Stage) -> None:
    streams = [busy(stage, name, f"slow-{name}") for name in "ab"]
    refs = {name: stage.ref(f"slow-{name}", f"r-slow-{name}") for name in "ab"}
    members = gang("g", size=2, priority=EMERGENCY)
    stage.torn_batch(lambda _: 0, stage.submission(*members, request_id="now"))
    stage.take_over()
    for name, ref in refs.items():
        stage.link(name, 0, held=(ref,))
        assert stage.task(f"slow-{name}", f"r-slow-{name}").attempts[-1].state is AttemptState.RUNNING
    assert streams


def test_a_leader_that_dies_within_its_commit_leaves_whole_gangs(stage: Stage) -> None:
    """One victim was asked in the store, one member assigned: the gang starts whole or waits whole."""
    for name in "ab":
        busy(stage, name, f"slow-{name}")
    refs = {name: stage.ref(f"slow-{name}", f"r-slow-{name}") for name in "ab"}
    stage.submit(
        *gang("g", "first", size=2, priority=EMERGENCY), task("first", skill="none"), request_id="now"
    )
    # Only the first write of each collaboration arrives.
    stage.know("c", "none")
    done = stage.link("c", 1)
    report = ResultReport(stage.ref("first", "now"), Payload("", b"done"))
    stage.torn_batch(lambda name: 2 if name == "c-now" else 1, WorkFrame("f", done, 0.5, results=(report,)))
    stage.take_over()
    stage.link("c", 1)
    for name, ref in refs.items():
        stage.link(name, 0, held=(ref,))
    states = {stage.task(name, "now").state for name in ("g", "g.1")}
    assert len(states) == 1


def test_an_agent_that_dies_with_a_member_leaves_the_rest_to_start_again(stage: Stage) -> None:
    streams = {name: busy(stage, name, f"slow-{name}") for name in "ab"}
    urgent(stage)
    for name in "ab":
        stops(stage, streams[name], f"slow-{name}")
    stage.unlink(streams["a"])
    stage.pass_time(SETTINGS.reconnect_grace_ms)
    assert {stage.task(name, "now").state for name in ("g", "g.1")} == {TaskState.READY}
    busy_again = stage.agent("c")
    stage.frame(streams["b"], credits=1)
    assert {stage.task(name, "now").state for name in ("g", "g.1")} == {TaskState.ASSIGNED}
    assert busy_again
