"""What the scheduling figures rest on: loader, drawn fleets, exhaustive optimum, names of modules."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scheduling import figures
from benchmarks.scheduling.exhaustive import optimum_ms
from benchmarks.scheduling.kept import Kept, Values, fingerprint
from benchmarks.scheduling.s3_adversary import changed, first
from benchmarks.scheduling.s8_fairness import evenness, jain
from benchmarks.scheduling.s10_trace import (
    Trace,
    at_random,
    best_fit,
    by_rule,
    core_choices,
    dot_product,
    filled,
)
from benchmarks.scheduling.workflows import Workflow, load, on_fleet
from services.scheduler.core.model import SchedulingPolicy
from services.scheduler.core.planning.portfolio import best_of_classics
from services.scheduler.core.planning.problem import Dependency
from services.scheduler.core.planning.search import plan, steps


def document() -> dict[str, object]:
    tasks = [
        {"id": "a", "children": ["b", "c"], "inputFiles": [], "outputFiles": ["x", "y", "z"]},
        {"id": "b", "children": ["c"], "inputFiles": ["x", "y"], "outputFiles": ["w"]},
        {"id": "c", "children": [], "inputFiles": ["y", "w", "q"], "outputFiles": []},
    ]
    sizes = {"x": 1, "y": 20, "z": 300, "w": 4000, "q": 50000}
    files = [{"id": name, "sizeInBytes": size} for name, size in sizes.items()]
    runs = [("c", 0.0), ("a", 1.5), ("b", 2.0)]
    execution = {"tasks": [{"id": name, "runtimeInSeconds": seconds} for name, seconds in runs]}
    return {"workflow": {"specification": {"tasks": tasks, "files": files}, "execution": execution}}


def test_what_a_parent_writes_and_a_child_reads_travels(tmp_path: Path) -> None:
    path = tmp_path / "three.json"
    path.write_text(json.dumps(document()), encoding="utf-8")
    workflow = load(path)
    assert workflow.runtime_ms == (1500.0, 2000.0, 1.0)
    assert workflow.dependencies == (Dependency(0, 1, 21), Dependency(0, 2, 20), Dependency(1, 2, 4000))


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_fleet_has_the_ratio_that_was_asked_for(ratio: float) -> None:
    edges = (Dependency(0, 1, 10_000_000), Dependency(0, 2, 30_000_000))
    problem = on_fleet(Workflow("w", ("a", "b", "c"), (60e3, 90e3, 30e3), edges), 16, ratio, 3)
    assert problem == on_fleet(Workflow("w", ("a", "b", "c"), (60e3, 90e3, 30e3), edges), 16, ratio, 3)
    assert problem.network is not None
    delays = [
        problem.network.delay_ms(edge.size_bytes, a, b)
        for edge in edges
        for a in problem.agents
        for b in problem.agents
        if a != b
    ]
    mean_ms = np.mean([ms for row in problem.duration_ms for ms in row if ms is not None])
    assert np.mean(delays) == pytest.approx(ratio * mean_ms, rel=0.01)


def test_the_exhaustive_optimum_is_what_the_plan_finds_on_tiny_instances() -> None:
    draw = random.Random(5)
    instance = first(draw)
    for _ in range(15):
        instance = changed(instance, draw)
        problem = instance.problem()
        best = optimum_ms(problem, best_of_classics(problem).makespan_ms)
        assert plan(problem, steps(300)).schedule.makespan_ms == best


def test_figures_are_found_by_their_names() -> None:
    found = figures()
    assert {"S1", "S2", "S3"} <= set(found)
    assert list(found) == sorted(found, key=lambda name: int(name[1:]))
    for module in found.values():
        assert callable(module.run)
        assert module.__doc__


def test_jains_index_is_one_when_all_are_alike_and_one_nth_when_one_has_all() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_the_core_loads_agents_in_proportion_to_their_slots() -> None:
    index, end_ms = evenness(1, 400, SchedulingPolicy.LEAST_LOADED)
    assert index > 0.9
    assert end_ms > 0


def test_a_trace_is_filled_by_the_core_and_by_the_rules_beside_it() -> None:
    """Two nodes of which only one has a GPU: work without one must not take that node's CPU."""
    nodes, tasks = [(4_000, 1_000, 10), (4_000, 0, 10)], [(4_000, 0, 1), (1_000, 1_000, 1), (9_000, 0, 1)]
    trace = Trace(np.array(nodes), np.array(tasks))
    assert core_choices(trace) == [1, 0, None]
    assert filled(trace, core_choices(trace)) == 1.0
    assert filled(trace, by_rule(trace, dot_product(trace.nodes.max(axis=0)))) == 0.0
    for rule in (best_fit(trace.nodes.max(axis=0)), at_random(3)):
        assert filled(trace, by_rule(trace, rule)) in {0.0, 1.0}
    with pytest.raises(AssertionError, match="more than it has"):
        filled(trace, [1, 1, None])


def test_a_case_is_measured_once_and_survives_a_run_that_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    kept, measured = Kept(path), []

    def measure() -> Values:
        measured.append(1)
        return {"ours": 0.5, "best": None}

    assert kept.once(("S1", "w", 4, 0.1), measure) == {"ours": 0.5, "best": None}
    # Killed in the middle of a line.
    with path.open("a", encoding="utf-8") as file:
        file.write('[["S1", "w", 1')
    again = Kept(path)
    assert again.once(("S1", "w", 4, 0.1), measure) == {"ours": 0.5, "best": None}
    assert again.find(("S1", "w", 16, 0.1)) is None
    assert len(measured) == 1
    again.once(("S1", "w", 16, 0.1), measure)
    assert Kept(path).find(("S1", "w", 16, 0.1)) is not None


def test_other_code_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    one = fingerprint(tmp_path)
    (tmp_path / "a.py").write_text("2", encoding="utf-8")
    assert one != fingerprint(tmp_path)
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    assert one == fingerprint(tmp_path / "a.py") == fingerprint(tmp_path)
