"""One replica's part, in this process: leading, standing by, being replaced unawares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from services.broker.app import BrokerApp
from services.broker.core.model import AgentProfile, Batch, Reach, Recovered
from services.broker.peers import AgentsView
from services.broker.stores.memory import MemoryStore
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.testing.election import MemoryBallot
from services.common.testing.outbox import MemoryOutbox
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope, error_of
from tests.integration.broker.conftest import AGENTS, House, KnownAgents


class SharedStore(MemoryStore):
    """What a Redis is to several replicas: the newest epoch that was loaded writes."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = 0
        self.is_away = False

    def of(self, epoch: int) -> FencedStore:
        """Return the store of one leadership."""
        return FencedStore(self, epoch)


class FencedStore(MemoryStore):
    """One leadership's view of a `SharedStore`."""

    def __init__(self, shared: SharedStore, epoch: int) -> None:
        super().__init__()
        self._shared, self._epoch = shared, epoch

    async def load(self, now: Instant) -> Recovered:
        self._check()
        self._shared.newest = self._epoch
        return await self._shared.load(now)

    async def commit(self, batch: Batch) -> None:
        self._check()
        await self._shared.commit(batch)

    def _check(self) -> None:
        if self._shared.is_away:
            raise ServiceError(Reason.STORE_UNAVAILABLE, "away")
        if self._epoch < self._shared.newest:
            raise ServiceError(Reason.NOT_COORDINATOR, "replaced")


class Row:
    """Replicas in one process, and the ballot at which they meet."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.certificates, self._folder = certificates, folder
        self.ballot, self.store, self.outbox = MemoryBallot(), SharedStore(), MemoryOutbox()
        self.apps: list[BrokerApp] = []
        # What each replica hears from its registry.
        self.registries: list[KnownAgents] = []
        self.clients: list[MailboxClient] = []

    async def add(self, **changes: object) -> BrokerApp:
        """Start one more."""
        config = House(self._folder, self.certificates).config(
            replica_id=f"broker-{len(self.apps) + 1}", **{"leader_wait_ms": 5_000} | changes
        )
        self.registries.append(KnownAgents())
        app = BrokerApp(
            config,
            self.store.of,
            self.outbox,
            election=self.ballot.candidate(),
            agents=self.registries[-1],
        )
        await app.start()
        self.apps.append(app)
        return app

    async def open(self, app: BrokerApp, principal: str, **hello: object) -> MailboxClient:
        """Open a stream at one replica."""
        client = await MailboxClient.open(app.address, self.certificates.tls(principal), **hello)  # type: ignore[arg-type]
        self.clients.append(client)
        return client


@pytest_asyncio.fixture
async def row(tmp_path: Path, certificates: Certificates) -> AsyncIterator[Row]:
    made = Row(tmp_path, certificates)
    yield made
    for client in made.clients:
        await client.close()
    for app in reversed(made.apps):
        await app.drain()


async def test_a_leader_that_does_not_know_it_was_replaced_promises_nothing(
    row: Row, eventually: Eventually
) -> None:
    """Its lease ended and nobody told it, as after a SIGSTOP: the store refuses what it has decided."""
    first = await row.add()
    await eventually(lambda: first.replica.leads)
    alpha = await row.open(first, "agent/alpha", send_only=True)
    await alpha.send(envelope("m-1", "beta"))
    second = await row.add()
    await eventually(lambda: len(row.ballot.epochs()) == 2)
    epoch = row.ballot.epochs()[0]
    await row.ballot.remove(epoch, told=False)
    await eventually(lambda: second.replica.leads)
    with pytest.raises(ServiceError) as refusal:
        await alpha.send(envelope("m-2", "beta"))
    assert refusal.value.reason is Reason.STORE_UNAVAILABLE
    assert not refusal.value.row.definite
    # It stands by from then on, and passes on who still comes to it.
    await eventually(lambda: not first.replica.leads)
    again = await row.open(first, "agent/alpha", send_only=True)
    outcomes = await again.send(envelope("m-1", "beta"), envelope("m-2", "beta"))
    assert [one.sequence_number for one in outcomes] == [1, 2]
    beta = await row.open(second, "agent/beta")
    assert [one.envelope.message_id for one in await beta.take(2)] == ["m-1", "m-2"]
    operations = [entry.operation for entry in row.outbox.entries]
    assert operations.count("leadership.win") == 2
    assert operations.count("leadership.lose") == 1


async def test_a_leader_that_lost_its_lease_hands_nothing_over(row: Row, eventually: Eventually) -> None:
    first = await row.add()
    await eventually(lambda: first.replica.leads)
    beta = await row.open(first, "agent/beta")
    (epoch,) = row.ballot.epochs()
    await row.ballot.remove(epoch)
    error = await beta.wait_end()
    assert error is not None
    assert error.reason is Reason.STORE_UNAVAILABLE
    # It campaigns again: there is nobody else.
    again = await row.open(first, "agent/beta")
    assert not again.ended


async def test_without_a_leader_calls_wait_and_then_are_refused(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_turn(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryBallot, "_wait_turn", wait_turn)
    app = await row.add(leader_wait_ms=200)
    with pytest.raises(ServiceError) as refusal:
        await row.open(app, "agent/alpha")
    assert refusal.value.reason is Reason.NOT_COORDINATOR
    assert refusal.value.retry_after_ms == 500


async def test_a_standby_that_leaves_sends_its_agents_away(row: Row, eventually: Eventually) -> None:
    first = await row.add()
    await eventually(lambda: first.replica.leads)
    second = await row.add()
    beta = await row.open(second, "agent/beta")
    row.apps.remove(second)
    await second.drain()
    error = await beta.wait_end()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    assert first.replica.leads


async def test_answers_and_refusals_come_through_a_standby_as_they_are(
    row: Row, eventually: Eventually, certificates: Certificates
) -> None:
    first, second = await row.add(), await row.add()
    await eventually(lambda: first.replica.leads)
    channel = make_channel(second.address, certificates.tls("agent/beta"), "broker")
    stub = BrokerServiceStub(channel)
    await stub.Subscribe(pb.SubscribeRequest(pattern="roads.*"))
    listed = await stub.ListSubscriptions(pb.ListSubscriptionsRequest())
    assert list(listed.patterns) == ["roads.*"]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.Subscribe(pb.SubscribeRequest(pattern="roads..closed"))
    error = from_rpc_error(refusal.value)
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_FIELD, "pattern")
    # Bytes that are no frame end the stream at the replica that they came to, and its part at the leader.
    raw: Any = channel.stream_stream(
        "/muster.broker.v1.BrokerService/Mailbox", request_serializer=None, response_deserializer=None
    )
    call = raw()
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as hostile:
        await call.read()
    assert from_rpc_error(hostile.value).reason is Reason.MALFORMED_FRAME
    await channel.close(None)
    assert [link.streams for link in second._relay._links] == [0]
    # Which of them serves is a metric.
    assert [next(iter(app._own_metrics.leads.collect())).samples[0].value for app in row.apps] == [1, 0]


async def test_leaving_does_not_wait_for_a_store_that_is_away(
    row: Row, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.broker.app.SETTLE_S_MAX", 0.1)
    app = await row.add()
    await eventually(lambda: app.replica.leads)
    alpha = await row.open(app, "agent/alpha", send_only=True)
    row.store.is_away = True
    with pytest.raises(ServiceError) as away:
        await alpha.send(envelope("m-1", "beta"))
    assert away.value.reason is Reason.STORE_UNAVAILABLE
    row.apps.remove(app)
    await asyncio.wait_for(app.drain(), 60)
    assert row.ballot.leader is None


async def test_many_streams_share_connections_between_replicas(
    row: Row, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes so many streams on one connection: beyond them another one is made."""
    monkeypatch.setattr("services.broker.relay.STREAMS_PER_LINK", 2)
    first, second = await row.add(), await row.add()
    await eventually(lambda: first.replica.leads)
    clients = [await row.open(second, "agent/beta", instance_id=str(number)) for number in range(5)]
    assert len(second._relay._links) == 3
    alpha = await row.open(second, "agent/alpha", send_only=True)
    for number in range(5):
        await alpha.send(envelope(f"m-{number}", "beta"))
    arrived: Callable[[], int] = lambda: sum(len(client.deliveries) for client in clients)  # noqa: E731
    await eventually(lambda: arrived() >= 1)


async def test_that_there_are_no_agents_is_news_for_a_leader_too(row: Row, eventually: Eventually) -> None:
    """Its senders are told that nobody has a skill, not that they should try again."""
    first, second = await row.add(), await row.add()
    await eventually(lambda: first.replica.leads)
    heard = row.registries[1].news
    heard.put_nowait(AgentsView(frozenset(), complete=True))
    await eventually(heard.empty)
    await first.drain()
    row.apps.remove(first)
    await eventually(lambda: second.replica.leads)
    sender = await row.open(second, "operator/admin", send_only=True, features=["routes"])
    (nobody,) = await sender.send(envelope("m-1", "skill/plans"))
    assert error_of(nobody).reason is Reason.RECEIVER_NOT_FOUND


async def test_what_comes_while_a_leadership_begins_is_not_missed(
    row: Row, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, may_go_on = asyncio.Event(), asyncio.Event()
    record = row.outbox.record

    async def slowly(entries: Sequence[EntryDraft], **how: bool) -> None:
        if any(entry.operation == "leadership.win" for entry in entries):
            begins.set()
            await may_go_on.wait()
        await record(entries, **how)

    monkeypatch.setattr(row.outbox, "record", slowly)
    app = await row.add()
    await begins.wait()
    heard = row.registries[0].news
    plans = {"beta": AgentProfile(frozenset({"plans"}), Reach.READY, 4, 0)}
    heard.put_nowait(AgentsView(frozenset({"beta"}), complete=False, profiles=plans))
    await eventually(heard.empty)
    may_go_on.set()
    await eventually(lambda: app.replica.leads)
    sender = await row.open(app, "agent/alpha", send_only=True, features=["routes"])
    (outcome,) = await sender.send(envelope("m-1", "skill/plans"))
    assert outcome.receiver_id == "beta"


async def test_a_skill_is_chosen_by_whoever_leads_and_the_choice_outlives_it(
    row: Row, eventually: Eventually
) -> None:
    first, second = await row.add(), await row.add()
    await eventually(lambda: first.replica.leads)
    for registry, name in zip(row.registries, ("beta", "gamma"), strict=True):
        # What the two have heard differs: a repeat must not be chosen for anew.
        plans = {name: AgentProfile(frozenset({"plans"}), Reach.READY, 4, 0)}
        registry.news.put_nowait(AgentsView(AGENTS, complete=True, profiles=plans))
    told: dict[str, pb.SendOutcome] = {}

    async def accepted(message_id: str) -> bool:
        """Until whoever leads has heard from its registry, nobody is known to have the skill."""
        alpha = await row.open(second, "agent/alpha", send_only=True, features=["routes"])
        (told[message_id],) = await alpha.send(envelope(message_id, "skill/plans"))
        return not told[message_id].HasField("error")

    await eventually(lambda: accepted("s-1"))
    outcome = told["s-1"]
    assert (outcome.receiver_id, outcome.receiver_count, outcome.sequence_number) == ("beta", 1, 1)
    await first.drain()
    row.apps.remove(first)
    await eventually(lambda: second.replica.leads)
    await eventually(lambda: accepted("s-2"))
    assert (told["s-2"].receiver_id, told["s-2"].sequence_number) == ("gamma", 1)
    assert await accepted("s-1")
    assert (told["s-1"].receiver_id, told["s-1"].sequence_number) == ("beta", 1)
