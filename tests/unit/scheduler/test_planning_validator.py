"""The validator accepts what keeps the rules, and refuses every fault that is planted into it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.scheduler.core.planning.problem import Dependency, Network, Problem, whole_agents
from services.scheduler.core.planning.schedule import Schedule, Slot
from services.scheduler.core.planning.validate import InvalidScheduleError, check, find_violations

# 0 on the first agent makes 10 bytes for 1 on the second; 2 and 3 hold the pump.
PROBLEM = Problem(
    duration_ms=((5, 9), (None, 4), (6, 6), (3, 3)),
    dependencies=(Dependency(0, 1, 10),),
    slots_from_ms=((0,), (2, 20)),
    network=Network.uniform(2, 1.0, 0.25),
    locks={2: frozenset({"pump"}), 3: frozenset({"pump"})},
    release_ms={3: (30, 14)},
)
GOOD = (Slot(0, 0, 0, 5), Slot(1, 0, 9, 13), Slot(0, 0, 5, 11), Slot(1, 0, 14, 17))


def rules(**changed: Slot) -> set[str]:
    slots = list(GOOD)
    for name, slot in changed.items():
        slots[int(name[1:])] = slot
    return {violation.rule for violation in find_violations(PROBLEM, Schedule(tuple(slots)))}


def test_what_keeps_the_rules_is_accepted() -> None:
    assert rules() == set()
    check(PROBLEM, Schedule(GOOD))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ({"t2": Slot(0, 0, 4, 10)}, "overlap"),
        ({"t2": Slot(1, 0, 12, 18)}, "overlap"),
        ({"t1": Slot(1, 0, 8, 12)}, "dependency"),
        ({"t1": Slot(1, 0, 5, 9)}, "dependency"),
        ({"t1": Slot(0, 0, 20, 24)}, "ineligible"),
        ({"t1": Slot(2, 0, 20, 24)}, "ineligible"),
        ({"t1": Slot(-1, 0, 20, 24)}, "ineligible"),
        ({"t2": Slot(0, 0, 5, 10)}, "duration"),
        ({"t2": Slot(0, 1, 5, 11)}, "capacity"),
        ({"t2": Slot(1, 2, 30, 36)}, "capacity"),
        ({"t2": Slot(1, 1, 19, 25)}, "unavailable"),
        ({"t0": Slot(1, 0, 0, 9)}, "unavailable"),
        ({"t3": Slot(0, 0, 29, 32)}, "release"),
        ({"t3": Slot(1, 0, 13, 16)}, "release"),
        ({"t2": Slot(0, 0, 10, 16)}, "lock"),
    ],
)
def test_a_planted_fault_is_refused(fault: dict[str, Slot], rule: str) -> None:
    assert rule in rules(**fault)


@pytest.mark.parametrize("slots", [GOOD[:-1], (*GOOD, Slot(0, 0, 50, 55)), ()])
def test_a_missing_or_doubled_task_is_refused(slots: tuple[Slot, ...]) -> None:
    assert [v.rule for v in find_violations(PROBLEM, Schedule(slots))] == ["task-count"]


def test_the_error_names_what_is_broken() -> None:
    with pytest.raises(InvalidScheduleError, match="task 2 lasts 5 ms where it takes 6"):
        check(PROBLEM, Schedule((*GOOD[:2], Slot(0, 0, 5, 10), GOOD[3])))


def test_data_that_takes_part_of_a_millisecond_is_waited_for() -> None:
    problem = replace(PROBLEM, network=Network.uniform(2, 1.0, 0.26))
    assert [v.rule for v in find_violations(problem, Schedule(GOOD))] == []
    slower = replace(PROBLEM, network=Network.uniform(2, 1.0, 0.31))
    assert [v.rule for v in find_violations(slower, Schedule(GOOD))] == ["dependency"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"duration_ms": ((None,),)}, "no agent"),
        ({"duration_ms": ((1, 2),)}, "2 durations for 1 agents"),
        ({"duration_ms": ((0,),)}, "less than 1 ms"),
        ({"slots_from_ms": ((),)}, "no agent"),
        ({"slots_from_ms": ((-1,),)}, "before the start"),
        ({"dependencies": (Dependency(0, 0),)}, "cycle"),
        ({"dependencies": (Dependency(0, 1),)}, "not there"),
        ({"release_ms": {0: (1, 2)}}, "instants"),
    ],
)
def test_what_is_no_problem_is_refused(broken: dict[str, object], says: str) -> None:
    fields = {"duration_ms": ((1,),), "slots_from_ms": whole_agents(1)} | broken
    with pytest.raises(ValueError, match=says):
        Problem(**fields)  # type: ignore[arg-type]
