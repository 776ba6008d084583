"""Random fleets, failures and leaders against the pure core, with every promise checked after every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.scheduler_world import SeededChooser, World

T = TypeVar("T")


class DrawnChooser:
    """Choices from Hypothesis, which shrinks them."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def number(self, least: int, most: int) -> int:
        return self._data.draw(st.integers(least, most))

    def one(self, options: Sequence[T]) -> T:
        return self._data.draw(st.sampled_from(options))

    def some(self, options: Sequence[T], least: int = 0, most: int = 2) -> list[T]:
        if not options:
            return []
        most = min(most, len(options))
        return self._data.draw(st.lists(st.sampled_from(options), min_size=least, max_size=most, unique=True))


def run(seed: int, steps: int, *, crowded: bool = False) -> World:
    world = World(SeededChooser(seed), crowded=crowded)
    for _ in range(steps):
        try:
            world.act()
        except Exception as error:
            error.add_note(f"seed {seed}, step {len(world.story)}: {world.story[-20:]}")
            raise
    return world


@pytest.mark.parametrize("block", range(8))
def test_every_promise_holds_from_seeds(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        run(seed, 200)


@pytest.mark.parametrize("block", range(4))
def test_every_promise_holds_where_everything_is_crowded(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        run(seed, 200, crowded=True)


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(100))
def test_every_promise_holds_from_many_seeds(block: int) -> None:
    for seed in range(1_000 + block * 1_000, 2_000 + block * 1_000):
        run(seed, 200, crowded=seed % 2 == 1)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_every_promise_holds_for_what_hypothesis_thinks_of(data: st.DataObject) -> None:
    world = World(DrawnChooser(data))
    for _ in range(data.draw(st.integers(5, 40))):
        world.act()


def test_the_same_seed_gives_the_same_course() -> None:
    first, second = run(11, 150), run(11, 150)
    assert first.stage.entries == second.stage.entries


def test_the_random_world_is_not_an_idle_one() -> None:
    """The runs above say something only if much happens in them."""
    worlds = [run(seed, 200) for seed in range(20)] + [run(seed, 200, crowded=True) for seed in range(20)]
    operations = [entry.operation for world in worlds for entry in world.stage.entries]
    for operation in (
        "task.succeed",
        "task.lose",
        "task.retry",
        "lock.grant",
        "collaboration.complete",
        "task.preempt",
        "task.suspend",
        "task.resume",
        "task.move",
        "lock.lend",
    ):
        assert operations.count(operation) >= 10, operation
