"""PREDICTIVE: who waits for whom, why, and for how long at most."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign
from services.scheduler.core.events import StreamId
from services.scheduler.core.explain import explain
from services.scheduler.core.model import Priority, SchedulingPolicy, TaskState
from tests.unit.scheduler.scheduler_stage import START, Stage, assigned, gang, only, task

PREDICTIVE = SchedulingPolicy.PREDICTIVE
FAST_MS, SLOW_MS = 1_000, 8_000


def fleet(*agents: str, settings: Settings | None = None) -> tuple[Stage, dict[str, StreamId]]:
    """Return a stage with linked agents of which it is known how fast they are: `fast…` and others."""
    stage = Stage(settings)
    streams = {name: stage.agent(name) for name in agents}
    for name in agents:
        for number in range(12):
            ms = FAST_MS if name.startswith("fast") else SLOW_MS
            stage.state.book.predictor.finished(name, "work", FAST_MS, ms, now=START, skill="work")
            del number
    return stage, streams


def submit(stage: Stage, *tasks: Any, **more: Any) -> dict[str, str]:
    """Submit under PREDICTIVE; return who got what."""
    effects = stage.submit(*tasks, policy=more.pop("policy", PREDICTIVE), **more)
    return given(effects)


def given(effects: Any) -> dict[str, str]:
    return {str(each.task.key.task_id): str(each.attempt.instance.agent_id) for each in only(effects, Assign)}


def test_a_ready_task_waits_for_the_agent_where_it_ends_first_and_says_so() -> None:
    stage, streams = fleet("fast", "slow")
    assert submit(stage, task("a"), request_id="r1") == {"a": "fast"}
    assert submit(stage, task("b"), request_id="r2") == {}
    found = explain(stage.state.book, stage.task("b", "r2"), stage.now)
    words = found.waiting_for
    assert words.startswith("waits for agent fast/0, predicted free in ")
    assert "s earlier than on slow/0, which is free; until " in words
    stage.pass_time(900)
    assert stage.task("b", "r2").state is TaskState.READY
    assert given(stage.finish(streams["fast"], "a")) == {"b": "fast"}
    why = stage.task("b", "r2").attempts[0].explanation
    assert why.startswith("PREDICTIVE: early finish ")
    assert "waited 900 ms by choice: waits for agent fast/0" in why
    assert not stage.state.book.foresight.holds


def test_waiting_ends_when_it_can_gain_nothing_more() -> None:
    stage, _ = fleet("fast", "slow", settings=Settings(speculation_share=0.0))
    submit(stage, task("a"), request_id="r1")
    submit(stage, task("b"), request_id="r2")
    until = stage.state.book.foresight.holds[stage.task("b", "r2").key].wait.until
    # On slow it would have ended after about eight seconds; on fast it needs one: it may start until then.
    assert until - stage.now == pytest.approx(SLOW_MS - FAST_MS, rel=0.2)
    began = stage.now
    while stage.task("b", "r2").state is TaskState.READY:
        # The fast one overruns. Other events make no new promise of it.
        stage.pass_time(250)
        assert stage.now <= until + 250
    assert stage.task("b", "r2").attempts[0].instance.agent_id == "slow"
    assert stage.task("b", "r2").attempts[0].assign_time == until > began
    assert "could gain nothing more" in stage.task("b", "r2").attempts[0].explanation


def test_nothing_waits_that_would_gain_nothing() -> None:
    stage, _ = fleet("fast-1", "fast-2", "slow")
    tasks = [task(f"t{number}") for number in range(3)]
    # The third one: one second of waiting and one of work, against eight at the slow one.
    assert sorted(submit(stage, *tasks).values()) == ["fast-1", "fast-2"]
    many = [task(f"m{number}") for number in range(20)]
    # Behind so many the slow one is the sooner for one of them, and has it at once.
    assert list(submit(stage, *many, request_id="r2").values()) == ["slow"]


def test_a_fast_agent_is_kept_for_the_task_on_which_more_depends() -> None:
    stage, streams = fleet("fast", "slow")
    long = [task("before", estimated_duration_ms=FAST_MS), task("after", "before", "gate")]
    long += [task(f"tail-{n}", "after" if n == 0 else f"tail-{n - 1}") for n in range(5)]
    assert submit(stage, *long, task("gate"), request_id="r1") == {"before": "fast"}
    held = stage.state.book.foresight.holds
    assert [key.task_id for key in held] == ["gate"]
    assert given(stage.finish(streams["fast"], "before")) == {"gate": "fast"}


@pytest.mark.parametrize(
    ("tasks", "spec"),
    [
        ([task("b")], {"priority": Priority.EMERGENCY}),
        ([task("b", locks=("bridge",))], {}),
        ([task("b")], {"policy": SchedulingPolicy.PRIORITY}),
    ],
)
def test_what_may_not_wait_takes_what_is_free(tasks: list[Any], spec: dict[str, Any]) -> None:
    stage, _ = fleet("fast", "slow")
    submit(stage, task("a"), request_id="r1")
    assert submit(stage, *tasks, request_id="r2", **spec) == {"b": "slow"}


def test_a_gang_under_this_policy_starts_together() -> None:
    stage, streams = fleet("fast", "slow")
    submit(stage, task("a"), request_id="r1")
    assert submit(stage, *gang("g", size=2), request_id="r2") == {}
    assert given(stage.finish(streams["fast"], "a")).keys() == {"g", "g.1"}


def test_age_is_served_whatever_the_forecast_says() -> None:
    stage, streams = fleet("fast", "slow", settings=Settings(ageing_ms=5_000, ageing_share=2))
    submit(stage, task("first"), request_id="r0")
    submit(stage, task("low"), request_id="old", priority=Priority.LOW)
    stage.pass_time(4_000)
    running = "first", "r0"
    order = []
    for number in range(6):
        submit(stage, task("n"), request_id=f"r{number + 1}")
        stage.pass_time(400)
        order += assigned(stage.finish(streams["fast"], running[0], request_id=running[1]))
        holder = stage.state.book.instances[next(iter(stage.state.book.instances))]
        if not holder.held:
            break
        [current] = holder.held.values()
        running = str(current.key.task_id), current.key.collaboration_id.removeprefix("c-")
    assert stage.task("low", "old").attempts, order


def test_what_is_parked_is_cancelled_taken_over_and_counted() -> None:
    stage, _ = fleet("fast", "slow")
    submit(stage, task("a"), request_id="r1")
    submit(stage, task("b"), request_id="r2")
    submit(stage, task("c"), request_id="r3")
    assert stage.state.book.index.waiting_count == 2
    stage.cancel("r2")
    assert stage.state.book.index.waiting_count == 1
    assert not [key for key in stage.state.book.foresight.holds if key.collaboration_id == "c-r2"]
    stage.take_over()
    assert stage.task("c", "r3").state is TaskState.READY
    # The next leader knows its agents by what was kept; here nothing was, and any of them will do.
    stage.link("slow")
    assert stage.task("c", "r3").attempts[0].instance.agent_id == "slow"


def test_the_longest_chain_goes_first_and_the_forecast_takes_in_what_follows() -> None:
    stage, streams = fleet("fast", "slow")
    chain = [task("c0"), *(task(f"c{n}", f"c{n - 1}") for n in range(1, 5))]
    alone = [task(f"s{n}") for n in range(4)]
    first = submit(stage, *alone, *chain)
    assert first["c0"] == "fast"
    now = stage.now
    # The chain has the fast agent to itself, one after the other; a task beside it has the slow one.
    for number in range(1, 4):
        stage.pass_time(FAST_MS)
        assert given(stage.finish(streams["fast"], f"c{number - 1}"))[f"c{number}"] == "fast"
    assert stage.now == Instant(now + 3 * FAST_MS)
