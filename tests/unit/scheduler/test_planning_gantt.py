"""The chart has a bar for every task where the schedule says, and is well-formed XML whatever the names."""

from __future__ import annotations

from xml.etree import ElementTree

from services.scheduler.core.planning.gantt import Chart, critical_tasks, draw
from services.scheduler.core.planning.lists import heft
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule
from tests.unit.scheduler.planning_problems import heft_paper, random_problem

SVG = "{http://www.w3.org/2000/svg}"


def bars(text: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(text)
    return [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in ("task", "critical")]


def test_every_task_has_its_bar() -> None:
    problem = heft_paper()
    schedule = heft(problem)
    found = bars(draw(problem, [Chart("HEFT", schedule, critical_tasks(problem, schedule))]))
    assert len(found) == len(problem.tasks)
    titles = [bar.findtext(f"{SVG}title") for bar in found]
    assert titles[9] == "task 9: 73–80 ms"
    starts = [float(bar.get("x", "")) for bar in found]
    order = sorted(problem.tasks, key=lambda task: schedule.slots[task].start_ms)
    assert [starts[task] for task in order] == sorted(starts)


def test_the_last_task_is_critical_and_the_chain_begins_at_the_start() -> None:
    problem = heft_paper()
    schedule = heft(problem)
    critical = critical_tasks(problem, schedule)
    assert critical[-1] == 9
    assert schedule.slots[critical[0]].start_ms == 0


def test_names_are_escaped_and_slots_are_told_apart() -> None:
    problem = random_problem(2, tasks=6, agents=3)
    text = draw(problem, [Chart("<&>", heft(problem))], ['<b>"&'] * 6, ["<i>"] * 3)
    assert len(bars(text)) == 6
    rows = sum(len(slots) for slots in problem.slots_from_ms)
    assert text.count('class="row"') == rows


def test_nothing_can_be_drawn() -> None:
    problem = Problem((), slots_from_ms=((0,),))
    assert bars(draw(problem, [Chart("empty", Schedule(()))])) == []
