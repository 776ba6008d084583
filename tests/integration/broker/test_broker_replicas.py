"""Two broker processes on one Redis and one etcd: any agent at any of them, and each of the parts dies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from services.broker.caller import ON_BEHALF_OF
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.ops import Get
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from tests.conftest import Certificates, Eventually
from tests.harness.etcd import EtcdHarness
from tests.harness.redis import RedisServer
from tests.integration.broker.broker_client import MailboxClient, envelope
from tests.integration.broker.broker_load import AWAY, break_under_load
from tests.integration.broker.broker_process import BrokerProcess

Wait = Callable[[], Coroutine[None, None, None]]

KILLS = 4
NIGHTLY_KILLS = 50
# How long a leader may be silent, in seconds: as by default, so that a busy machine does not unseat one.
TTL_S = 3


class Fleet:
    """Two replicas, their Redis, their election."""

    def __init__(
        self, replicas: list[BrokerProcess], redis: RedisServer, etcd: EtcdClient, prefix: str
    ) -> None:
        self.replicas, self.redis, self._etcd = replicas, redis, etcd
        self._election = f"{prefix}/election/broker/muster/"

    @property
    def addresses(self) -> str:
        """All of them, for `broker_load`."""
        return ",".join(one.address for one in self.replicas)

    async def leader(self) -> BrokerProcess | None:
        """Return who leads, or led until its lease ends."""
        rows = await self._etcd.read(Get(self._election, prefix=True, limit=1, order="oldest"))
        if rows.first is None:
            return None
        address = json.loads(rows.first.value)["address"]
        return next(one for one in self.replicas if one.address == address)

    async def roles(self) -> tuple[BrokerProcess, BrokerProcess]:
        """Return (leader, standby); there must be a leader."""
        leader = await self.leader()
        assert leader is not None
        (standby,) = [one for one in self.replicas if one is not leader]
        return leader, standby


@pytest_asyncio.fixture
async def ttl_s() -> int:
    """How long a leader may be silent; a test may have its own."""
    return TTL_S


@pytest_asyncio.fixture
async def fleet(
    tmp_path: Path,
    certificates: Certificates,
    free_port: Callable[[], int],
    etcd: EtcdHarness,
    etcd_prefix: str,
    own_redis: RedisServer,
    ttl_s: int,
) -> AsyncIterator[Fleet]:
    """Two replicas that run, one of which leads."""
    replicas = [
        BrokerProcess(
            certificates,
            tmp_path / name,
            free_port(),
            replica_id=name,
            audit_messages="none",
            store="redis",
            redis_address=own_redis.address,
            election_ttl_s=ttl_s,
            key_prefix=etcd_prefix,
            etcd_endpoints=list(etcd.endpoints),
            etcd_ca=str(etcd.tls.ca),
            etcd_certificate=str(etcd.tls.certificate),
            etcd_key=str(etcd.tls.key),
        )
        for name in ("broker-1", "broker-2")
    ]
    async with etcd.client() as client:
        made = Fleet(replicas, own_redis, client, etcd_prefix)
        for one in replicas:
            one.start()
        yield made
        for one in replicas:
            if one.process is not None:
                one.kill()


@pytest.fixture
def served(fleet: Fleet, certificates: Certificates, eventually: Eventually) -> Wait:
    """Return a function that waits until every replica serves."""

    async def serves(replica: BrokerProcess) -> bool:
        with contextlib.suppress(*AWAY):
            client = await MailboxClient.open(
                replica.address, certificates.tls("agent/gamma"), send_only=True
            )
            await client.close()
            return True
        return False

    async def wait() -> None:
        for one in fleet.replicas:
            await eventually(lambda one=one: serves(one), timeout=60)

    return wait


async def test_agents_meet_whatever_replica_they_are_at(
    fleet: Fleet, certificates: Certificates, served: Wait
) -> None:
    await served()
    leader, standby = await fleet.roles()
    beta = await MailboxClient.open(leader.address, certificates.tls("agent/beta"))
    alpha = await MailboxClient.open(standby.address, certificates.tls("agent/alpha"))
    (outcome,) = await alpha.send(envelope("m-1", "beta"))
    assert outcome.sequence_number == 1
    (delivery,) = await beta.take(1)
    # The replica between them has said who it was, from the certificate.
    assert delivery.envelope.sender_id == "alpha"
    await beta.ack([delivery])
    await beta.send(envelope("m-2", "alpha"))
    (delivery,) = await alpha.take(1)
    await alpha.ack([delivery])
    await alpha.send(envelope("m-3", "beta"))
    for replica in fleet.replicas:
        operator = make_channel(replica.address, certificates.tls("operator/admin"), "broker")
        found = await BrokerServiceStub(operator).GetMailbox(pb.GetMailboxRequest(agent_id="beta"))
        assert sum(lane.waiting_count + lane.outstanding_count for lane in found.lanes) == 1
        await operator.close(None)
    await alpha.close()
    await beta.close()


async def test_only_a_replica_may_speak_for_others(
    fleet: Fleet, certificates: Certificates, served: Wait
) -> None:
    await served()
    for replica in fleet.replicas:
        for principal, said in (
            ("service/broker", ""),
            ("service/broker", "service/registry"),
            ("service/registry", "agent/alpha"),
            # An agent stays who it is, whatever it says: beta's mailbox is not opened to gamma.
            ("agent/gamma", "agent/beta"),
        ):
            channel = make_channel(replica.address, certificates.tls(principal), "broker")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await BrokerServiceStub(channel).GetMailbox(
                    pb.GetMailboxRequest(agent_id="beta"), metadata=((ON_BEHALF_OF, said),) if said else ()
                )
            await channel.close(None)
            assert from_rpc_error(refusal.value).reason is Reason.ACCESS_DENIED


async def test_a_receiver_resumes_what_it_holds_at_another_replica(
    fleet: Fleet, certificates: Certificates, served: Wait
) -> None:
    await served()
    leader, standby = await fleet.roles()
    tls = certificates.tls("agent/beta")
    beta = await MailboxClient.open(standby.address, tls)
    alpha = await MailboxClient.open(leader.address, certificates.tls("agent/alpha"), send_only=True)
    await alpha.send(envelope("m-1", "beta"), envelope("m-2", "beta"))
    first, second = await beta.take(2)
    standby.kill()
    await beta.wait_end()
    await beta.close()
    again = await MailboxClient.open(leader.address, tls, resume_ack_token=second.ack_token)
    await again.ack([first, second])
    assert set(again.settled) == {first.ack_token, second.ack_token}
    assert again.deliveries == []
    await again.close()
    await alpha.close()


async def test_subscriptions_and_topics_are_those_of_all_replicas(
    fleet: Fleet, certificates: Certificates, served: Wait, eventually: Eventually
) -> None:
    await served()
    leader, standby = await fleet.roles()
    subscribers = [
        await MailboxClient.open(one.address, certificates.tls(f"agent/{name}"))
        for name, one in (("beta", standby), ("gamma", leader))
    ]
    for one in subscribers:
        await one.stub.Subscribe(pb.SubscribeRequest(pattern="roads.*"))
    alpha = await MailboxClient.open(
        leader.address, certificates.tls("agent/alpha"), send_only=True, features=["routes"]
    )
    (outcome,) = await alpha.send(envelope("t-1", "topic/roads.closed"))
    assert outcome.receiver_count == 2
    for one in subscribers:
        (delivery,) = await one.take(1)
        await one.ack([delivery])
    leader.kill()
    for one in (alpha, *subscribers):
        await one.wait_end()
        await one.close()
    # At the other one, once it leads, everybody finds what was subscribed, and what a repeat is answered.
    opened: list[MailboxClient] = []

    async def welcomed() -> bool:
        with contextlib.suppress(*AWAY):
            tls = certificates.tls("agent/alpha")
            opened.append(await MailboxClient.open(standby.address, tls, send_only=True, features=["routes"]))
            return True
        return False

    await eventually(welcomed, timeout=60)
    alpha = opened.pop()
    again, fresh = await alpha.send(
        envelope("t-1", "topic/roads.closed"), envelope("t-2", "topic/roads.open", requires_receiver=True)
    )
    assert (again.receiver_count, fresh.receiver_count) == (2, 2)
    # Nobody is left who could remember, but for Redis' file.
    standby.kill()
    await alpha.close()
    fleet.redis.kill()
    fleet.redis.start()
    for replica in (leader, standby):
        replica.start()
    await served()
    for name, replica in (("beta", leader), ("gamma", standby)):
        client = await MailboxClient.open(replica.address, certificates.tls(f"agent/{name}"))
        (delivery,) = await client.take(1)
        assert (delivery.envelope.message_id, delivery.envelope.sequence_number) == ("t-2", 2)
        found = await client.stub.ListSubscriptions(pb.ListSubscriptionsRequest())
        assert list(found.patterns) == ["roads.*"]
        await client.stub.Unsubscribe(pb.UnsubscribeRequest(pattern="roads.*"))
        await client.close()
    await eventually(welcomed, timeout=60)
    alpha = opened.pop()
    again, nobody = await alpha.send(
        envelope("t-1", "topic/roads.closed"), envelope("t-3", "topic/roads.open")
    )
    assert (again.receiver_count, nobody.receiver_count) == (2, 0)
    await alpha.close()


async def _course_with(
    fleet: Fleet,
    certificates: Certificates,
    eventually: Eventually,
    breaks: int,
    harm: Callable[[int], Awaitable[None]],
) -> None:
    def story() -> str:
        return "\n".join(one.log_path.read_text()[-4_000:] for one in fleet.replicas)

    await break_under_load(fleet.addresses, certificates, eventually, breaks, harm, story)


async def _kill_replicas(
    fleet: Fleet, certificates: Certificates, eventually: Eventually, kills: int
) -> None:
    leaders = set()

    async def harm(number: int) -> None:
        leader, standby = await fleet.roles()
        leaders.add(leader.address)
        # Mostly the leader; a standby takes the streams that run through it with it.
        victim = standby if number % 3 == 2 else leader
        victim.kill()
        victim.start()

    await _course_with(fleet, certificates, eventually, kills, harm)
    assert len(leaders) == 2


async def test_a_replica_is_killed_under_load(
    fleet: Fleet, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_replicas(fleet, certificates, eventually, KILLS)


@pytest.mark.nightly
async def test_replicas_are_killed_very_often_under_load(
    fleet: Fleet, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_replicas(fleet, certificates, eventually, NIGHTLY_KILLS)


async def _kill_redis(fleet: Fleet, certificates: Certificates, eventually: Eventually, kills: int) -> None:
    async def harm(_: int) -> None:
        fleet.redis.kill()
        fleet.redis.start()

    await _course_with(fleet, certificates, eventually, kills, harm)


async def test_redis_is_killed_under_load(
    fleet: Fleet, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_redis(fleet, certificates, eventually, 3)


@pytest.mark.nightly
async def test_redis_is_killed_very_often_under_load(
    fleet: Fleet, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_redis(fleet, certificates, eventually, NIGHTLY_KILLS)


async def test_a_leader_that_was_stopped_wakes_and_harms_nothing(
    fleet: Fleet, certificates: Certificates, eventually: Eventually
) -> None:
    """Past its lease another one leads; what the sleeper finds to write when it wakes is refused."""

    async def harm(_: int) -> None:
        leader, standby = await fleet.roles()
        leader.pause()

        async def others_lead() -> bool:
            return await fleet.leader() is standby

        await eventually(others_lead, timeout=60)
        leader.resume()

    await _course_with(fleet, certificates, eventually, 2, harm)


class TestLeavingWell:
    """With a time to live that no test waits for."""

    @pytest_asyncio.fixture
    async def ttl_s(self) -> int:
        return 600

    async def test_a_leader_that_leaves_hands_over_at_once(
        self,
        fleet: Fleet,
        certificates: Certificates,
        served: Wait,
        eventually: Eventually,
    ) -> None:
        await served()
        leader, standby = await fleet.roles()
        beta = await MailboxClient.open(standby.address, certificates.tls("agent/beta"))
        alpha = await MailboxClient.open(leader.address, certificates.tls("agent/alpha"), send_only=True)
        await alpha.send(envelope("m-1", "beta"))
        assert leader.stop() == 0
        error = await alpha.wait_end()
        assert error is not None
        assert error.reason is Reason.SHUTTING_DOWN
        assert isinstance(await beta.wait_end(), ServiceError)
        for client in (alpha, beta):
            await client.close()
        again = await MailboxClient.open(standby.address, certificates.tls("agent/beta"))
        (delivery,) = await again.take(1)
        assert delivery.envelope.message_id == "m-1"
        await again.close()
