"""Shares between requesters, and how long a task that is not urgent may wait."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.scheduling import drf
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign
from services.scheduler.core.events import Cancelled, ResultReport
from tests.unit.scheduler.scheduler_stage import EMERGENCY, HIGH, LOW, NORMAL, Stage, gang, only, task


def check(seeds: range) -> None:
    for seed in seeds:
        random = Random(seed)
        case = drf.draw(random)
        assert drf.violations(case, random) == [], (seed, case)


def test_dominant_resource_fairness_has_its_properties() -> None:
    check(range(2_000))


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(10))
def test_dominant_resource_fairness_has_its_properties_in_many_cases(block: int) -> None:
    check(range(10_000 * block + 2_000, 10_000 * block + 12_000))


def test_the_example_of_the_paper() -> None:
    """Ghodsi et al., figure 3: 9 CPUs, 18 GB; A's tasks take (1, 4), B's (3, 1): A gets 3, B gets 2."""
    case = drf.Case(
        {"slots": 100, "cpu": 9, "memory": 18},
        ({"slots": 1, "cpu": 1, "memory": 4}, {"slots": 1, "cpu": 3, "memory": 1}),
    )
    assert drf.divide(case) == [3, 2]


def starts(stage: Stage, stream: object, most: int) -> list[str]:
    """Let the one agent finish what it holds, again and again; return who asked for what it did."""
    order = []
    for _ in range(most):
        held = [each for each in stage.state.book.instances.values() if each.held]
        if not held:
            break
        running = next(iter(held[0].held.values()))
        order.append(running.collaboration.requester.removeprefix("agent/"))
        stage.finish(stream, running.key.task_id, request_id=running.collaboration.submission.request_id)  # type: ignore[arg-type]
    return order


def test_requesters_share_in_proportion_to_their_weights() -> None:
    stage = Stage(Settings(requester_weights=(("agent/b", 2.0),)))
    stage.know("worker", "work")
    for name in ("a", "b"):
        tasks = [task(f"t{number}") for number in range(30)]
        stage.submit(*tasks, request_id=name, requester=f"agent/{name}")
    stage.link("worker", slots=9)
    held = next(iter(stage.state.book.instances.values())).held
    owners = [each.collaboration.requester for each in held.values()]
    assert (owners.count("agent/a"), owners.count("agent/b")) == (3, 6)


def test_a_flood_of_one_requester_does_not_keep_another_waiting() -> None:
    stage = Stage()
    stage.know("worker", "work")
    stage.submit(*(task(f"t{number}") for number in range(50)), request_id="flood", requester="agent/a")
    stream = stage.link("worker", slots=2)
    effects = stage.submit(task("one"), request_id="small", requester="agent/b")
    assert only(effects, Assign) == []
    first, *_ = stage.state.book.instances.values()
    running = next(iter(first.held.values()))
    [given] = only(stage.finish(stream, running.key.task_id, request_id="flood"), Assign)
    assert given.task.key.task_id == "one"


@pytest.mark.parametrize("seed", range(20))
def test_low_waits_no_longer_than_the_bound(seed: int) -> None:
    """With R requesters whose tasks are aged, the k-th of one is served by the R * k * share-th start."""
    random = Random(seed)
    share, requesters = random.randint(2, 5), random.randint(1, 4)
    stage = Stage(Settings(ageing_ms=1_000, ageing_share=share), validate=False)
    stage.know("worker", "work")
    stream = stage.link("worker", slots=0)
    lows = [random.randint(1, 4) for _ in range(requesters)]
    for number, count in enumerate(lows):
        tasks = [task(f"t{each}", priority=LOW) for each in range(count)]
        stage.submit(*tasks, request_id=f"low{number}", requester=f"agent/low{number}")
    stage.pass_time(1_500)
    # More urgent work than could ever be done, its requester new and so with the smallest share of all.
    for number in range(120):
        priority = random.choice([NORMAL, HIGH])
        stage.submit(task("t"), request_id=f"high{number}", requester=f"agent/h{number}", priority=priority)
    stage.frame(stream, credits=1)
    order = starts(stage, stream, 120)
    for number, count in enumerate(lows):
        positions = [place for place, name in enumerate(order, 1) if name == f"low{number}"]
        for k in range(1, count + 1):
            assert positions[k - 1] <= requesters * k * share, (order, lows, share)
    aged_starts = sum(lows)
    # And the more urgent ones are not starved in turn: all other starts are theirs.
    last = max(place for place, name in enumerate(order, 1) if name.startswith("low"))
    assert last >= (aged_starts - 1) * share


def test_fresh_requesters_do_not_starve_an_aged_one() -> None:
    """Whoever joins those that take turns joins at the end; found by the simulation, seed 7926."""
    stage = Stage(Settings(ageing_ms=1_000, ageing_share=1))
    stage.know("worker", "work")
    tasks = [task(f"t{number}", priority=LOW) for number in range(5)]
    stage.submit(*tasks, request_id="old", requester="agent/old")
    stage.pass_time(1_500)
    stream = stage.link("worker", slots=1)
    order = []
    for number in range(9):
        stage.submit(task("t", priority=LOW), request_id=f"new{number}", requester=f"agent/new{number}")
        stage.pass_time(1_100)
        order += starts(stage, stream, 1)
    assert order[:7] == ["old", "old", "new0", "old", "new1", "new2", "old"]


def test_an_emergency_never_waits_for_an_aged_task() -> None:
    stage = Stage(Settings(ageing_ms=1_000, ageing_share=1))
    stage.know("worker", "work")
    stage.submit(*(task(f"t{number}", priority=LOW) for number in range(5)), request_id="low")
    stage.pass_time(5_000)
    stage.submit(*(task(f"t{number}") for number in range(5)), request_id="now", priority=EMERGENCY)
    stream = stage.link("worker", slots=1)
    order = []
    for _ in range(10):
        first, *_ = stage.state.book.instances.values()
        [running] = first.held.values()
        order.append(running.priority)
        stage.finish(stream, running.key.task_id, request_id=running.collaboration.submission.request_id)
    assert order == [EMERGENCY] * 5 + [LOW] * 5


def test_age_counts_while_a_task_that_came_back_waits_in_front() -> None:
    """Its age begins anew, and hides nobody else's; found by the simulation, seed 1260."""
    stage = Stage(Settings(ageing_ms=1_000, ageing_share=2))
    stream = stage.agent("a")
    stage.submit(task("back", priority=NORMAL), request_id="first")
    stage.submit(task("low", priority=LOW), request_id="old")
    stage.pass_time(900)
    # Given back, and ready anew behind something more urgent.
    stage.submit(*(task(f"t{number}", priority=HIGH) for number in range(9)), request_id="flood")
    stage.frame(stream, results=(ResultReport(stage.ref("back", "first"), Cancelled()),))
    stage.pass_time(300)
    given = only(stage.frame(stream, credits=1), Assign)
    order = [each.task.key.task_id for each in given]
    while "low" not in order and len(order) < 9:
        order += [
            each.task.key.task_id
            for each in only(stage.finish(stream, order[-1], request_id="flood"), Assign)
        ]
    assert "low" in order[:2], order


def test_age_counts_while_a_gang_waits() -> None:
    """Found by the simulation, seed 1431."""
    stage = Stage(Settings(ageing_ms=1_000, ageing_share=2))
    stage.know("a", "work")
    stage.submit(task("low", priority=LOW), request_id="old")
    stage.submit(*gang("g", size=2, priority=LOW), request_id="gang")
    stage.pass_time(1_500)
    stage.submit(*(task(f"t{number}", priority=HIGH) for number in range(9)), request_id="flood")
    stream = stage.link("a", 0)
    order = [each.task.key.task_id for each in only(stage.frame(stream, credits=1), Assign)]
    while "low" not in order and len(order) < 9:
        order += [
            each.task.key.task_id
            for each in only(stage.finish(stream, order[-1], request_id="flood"), Assign)
        ]
    assert "low" in order[:2], order
