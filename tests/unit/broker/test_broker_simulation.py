"""Seeded worlds around the real core: guarantees M1 to M8 over the whole history of each."""

from __future__ import annotations

import os

import pytest

from tests.unit.broker.broker_disks import MemoryDisk
from tests.unit.broker.broker_parties import World
from tests.unit.broker.broker_sabotage import BUGS, worlds_until_noticed
from tests.unit.broker.broker_seeds import disks, play, play_all

SEEDS = 200
NIGHTLY_SEEDS = int(os.environ.get("MUSTER_TEST_WORLDS", "100000"))
# A defect must be noticed within so many worlds.
SEEDS_TO_NOTICE = 60


@pytest.mark.parametrize("block", range(0, SEEDS, 50))
def test_every_world_keeps_every_promise(block: int) -> None:
    with disks("memory") as make:
        for seed in range(block, block + 50):
            play(seed, "memory", make)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_very_many_worlds_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[str] = []
    for done, broken in play_all(SEEDS, NIGHTLY_SEEDS - SEEDS, os.cpu_count() or 1, "memory"):
        found += broken
        with capsys.disabled():
            print(f"{done}/{NIGHTLY_SEEDS - SEEDS} worlds, {len(found)} broken", flush=True)
    assert not found, "\n\n".join(found[:10])


@pytest.mark.parametrize("name", BUGS)
def test_the_checker_notices(name: str) -> None:
    with disks("memory") as make:
        assert worlds_until_noticed(name, make, SEEDS_TO_NOTICE), f"not as {BUGS[name].promise}"


def test_a_double_without_a_bug_passes() -> None:
    """What is noticed above is noticed because of the bug."""
    for seed in range(10):
        World(seed, MemoryDisk(seed), inspects=False).play()
