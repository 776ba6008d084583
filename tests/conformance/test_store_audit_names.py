"""The index of names: whatever was added and however it was merged, every leaf of a name is found."""

import random
import sqlite3
from collections.abc import Iterator

import pytest

from services.audit.stores import names


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:")
    made.executescript(names.SCHEMA)
    yield made
    made.close()


def runs(connection: sqlite3.Connection) -> list[int]:
    return [size for (size,) in connection.execute("SELECT size FROM runs ORDER BY first_leaf")]


def test_many_additions_are_few_runs_and_nothing_is_lost(connection: sqlite3.Connection) -> None:
    chosen = random.Random(5)
    has: dict[str, list[int]] = {}
    leaf = 0
    for _ in range(200):
        added = []
        first = leaf
        for _ in range(chosen.randrange(1, 4)):
            leaf += chosen.randrange(1, 3)
            mine = {f"m-{chosen.randrange(3_000)}" for _ in range(chosen.randrange(1, 60))}
            added.append((leaf, mine))
            for name in mine:
                has.setdefault(name, []).append(leaf)
        leaf += 1
        names.add(connection, added, first)
    assert len(runs(connection)) < 25
    for name, leaves in has.items():
        found = names.find(connection, name, 0, leaf, 10_000)
        assert found == sorted(found)
        # Another name may have the same number; none of this one is missing.
        assert set(leaves) <= set(found)
        assert len(found) <= len(leaves) + 2
        middle = leaf // 2
        assert names.find(connection, name, middle, leaf, 10_000) == [one for one in found if one >= middle]
        assert names.find(connection, name, 0, middle, 2) == [one for one in found if one < middle][:2]
    assert names.find(connection, "never", 0, leaf, 10) == []


def test_a_name_of_many_leaves_fills_pages(connection: sqlite3.Connection) -> None:
    count = names.PAGE_NUMBERS * 5
    names.add(connection, ((at, ["b", "a", "c"]) for at in range(count)), 0)
    assert names.find(connection, "b", 0, count, count) == list(range(count))
    assert names.find(connection, "b", 700, 1_900, count) == list(range(700, 1_900))


def test_a_run_that_is_large_enough_is_left_alone(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "RUN_NAMES_MAX", 100)
    for leaf in range(40):
        names.add(connection, [(leaf, [f"{leaf}-{at}" for at in range(20)])], leaf)
    assert runs(connection) == [20] * 40
    assert names.find(connection, "3-7", 0, 40, 9) == [3]


def test_a_cleared_index_is_empty(connection: sqlite3.Connection) -> None:
    names.add(connection, [(0, ["a"])], 0)
    names.clear(connection)
    assert names.find(connection, "a", 0, 9, 9) == []
