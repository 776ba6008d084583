"""The arithmetic of dependency graphs, against brute force on small graphs and by size on large ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.ids import TaskId
from services.scheduler.core.intake import graph

Deps = dict[TaskId, list[TaskId]]


def ids(names: str) -> list[TaskId]:
    return [TaskId(name) for name in names]


def build(**edges: str) -> Deps:
    """build(a="", b="a") says that b depends on a."""
    return {TaskId(task): ids(dependencies) for task, dependencies in edges.items()}


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool) -> Deps:
    count = draw(st.integers(0, 7))
    names = ids("abcdefg"[:count])
    order = draw(st.permutations(names))
    deps: Deps = {}
    for name in order:
        allowed = [other for other in names if other < name] if acyclic else names
        deps[name] = draw(st.lists(st.sampled_from(allowed), max_size=4)) if allowed else []
    return deps


@st.composite
def timed_graphs(draw: st.DrawFn) -> tuple[Deps, dict[TaskId, int]]:
    deps = draw(graphs(acyclic=True))
    return deps, {task: draw(st.integers(0, 50)) for task in deps}


def chains(deps: Deps) -> Iterator[tuple[TaskId, ...]]:
    """Every chain of the graph, first task first, by brute force: any subset in any order."""
    for size in range(1, len(deps) + 1):
        for chain in itertools.permutations(deps, size):
            if all(before in deps[after] for before, after in itertools.pairwise(chain)):
                yield chain


def length(chain: tuple[TaskId, ...], duration_ms: dict[TaskId, int]) -> int:
    return sum(duration_ms[task] for task in chain)


def is_cyclic(deps: Deps) -> bool:
    """Naive: take away what depends on nothing until nothing more can be taken."""
    left = {task: {d for d in dependencies if d in deps} for task, dependencies in deps.items()}
    while free := [task for task, waits_for in left.items() if not waits_for & left.keys()]:
        for task in free:
            del left[task]
    return bool(left)


class TestFindCycle:
    def test_an_empty_graph_has_none(self) -> None:
        assert graph.find_cycle({}) is None

    def test_a_task_that_depends_on_itself_is_the_shortest_cycle(self) -> None:
        assert graph.find_cycle(build(a="a")) == ids("aa")

    def test_the_walk_leaves_out_what_only_leads_to_the_cycle(self) -> None:
        assert graph.find_cycle(build(a="b", b="c", c="d", d="b")) == ids("bcdb")

    def test_two_ways_to_one_task_are_no_cycle(self) -> None:
        assert graph.find_cycle(build(a="", b="a", c="a", d="bc")) is None

    def test_an_unknown_dependency_counts_as_absent(self) -> None:
        assert graph.find_cycle(build(a="z")) is None

    @given(graphs(acyclic=False))
    def test_finds_a_cycle_exactly_when_there_is_one_and_its_steps_are_real(self, deps: Deps) -> None:
        cycle = graph.find_cycle(deps)
        assert (cycle is not None) == is_cyclic(deps)
        if cycle is not None:
            assert cycle[0] == cycle[-1]
            assert len(set(cycle)) == len(cycle) - 1
            assert all(after in deps[before] for before, after in itertools.pairwise(cycle))

    def test_a_long_chain_and_a_long_ring(self) -> None:
        names = [TaskId(str(n)) for n in range(10_000)]
        ring = {task: [names[n - 1]] for n, task in enumerate(names)}
        cycle = graph.find_cycle(ring)
        assert cycle is not None
        assert len(cycle) == 10_001
        assert graph.find_cycle({**ring, names[0]: []}) is None


class TestOrder:
    @given(graphs(acyclic=True))
    def test_every_task_once_and_after_what_it_depends_on(self, deps: Deps) -> None:
        order = graph.topological_order(deps)
        assert sorted(order) == sorted(deps)
        place = {task: n for n, task in enumerate(order)}
        assert all(place[d] < place[task] for task in deps for d in deps[task])

    def test_ties_follow_the_order_of_the_mapping(self) -> None:
        assert graph.topological_order(build(c="", a="", b="")) == ids("cab")

    @given(graphs(acyclic=True))
    def test_a_level_is_the_longest_chain_below(self, deps: Deps) -> None:
        rows = graph.levels(deps)
        found = {task: n for n, row in enumerate(rows) for task in row}
        assert all(rows)
        assert found == {
            task: max(len(chain) - 1 for chain in chains(deps) if chain[-1] == task) for task in deps
        }

    @pytest.mark.parametrize("ask", [graph.topological_order, graph.levels])
    def test_a_cycle_is_refused(self, ask: object) -> None:
        assert callable(ask)
        with pytest.raises(ValueError, match="cycle"):
            ask(build(a="b", b="a"))


class TestTime:
    @given(timed_graphs())
    def test_ranks_finishes_and_slack_are_those_of_the_longest_chains(
        self, timed: tuple[Deps, dict[TaskId, int]]
    ) -> None:
        deps, duration_ms = timed
        every = [(chain, length(chain, duration_ms)) for chain in chains(deps)]
        whole = max((ms for _, ms in every), default=0)
        assert graph.upward_ranks(deps, duration_ms) == {
            task: max(ms for chain, ms in every if chain[0] == task) for task in deps
        }
        assert graph.earliest_finish(deps, duration_ms) == {
            task: max(ms for chain, ms in every if chain[-1] == task) for task in deps
        }
        assert graph.slack(deps, duration_ms) == {
            task: whole - max(ms for chain, ms in every if task in chain) for task in deps
        }

    @given(timed_graphs())
    def test_the_critical_path_is_a_longest_chain(self, timed: tuple[Deps, dict[TaskId, int]]) -> None:
        deps, duration_ms = timed
        path = graph.critical_path(deps, duration_ms)
        assert path.length_ms == length(path.tasks, duration_ms)
        assert path.length_ms == max((length(chain, duration_ms) for chain in chains(deps)), default=0)
        assert not path.tasks or path.tasks in set(chains(deps))
        slack = graph.slack(deps, duration_ms)
        assert all(slack[task] == 0 for task in path.tasks)

    def test_a_diamond(self) -> None:
        deps = build(a="", b="a", c="a", d="bc")
        duration_ms = dict(zip(ids("abcd"), (1, 10, 3, 2), strict=True))
        assert graph.critical_path(deps, duration_ms) == graph.CriticalPath(tuple(ids("abd")), 13)
        assert graph.slack(deps, duration_ms) == dict(zip(ids("abcd"), (0, 0, 7, 0), strict=True))

    def test_of_equal_paths_the_first_named_is_taken(self) -> None:
        deps = build(b="", a="", c="ab")
        assert graph.critical_path(deps, dict.fromkeys(deps, 1)).tasks == tuple(ids("bc"))

    def test_a_dependency_named_twice_counts_once(self) -> None:
        deps = {TaskId("a"): [], TaskId("b"): ids("aa")}
        assert graph.upward_ranks(deps, dict.fromkeys(deps, 5)) == {TaskId("a"): 10, TaskId("b"): 5}

    def test_a_chain_of_ten_thousand(self) -> None:
        names = [TaskId(str(n)) for n in range(10_000)]
        deps: Deps = {task: [names[n - 1]] if n else [] for n, task in enumerate(names)}
        duration_ms = dict.fromkeys(names, 1)
        assert graph.critical_path(deps, duration_ms).length_ms == 10_000
        assert graph.upward_ranks(deps, duration_ms)[names[0]] == 10_000
        assert len(graph.levels(deps)) == 10_000
        assert set(graph.slack(deps, duration_ms).values()) == {0}
