"""Random collaborations on random fleets through the real core, from seeds; see `scheduler_sim_plane`."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import pytest

from tests.unit.scheduler.scheduler_sim_plane import World
from tests.unit.scheduler.scheduler_sim_sabotage import BUGS, BrokenState, BrokenStore
from tests.unit.scheduler.scheduler_sim_seeds import play, play_all
from tests.unit.scheduler.scheduler_sim_seen import BrokenPromise

SEEDS = 120
NIGHTLY_SEEDS = int(os.environ.get("MUSTER_SCHEDULER_SEEDS", "100000"))
# A defect must be noticed within so many planes.
SEEDS_TO_NOTICE = 400


@pytest.mark.parametrize("block", range(0, SEEDS, 40))
def test_every_plane_keeps_every_promise(block: int) -> None:
    operations = Counter[str]()
    for seed in range(block, block + 40):
        operations.update(play(seed).operations)
    # The runs say something only if much happens in them.
    for operation in ("task.succeed", "task.lose", "task.retry", "collaboration.complete", "lock.release"):
        assert operations[operation] >= 3, operation


@pytest.mark.parametrize(
    "seed", [56, 155, 1051, 1075, 1168, 7926, 18224, 22521, 106362, 108610, 207845, 208671]
)
def test_planes_that_broke_a_promise_once_keep_it(seed: int) -> None:
    play(seed)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_very_many_planes_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[str] = []
    for done, broken in play_all(SEEDS, NIGHTLY_SEEDS - SEEDS, os.cpu_count() or 1):
        found += broken
        with capsys.disabled():
            print(f"{done}/{NIGHTLY_SEEDS - SEEDS} planes, {len(found)} broken", flush=True)
    assert not found, "\n\n".join(found[:10])


@pytest.mark.parametrize("name", BUGS)
def test_the_checker_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    if bug.patch is not None:
        owner, attribute, replacement = bug.patch
        if isinstance(owner, dict):
            monkeypatch.setitem(owner, attribute, replacement)
        else:
            monkeypatch.setattr(owner, attribute, replacement)
    noticed = Counter[str]()
    for seed in range(bug.first, bug.first + SEEDS_TO_NOTICE):
        world = World(seed, partial(BrokenState, bug=bug), partial(BrokenStore, bug=name), inspects=False)
        try:
            world.play()
        except BrokenPromise as broken:
            noticed[broken.promise] += 1
            if broken.promise in bug.promises:
                return
        except Exception as error:  # noqa: BLE001  # a broken core may stumble over itself: that is no finding
            noticed[type(error).__name__] += 1
    pytest.fail(f"{name!r} was not noticed as {bug.promises} in {SEEDS_TO_NOTICE} planes, only {noticed}")


def test_the_same_seed_gives_the_same_course() -> None:
    first, second = play(11), play(11)
    assert (first.operations, first.now, first.batches) == (second.operations, second.now, second.batches)
