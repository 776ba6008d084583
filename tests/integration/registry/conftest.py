"""Real registries on real sockets and a real etcd, in this process or in one of their own, and agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as pb
from muster.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.common.clock import SystemClock
from services.common.core.errors import ServiceError
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.local.child import Child
from services.local.config_files import write_toml
from services.local.part import serves, service_command
from services.registry.app import RegistryApp
from services.registry.config import RegistryConfig
from tests.conftest import Certificates
from tests.harness.etcd import EtcdHarness

PATIENCE_S = 20.0
READY = agent_pb2.AGENT_STATE_READY
JOINING = agent_pb2.AGENT_STATE_JOINING
SUSPECT = agent_pb2.AGENT_STATE_SUSPECT
LOST = agent_pb2.AGENT_STATE_LOST
OFFLINE = agent_pb2.AGENT_STATE_OFFLINE
DRAINING = agent_pb2.AGENT_STATE_DRAINING
# Short, so that tests about silence do not take long; long enough for a busy machine.
QUICK: dict[str, Any] = {
    "lease_ttl_ms": 3_000,
    "suspect_after_ms": 1_500,
    "heartbeat_interval_ms": 300,
    "presence_ttl_s": 2,
}


def working(*, slots: int = 2, used: int = 0) -> agent_pb2.AgentLoad:
    """A report of an agent that work reaches."""
    load = agent_pb2.AgentLoad(slots=slots, slots_used=used, work_stream_open=True)
    now = SystemClock().now()
    load.last_probe_time.CopyFrom(Timestamp(seconds=now // 1_000, nanos=now % 1_000 * 1_000_000))
    return load


class Session:
    """One Session stream, frame by frame."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        open_stream: Any = pb_grpc.RegistryServiceStub(channel).Session
        self.call: Any = open_stream()
        self.sent = 0

    async def open(self, **fields: Any) -> pb.SessionWelcome:
        hello: dict[str, Any] = {
            "versions": [1],
            "skills": [agent_pb2.Skill(name="maps", level=0.5)],
        } | fields
        await self.send(hello=pb.SessionHello(**hello))
        return (await self.read()).welcome

    async def beat(self, load: agent_pb2.AgentLoad | None = None) -> pb.HeartbeatAck:
        self.sent += 1
        await self.send(heartbeat=pb.Heartbeat(sequence_number=self.sent, load=load or working()))
        return (await self.read()).heartbeat_ack

    async def drain(self) -> None:
        await self.send(drain=pb.SessionDrain())

    async def farewell(self) -> None:
        """Leave and wait until the registry has closed the stream."""
        await self.send(farewell=pb.SessionFarewell())
        await self.call.done_writing()
        assert await self.error() is None

    async def send(self, **frame: Any) -> None:
        try:
            await self.call.write(pb.SessionRequest(**frame))
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            # The stream has ended; reading says why.
            return
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def read(self) -> pb.SessionResponse:
        try:
            async with asyncio.timeout(PATIENCE_S):
                frame = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if frame is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise EOFError("the registry closed the stream")
        response: pb.SessionResponse = frame
        return response

    async def error(self) -> ServiceError | None:
        """Read to the end and return why it ended; None when cleanly."""
        try:
            while True:
                await self.read()
        except EOFError:
            return None
        except ServiceError as error:
            return error

    def cut(self) -> None:
        """End the stream without a word."""
        self.call.cancel()


class Tireless:
    """An agent as the client library keeps it: beats, and resumes for ever when its stream ends."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], **hello: Any) -> None:
        self.welcomes: list[pb.SessionWelcome] = []
        self.acked = 0
        self.errors: list[ServiceError] = []
        self._connect, self._hello = connect, hello
        self._running = asyncio.create_task(self._run(), name="tireless-agent")

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        channel = self._connect()
        while True:
            session = Session(channel)
            try:
                resume = self.welcomes[-1].session_id if self.welcomes else ""
                welcome = await session.open(resume_session_id=resume, load=working(), **self._hello)
                self.welcomes.append(welcome)
                while True:
                    await session.beat()
                    self.acked += 1
                    await asyncio.sleep(0.2)  # sleeps: an agent's heartbeat interval
            except (ServiceError, EOFError) as error:
                if isinstance(error, ServiceError):
                    self.errors.append(error)
                await asyncio.sleep(0.1)  # sleeps: an agent's pause before it connects again
            finally:
                session.cut()


@dataclass
class Plane:
    """Certificates and an etcd, and registries on them."""

    certificates: Certificates
    etcd: EtcdHarness
    prefix: str
    folder: Path
    _apps: list[RegistryApp] = field(default_factory=list)
    _children: list[Child] = field(default_factory=list)
    _channels: list[grpc.aio.Channel] = field(default_factory=list)
    _agents: list[Tireless] = field(default_factory=list)

    def settings(self, replica_id: str, **knobs: Any) -> dict[str, Any]:
        certificate, key = self.certificates.issue("service/registry")
        tls = self.etcd.tls
        return {
            "replica_id": replica_id,
            "listen": "127.0.0.1:0",
            "ca": self.certificates.ca_path,
            "certificate": certificate,
            "key": key,
            "etcd_endpoints": self.etcd.endpoints,
            "etcd_ca": tls.ca,
            "etcd_certificate": tls.certificate,
            "etcd_key": tls.key,
            "etcd_server_name": tls.server_name,
            "key_prefix": self.prefix,
            "data_directory": self.folder / replica_id,
            "log_level": "DEBUG",
        } | knobs

    async def start(self, replica_id: str = "registry-0", **knobs: Any) -> RegistryApp:
        """Start a registry in this process."""
        app = RegistryApp(RegistryConfig(**self.settings(replica_id, **knobs)))
        self._apps.append(app)
        async with asyncio.timeout(PATIENCE_S):
            await app.start()
        return app

    async def stop(self, app: RegistryApp) -> None:
        self._apps.remove(app)
        await app.drain()

    async def spawn(self, address: str, replica_id: str = "registry-0", **knobs: Any) -> Child:
        """Start a registry in a process of its own and wait until it serves."""
        config = self.folder / f"{replica_id}.toml"
        write_toml(config, self.settings(replica_id, **(knobs | {"listen": address})), "For a test.")
        command = service_command("registry", config)
        child = Child(replica_id, command, log_path=self.folder / f"{replica_id}.log")
        self._children.append(child)
        channel = self.channel(address, "operator/admin")
        async with asyncio.timeout(PATIENCE_S):
            while not await serves(channel):
                assert child.exit_code is None, child.story()
                await asyncio.sleep(0.05)  # sleeps: between two health checks
        return child

    def channel(self, address: str, principal: str) -> grpc.aio.Channel:
        channel = make_channel(address, self.certificates.tls(principal), "registry")
        self._channels.append(channel)
        return channel

    def session(self, address: str, agent: str = "a-agent") -> Session:
        return Session(self.channel(address, f"agent/{agent}"))

    def stub(self, address: str, principal: str = "operator/admin") -> Any:
        return pb_grpc.RegistryServiceStub(self.channel(address, principal))

    def tireless(self, address: str, agent: str = "a-agent", **hello: Any) -> Tireless:
        made = Tireless(lambda: self.channel(address, f"agent/{agent}"), **hello)
        self._agents.append(made)
        return made

    async def close(self) -> None:
        for agent in self._agents:
            await agent.stop()
        for channel in self._channels:
            await channel.close(None)
        for app in self._apps:
            await app.drain()
        for child in self._children:
            child.kill()


async def state_of(stub: Any, agent_id: str = "a-agent") -> int:
    """Return an agent's state."""
    return int((await agent_of(stub, agent_id)).state)


async def agent_of(stub: Any, agent_id: str = "a-agent") -> agent_pb2.Agent:
    """Return what the registry says of an agent; raises ServiceError."""
    try:
        agent: agent_pb2.Agent = (await stub.GetAgent(pb.GetAgentRequest(agent_id=agent_id))).agent
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return agent


@contextlib.contextmanager
def refused() -> Iterator[list[ServiceError]]:
    """Expect a call to be refused; the error is in the list afterwards."""
    caught: list[ServiceError] = []
    try:
        yield caught
    except grpc.aio.AioRpcError as error:
        caught.append(from_rpc_error(error))
    except ServiceError as error:
        caught.append(error)
    else:
        pytest.fail("it was not refused")


@pytest_asyncio.fixture
async def plane(
    certificates: Certificates, etcd: EtcdHarness, etcd_prefix: str, tmp_path: Path
) -> AsyncIterator[Plane]:
    made = Plane(certificates, etcd, etcd_prefix, tmp_path)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def own_plane(
    certificates: Certificates, own_etcd: EtcdHarness, etcd_prefix: str, tmp_path: Path
) -> AsyncIterator[Plane]:
    """A plane whose etcd may be hurt."""
    made = Plane(certificates, own_etcd, etcd_prefix, tmp_path)
    yield made
    await made.close()


Eventually = Callable[..., Awaitable[None]]
