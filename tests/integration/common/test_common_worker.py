"""The thread for what blocks: order, errors, and what follows the work before anybody hears of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from services.common.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test-worker")
    yield made
    made.close()


async def test_work_is_done_in_order_on_one_other_thread(worker: Worker) -> None:
    seen: list[tuple[int, int]] = []

    def work(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    futures = [worker.run(partial(work, number)) for number in range(50)]
    assert await asyncio.gather(*futures) == list(range(50))
    assert [number for number, _ in seen] == list(range(50))
    assert {thread for _, thread in seen} == {seen[0][1]} != {threading.get_ident()}


async def test_errors_are_the_callers_and_the_thread_goes_on(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)

    def spoil(result: int) -> int:
        raise ValueError(result)

    with pytest.raises(ValueError, match="7"):
        await worker.run_then(lambda: 7, spoil)
    assert await worker.run(lambda: 8) == 8


async def test_what_follows_runs_on_the_loop_also_when_the_caller_has_gone(worker: Worker) -> None:
    followed: list[tuple[int, int]] = []
    may_end, over = threading.Event(), asyncio.Event()

    def then(result: int) -> int:
        followed.append((result, threading.get_ident()))
        over.set()
        return result + 1

    assert await worker.run_then(lambda: 1, then) == 2
    over.clear()
    gone = worker.run_then(lambda: int(may_end.wait(10)) + 1, then)
    gone.cancel()
    may_end.set()
    await asyncio.wait_for(over.wait(), 10)
    assert followed == [(1, threading.get_ident()), (2, threading.get_ident())]


async def test_closing_finishes_what_was_handed_over(worker: Worker) -> None:
    last = worker.run(lambda: "done")
    worker.close()
    worker.close()
    assert await last == "done"
    with pytest.raises(RuntimeError, match="closed"):
        worker.run(lambda: None)
