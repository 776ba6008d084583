"""Seeded worlds around the real core: guarantees M1 to M8 over the whole history of each."""

from __future__ import annotations

import os
from functools import partial

import pytest

from services.broker.stores.memory import MemoryStore
from tests.unit.broker.broker_checker import BrokenPromise
from tests.unit.broker.broker_parties import World
from tests.unit.broker.broker_sabotage import BUGS, BrokenMachine, LossyStore
from tests.unit.broker.broker_seeds import play, play_all

SEEDS = 200
NIGHTLY_SEEDS = 100_000
# A defect must be noticed within so many worlds.
SEEDS_TO_NOTICE = 60


@pytest.mark.parametrize("block", range(0, SEEDS, 50))
def test_every_world_keeps_every_promise(block: int) -> None:
    for seed in range(block, block + 50):
        play(seed)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_very_many_worlds_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[str] = []
    for done, broken in play_all(SEEDS, NIGHTLY_SEEDS - SEEDS, os.cpu_count() or 1):
        found += broken
        with capsys.disabled():
            print(f"{done}/{NIGHTLY_SEEDS - SEEDS} worlds, {len(found)} broken", flush=True)
    assert not found, "\n\n".join(found[:10])


@pytest.mark.parametrize("name", BUGS)
def test_the_checker_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    if bug.patch is not None:
        owner, attribute, replacement = bug.patch
        monkeypatch.setattr(owner, attribute, replacement)
    noticed = set()
    for seed in range(SEEDS_TO_NOTICE):
        make = partial(BrokenMachine, bug=name)
        world = World(seed, LossyStore(name), make, inspects=False, burst=bug.burst)
        try:
            world.play()
        except BrokenPromise as broken:
            noticed.add(broken.promise)
            if bug.promise in noticed:
                return
    pytest.fail(f"{name!r} was not noticed as {bug.promise} in {SEEDS_TO_NOTICE} worlds, only {noticed}")


def test_a_double_without_a_bug_passes() -> None:
    """What is noticed above is noticed because of the bug."""
    for seed in range(10):
        World(seed, MemoryStore(), inspects=False).play()
