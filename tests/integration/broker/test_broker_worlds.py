"""The seeded worlds of the core's own test over the real stores: real files, real Redis, real recovery.

Most deaths come in the middle of a commit, and what is left of the files then is any part of what it wrote.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from unittest.mock import patch

import pytest

from services.common.sqlite import Database
from tests.unit.broker.broker_parties import World
from tests.unit.broker.broker_sabotage import BUGS, worlds_until_noticed
from tests.unit.broker.broker_seeds import disks, play, play_all

# Worlds of each kind; the Redis that dies too takes its time to come back.
WORLDS = {"sqlite": 60, "redis": 16, "redis-killed": 8}
# Of 100,000 of the reference store; these are the same worlds on slower disks.
NIGHTLY_SHARE = {"sqlite": 0.1, "redis": 0.02, "redis-killed": 0.02}
NIGHTLY_WORLDS = int(os.environ.get("MUSTER_TEST_WORLDS", "100000"))
SEEDS_TO_NOTICE = 60
# Defects of what is kept; the others, of the core, are looked for on the reference store, and here by night.
OF_THE_STORE = {
    "lost accept",
    "lost ack",
    "double effect",
    "resurrection",
    "ids forgotten in a crash",
    "chosen receivers forgotten in a crash",
    "subscriptions forgotten in a crash",
    "answer before the disk",
    "delivery after the ttl",
}


@pytest.mark.parametrize("kind", WORLDS)
def test_every_world_keeps_every_promise_on_a_real_store(kind: str) -> None:
    with disks(kind) as make:
        for seed in range(WORLDS[kind]):
            play(seed, kind, make)


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", WORLDS)
def test_very_many_worlds_on_a_real_store(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = int(NIGHTLY_WORLDS * NIGHTLY_SHARE[kind])
    found: list[str] = []
    for done, broken in play_all(WORLDS[kind], count, os.cpu_count() or 1, kind):
        found += broken
        with capsys.disabled():
            print(f"{done}/{count} {kind} worlds, {len(found)} broken", flush=True)
    assert not found, "\n\n".join(found[:10])


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[] if one in OF_THE_STORE else [pytest.mark.nightly]) for one in BUGS],
)
def test_the_checker_notices_on_sqlite(name: str) -> None:
    with disks("sqlite") as make:
        assert worlds_until_noticed(name, make, SEEDS_TO_NOTICE), f"not as {BUGS[name].promise}"


def test_a_store_that_commits_in_pieces_is_noticed() -> None:
    def in_pieces(database: Database, work: Callable[[sqlite3.Connection], object]) -> object:
        connection = database._connection
        assert connection is not None
        return work(connection)

    def play_some() -> None:
        with disks("sqlite") as make:
            for seed in range(SEEDS_TO_NOTICE):
                with make(seed) as disk:
                    # Without inspection the disk is never full.
                    World(seed, disk, inspects=False).play()

    with (
        patch.object(Database, "_write", in_pieces),
        pytest.raises(AssertionError, match="there in part"),
    ):
        play_some()
