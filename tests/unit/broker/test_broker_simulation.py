"""Seeded worlds around the real core: guarantees M1 to M8 over the whole history of each."""

from __future__ import annotations

import pytest

from services.broker.stores.memory import MemoryStore
from tests.unit.broker.broker_parties import World


@pytest.mark.parametrize("seed", range(300))
def test_a_world_keeps_every_promise(seed: int) -> None:
    World(seed, MemoryStore()).play()
