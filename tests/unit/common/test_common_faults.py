"""The test tools themselves: faults in pairs, the memory outbox."""

from __future__ import annotations

import asyncio

import pytest

from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.common.testing.faults import Faults
from services.common.testing.outbox import MemoryOutbox


class Store:
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.name = "store"

    async def commit(self, number: int) -> int:
        self.kept.append(number)
        return len(self.kept)

    def forget(self) -> None:
        self.kept.clear()


def test_a_pair_of_faults() -> None:
    async def story() -> None:
        faults, real = Faults(), Store()
        store = faults.around(real)
        faults.fail_before("commit")
        faults.fail_after("commit")
        with pytest.raises(ServiceError) as raised:
            await store.commit(1)
        assert raised.value.reason is Reason.STORE_UNAVAILABLE
        assert real.kept == []
        with pytest.raises(ServiceError):
            await store.commit(2)
        assert real.kept == [2]
        assert await store.commit(3) == 2
        assert faults.calls == {"commit": 3}
        assert store.name == "store"

    asyncio.run(story())


def test_faults_of_plain_methods_and_own_errors() -> None:
    faults, real = Faults(), Store()
    real.kept = [1]
    store = faults.around(real)
    faults.fail_before("forget", times=2, error=lambda: OSError("disk"))
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            store.forget()
    assert real.kept == [1]
    faults.fail_after("forget", error=lambda: OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        store.forget()
    assert real.kept == []
    store.forget()


def test_a_held_call_waits() -> None:
    async def story() -> None:
        faults, real = Faults(), Store()
        store = faults.around(real)
        release = faults.hold("commit")
        waiting = asyncio.create_task(store.commit(1))
        while faults.calls.get("commit") is None:
            await asyncio.sleep(0)
        assert real.kept == []
        release.set()
        assert await waiting == 1

    asyncio.run(story())


def test_the_memory_outbox_behaves_like_a_full_spool_when_told() -> None:
    async def story() -> None:
        outbox = MemoryOutbox()
        entry = EntryDraft(Instant(1), "agent/x", "task.assign", "task/t")
        await outbox.record([entry], privileged=True)
        outbox.full = True
        await outbox.record([entry, entry])
        with pytest.raises(ServiceError, match="full"):
            await outbox.record([entry], privileged=True)
        assert (outbox.operations(), outbox.dropped) == (["task.assign"], 2)

    asyncio.run(story())
