"""Placement as a function of a snapshot, and the index that makes the snapshots."""

from __future__ import annotations

from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign
from tests.unit.scheduler.scheduler_stage import EMERGENCY, HIGH, LOW, NORMAL, Stage, assigned, only, task


def one_at_a_time(stage: Stage, stream: int) -> list[str]:
    """Let one agent with one slot do everything; return the order."""
    done: list[str] = []
    while True:
        held = [each for each in stage.state.book.instances.values() if each.held]
        if not held:
            return done
        [running] = held[0].held.values()
        done.append(running.key.task_id)
        stage.finish(stream, running.key.task_id)  # type: ignore[arg-type]


def test_the_more_urgent_class_goes_first_then_the_deadline_then_the_longer_path_then_arrival() -> None:
    stage = Stage()
    stage.know("a", "work")
    stage.submit(
        task("first", priority=LOW),
        task("plain"),
        task("soon", deadline=stage.now + 60_000),
        task("long", estimated_duration_ms=9_000),
        task("root", estimated_duration_ms=5_000),
        task("leaf", "root", estimated_duration_ms=5_000),
        task("urgent", priority=HIGH),
        task("now", priority=EMERGENCY),
        priority=NORMAL,
    )
    stream = stage.link("a", slots=1)
    assert one_at_a_time(stage, stream) == ["now", "urgent", "soon", "root", "long", "leaf", "plain", "first"]


def test_a_ready_task_with_a_free_agent_never_waits() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=3)
    assert assigned(stage.submit(task("x"), task("y"))) == ["x", "y"]
    assert assigned(stage.submit(task("z"), task("late"), request_id="r2")) == ["z"]
    assert assigned(stage.frame(stream, credits=1)) == ["late"]


def test_the_less_loaded_agent_gets_the_work() -> None:
    stage = Stage()
    stage.agent("a", slots=4)
    stage.agent("b", slots=4)
    effects = stage.submit(*(task(f"t{number}") for number in range(8)))
    agents = [effect.attempt.instance.agent_id for effect in only(effects, Assign)]
    assert sorted(agents) == ["a"] * 4 + ["b"] * 4
    assert set(agents[:2]) == {"a", "b"}


def test_equal_agents_take_turns() -> None:
    stage = Stage()
    streams = {name: stage.agent(name) for name in ("a", "b", "c")}
    order = []
    for number in range(6):
        [effect] = only(stage.submit(task("t"), request_id=f"r{number}"), Assign)
        agent = effect.attempt.instance.agent_id
        order.append(agent)
        stage.finish(streams[agent], "t", request_id=f"r{number}")
    assert order[:3] == order[3:]
    assert sorted(order[:3]) == ["a", "b", "c"]


def test_the_better_agent_wins_among_equally_loaded_ones() -> None:
    stage = Stage()
    stage.agent("novice", level=0.3)
    stage.agent("expert", level=0.9)
    [effect] = only(stage.submit(task("t")), Assign)
    assert effect.attempt.instance.agent_id == "expert"
    assert "level 0.90" in effect.attempt.explanation
    assert "best of 2 free" in effect.attempt.explanation


def test_all_required_skills_must_be_held_by_one_agent() -> None:
    stage = Stage()
    stage.agent("a", "dig")
    stage.agent("b", "fly")
    assert assigned(stage.submit(task("t", skills=("dig", "fly")))) == []
    stage.agent("c", "dig", "fly", "swim")
    assert stage.task("t").attempts[-1].instance.agent_id == "c"


def test_named_agents_only() -> None:
    stage = Stage()
    stage.agent("a", slots=5)
    assert assigned(stage.submit(task("t", required_agents=("b", "z")))) == []
    stage.agent("b")
    assert stage.task("t").attempts[-1].instance.agent_id == "b"


def test_named_agents_without_the_skill_do_not_count() -> None:
    stage = Stage()
    stage.agent("a", "fly")
    assert assigned(stage.submit(task("t", required_agents=("a",)))) == []


def test_an_agent_that_learns_a_skill_gets_what_waited_for_it() -> None:
    stage = Stage()
    stage.agent("a", "dig")
    assert assigned(stage.submit(task("t", skill="fly"))) == []
    assert assigned(stage.know("a", "dig", "fly")) == ["t"]


def test_an_agent_that_the_registry_has_not_told_of_gets_nothing_yet() -> None:
    stage = Stage()
    stage.link("a", slots=1)
    assert assigned(stage.submit(task("t"))) == []
    assert assigned(stage.know("a", "work")) == ["t"]


def test_a_draining_agent_gets_nothing_and_keeps_what_it_has() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=2)
    stage.submit(task("x"))
    stage.frame(stream, drain=True)
    assert assigned(stage.submit(task("y"), request_id="r2")) == []
    assert stage.frame(stream, credits=3) is not None
    assert assigned(stage.finish(stream, "x")) == []
    assert stage.task("x").state.name == "SUCCEEDED"


def test_many_demands_that_nobody_serves_cost_nothing_per_event() -> None:
    stage = Stage(validate=False)
    for number in range(300):
        stage.submit(task("t", skill=f"rare-{number}"), request_id=f"rare{number}")
    index = stage.state.book.index
    index.snapshot(10, stage.now)
    assert not index._runnable
    stage.agent("a")
    stage.submit(task("t"), request_id="common")
    assert not index._runnable


def test_queues_of_demands_that_are_gone_are_forgotten() -> None:
    stage = Stage(validate=False)
    for number in range(1_200):
        stage.submit(task("t", skill=f"rare-{number}"), request_id=f"r{number}")
        stage.cancel(f"r{number}")
    assert len(stage.state.book.index._queues) <= 1_025


def test_a_wave_larger_than_the_snapshot_is_placed_in_several() -> None:
    stage = Stage(Settings(wave_max=4))
    stage.agent("a", slots=20)
    assert len(assigned(stage.submit(*(task(f"t{number}") for number in range(19))))) == 19
