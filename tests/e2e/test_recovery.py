"""What was acknowledged survives: services are killed with SIGKILL while they work, and come back with it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from muster.audit.v1 import audit_service_pb2 as audit_pb
from muster.audit.v1 import entry_pb2

from agent_client import Agent, Client, Delivery, Task
from agent_client.client import Collaboration
from agent_client.operations import operations
from agent_client.verify import LogVerification, VerifierKey, verify_checkpoint
from services.common.rpc.channel import make_channel
from tests.e2e.raw_calls import stub
from tests.harness.processes import ProcessCluster

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 45.0
NUMBERED = re.compile(r"(.*[./])([0-9]+)")
MESSAGES = 200
COLLABORATIONS = 12


class Worker:
    """An agent whose tasks wait for `gate` when they are of the type "held"; it counts what it does."""

    def __init__(self, cluster: ProcessCluster, name: str = "worker") -> None:
        cluster.issue_agent(name)
        self.agent = Agent(name, {"work": 1.0}, home=cluster.home, slots=COLLABORATIONS)
        self.agent.handler()(self.work)
        self.gate = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.held = 0

    async def work(self, task: Task) -> int:
        if task.type == "held":
            self.held += 1
            await self.gate.wait()
        self.done[f"{task.collaboration_id}/{task.id}"] += 1
        return len(task.inputs)


def chain(*types: str) -> dict[str, object]:
    """Return a collaboration whose tasks come one after the other."""
    tasks = [
        {
            "task_id": f"t{number}",
            "task_type": task_type,
            "required_skills": ["work"],
            "dependencies": [f"t{number - 1}"] if number else [],
            "estimated_duration": 0.05,
        }
        for number, task_type in enumerate(types)
    ]
    return {"tasks": tasks}


async def all_complete(collaborations: list[Collaboration]) -> None:
    """Every one has its result, and no task needed a second attempt."""
    for result in await asyncio.gather(*(one.result(PATIENCE_S) for one in collaborations)):
        assert {one.attempt_number for one in result.contributions} == {1}


async def test_messages_to_an_agent_that_is_away_survive_the_broker(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster:
        for name in ("sender", "receiver"):
            cluster.issue_agent(name)
        sender = Agent("sender", ["write"], home=cluster.home)
        receiver = Agent("receiver", ["read"], home=cluster.home)
        received: list[int] = []
        complete = asyncio.Event()

        @receiver.on_message()
        async def take(delivery: Delivery) -> None:
            received.append(delivery.payload)
            if len(received) == MESSAGES:
                complete.set()

        async with receiver:
            # Known from now on.
            await asyncio.wait_for(receiver.wait_ready(), PATIENCE_S)
        async with sender:
            for number in range(MESSAGES // 2):
                assert (await sender.send("receiver", number)).sequence_number == number + 1
            # Half is acknowledged when the broker dies, the other half is on its way.
            on_the_way = [sender.send("receiver", number) for number in range(MESSAGES // 2, MESSAGES)]
            await cluster.kill("broker-1")
            async with asyncio.timeout(PATIENCE_S):
                numbers = [(await one).sequence_number for one in on_the_way]
            assert numbers == list(range(MESSAGES // 2 + 1, MESSAGES + 1))
            # Nothing is on its way now: all of it is only in the broker.
            await cluster.kill("broker-1")
            async with receiver:
                await asyncio.wait_for(complete.wait(), PATIENCE_S)
        assert received == list(range(MESSAGES))


async def test_the_log_is_whole_after_audit_was_killed_while_entries_flow(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Client(home=cluster.home) as client:
        worker = Worker(cluster)
        async with worker.agent:
            collaborations = [await client.submit(chain("plain", "held", "plain"))]
            await collaborations[0].info()

            async def is_logged() -> object:
                return len(await logged(cluster)) > 5

            await eventually(is_logged, timeout=PATIENCE_S)
            before = await logged(cluster)
            flowing = asyncio.create_task(submit_all(client, chain("plain", "held", "plain")))
            await cluster.kill("audit-1")
            collaborations += await flowing
            worker.gate.set()
            await all_complete(collaborations)

        async def all_ends_are_logged() -> object:
            ended = {
                told.collaboration_id
                for one in await logged(cluster)
                for told in operations(one.entry)
                if told.operation.startswith("collaboration.complete")
            }
            return ended >= {one.id for one in collaborations}

        await eventually(all_ends_are_logged, timeout=PATIENCE_S)
        entries = await logged(cluster)
        # What was read before the crash stands where it stood.
        assert entries[: len(before)] == before
        spools: dict[str, list[int]] = defaultdict(list)
        for one in entries:
            # "<service>/<replica>/<spool>.<sequence>"; the log's own entries have no spool.
            spool, number = NUMBERED.fullmatch(one.entry.entry_id).groups()  # type: ignore[union-attr]
            spools[spool].append(int(number))
        # Of each spool nothing is missing, doubled or out of order.
        for spool, numbers in spools.items():
            assert numbers == list(range(1, len(numbers) + 1)), spool
        assert await verified_leaves(cluster, len(entries)) == [one.leaf for one in entries]


async def submit_all(client: Client, spec: dict[str, object]) -> list[Collaboration]:
    return [await client.submit(spec) for _ in range(COLLABORATIONS - 1)]


async def logged(cluster: ProcessCluster) -> list[entry_pb2.LoggedEntry]:
    """Return every entry that `Query` finds, in the order of the log."""
    channel = make_channel(cluster.addresses["audit-1"], cluster.tls("operator/admin"), "audit")
    try:
        found: list[entry_pb2.LoggedEntry] = []
        request = audit_pb.QueryRequest()
        request.page.page_size = 1_000
        while True:
            answer = await stub("audit", channel).Query(request)
            found += answer.entries
            request.page.page_token = answer.page.next_page_token
            if not request.page.page_token:
                return found
    finally:
        await channel.close(None)


async def verified_leaves(cluster: ProcessCluster, count: int) -> list[bytes]:
    """Check the whole log with the client's verifier; return its first `count` leaves."""
    channel = make_channel(cluster.addresses["audit-1"], cluster.tls("operator/admin"), "audit")
    try:
        calls = stub("audit", channel)
        head = await calls.GetCheckpoint(audit_pb.GetCheckpointRequest())
        checkpoint = verify_checkpoint(head.checkpoint, VerifierKey.parse(head.verifier_key))
        assert checkpoint.size >= count
        whole = LogVerification(checkpoint)
        leaves: list[bytes] = []
        for path in whole.wanted():
            tile = await calls.GetTile(audit_pb.GetTileRequest(path=path))
            leaves += whole.feed(path, tile.data)
        assert whole.finish().checkpoint == checkpoint
        return leaves[:count]
    finally:
        await channel.close(None)


async def test_collaborations_go_on_by_themselves_after_etcd_was_restarted(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Client(home=cluster.home) as client:
        worker = Worker(cluster)
        async with worker.agent:
            first = [await client.submit(chain("plain", "held", "plain")) for _ in range(COLLABORATIONS // 2)]

            def all_held() -> object:
                return worker.held == len(first)

            await eventually(all_held, timeout=PATIENCE_S)
            await cluster.take_down("etcd")
            # Results and a submission meet a store that is away; both wait for it.
            worker.gate.set()
            later = asyncio.create_task(client.submit(chain("plain", "plain")))
            await cluster.bring_up("etcd")
            await all_complete([*first, await later])
        assert set(worker.done.values()) == {1}
        assert sum(worker.done.values()) == 3 * len(first) + 2


async def test_nobody_notices_that_the_standby_was_killed(tmp_path: Path, eventually: Eventually) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Client(home=cluster.home) as client:
        worker = Worker(cluster)
        leader, epoch = await cluster.coordinator()
        standby = next(name for name in ("scheduler-1", "scheduler-2") if name != leader)
        async with worker.agent:
            collaboration = await client.submit(chain("plain", "held", "plain"))

            def held() -> object:
                return worker.held == 1

            await eventually(held, timeout=PATIENCE_S)
            await cluster.take_down(standby)
            # Also while it is away.
            other = await client.submit(chain("plain"))
            await all_complete([other])
            await cluster.bring_up(standby)
            worker.gate.set()
            await all_complete([collaboration])
        assert set(worker.done.values()) == {1}
        found = (await client.services()).coordinator
        assert (found.replica_id, found.epoch) == (leader, epoch)
