"""Real scheduler replicas over mTLS sockets and a real etcd; registry and agents are played by the tests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from muster.registry.v1 import agent_pb2 as agent_pb
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.registry.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1 import task_pb2 as task_pb
from muster.scheduler.v1 import work_pb2 as work_pb
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from services.common import logs
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.registration import service_key
from services.common.metrics import Metrics
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer
from services.common.rpc.status import from_rpc_error, from_status
from services.scheduler.app import SchedulerApp, build
from services.scheduler.config import SchedulerConfig
from tests.conftest import Certificates
from tests.harness.etcd import EtcdHarness

REGISTRY = "muster.registry.v1.RegistryService"


class PlayedRegistry(RegistryServiceServicer):
    """A registry that says what a test lets it say."""

    def __init__(self) -> None:
        self._agents: dict[str, agent_pb.Agent] = {}
        self._watchers: list[asyncio.Queue[agent_pb.Agent]] = []

    def tell(
        self,
        name: str,
        *skills: str,
        incarnation: int = 1,
        state: agent_pb.AgentState.ValueType = agent_pb.AGENT_STATE_JOINING,
    ) -> None:
        """Say that an agent exists."""
        rows = [agent_pb.Skill(name=skill) for skill in skills]
        instance = agent_pb.AgentInstance(
            agent_id=name, instance_id="0", incarnation=incarnation, state=state, skills=rows
        )
        agent = agent_pb.Agent(agent_id=name, skills=rows, instances=[instance])
        self._agents[name] = agent
        for watcher in self._watchers:
            watcher.put_nowait(agent)

    async def WatchAgents(
        self, request: registry_pb.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[registry_pb.WatchAgentsResponse]:
        queue: asyncio.Queue[agent_pb.Agent] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            yield registry_pb.WatchAgentsResponse(agents=self._agents.values(), snapshot_complete=True)
            while True:
                yield registry_pb.WatchAgentsResponse(agents=[await queue.get()])
        finally:
            self._watchers.remove(queue)


class Plane:
    """Replicas by name, one registry, one etcd prefix."""

    def __init__(
        self, certificates: Certificates, etcd: EtcdHarness, prefix: str, folder: Path, **settings: Any
    ) -> None:
        self.certificates, self.etcd, self.prefix, self.folder = certificates, etcd, prefix, folder
        self.settings: dict[str, Any] = {
            "election_ttl_s": 2,
            "reconnect_grace_ms": 400,
            "takeover_grace_ms": 1_500,
            "registry_wait_ms": 1_000,
            **settings,
        }
        self.registry = PlayedRegistry()  # type: ignore[abstract]  # nothing else is asked of it
        self.client: EtcdClient = etcd.client()
        self.apps: dict[str, SchedulerApp] = {}
        self._registry_server = GrpcServer(
            certificates.tls("service/registry"),
            "127.0.0.1:0",
            _everyone(REGISTRY),
            Metrics("registry"),
            logs.get("played-registry"),
        )
        self._channels: list[grpc.aio.Channel] = []
        self._agents: list[Agent] = []

    async def start(self, *names: str) -> None:
        self._registry_server.add(add_RegistryServiceServicer_to_server, self.registry, REGISTRY)
        address = await self._registry_server.start()
        entry = registry_pb.ServiceReplica(service="registry", replica_id="played", address=address)
        await self.client.put(service_key(self.prefix, "registry", "played"), entry.SerializeToString())
        for name in names:
            await self.start_replica(name)

    async def start_replica(self, name: str, **settings: Any) -> SchedulerApp:
        certificate, key = self.certificates.issue("service/scheduler")
        config = SchedulerConfig(
            replica_id=name,
            listen="127.0.0.1:0",
            ca=self.certificates.ca_path,
            certificate=certificate,
            key=key,
            etcd_endpoints=self.etcd.endpoints,
            etcd_ca=self.etcd.tls.ca,
            etcd_certificate=self.etcd.tls.certificate,
            etcd_key=self.etcd.tls.key,
            key_prefix=self.prefix,
            data_directory=self.folder / name,
            **{**self.settings, **settings},
        )
        app = await build(replace(config))
        self.apps[name] = app
        await app.start()
        return app

    async def stop_replica(self, name: str) -> None:
        await self.apps.pop(name).drain()

    async def stop(self) -> None:
        for agent in self._agents:
            await agent.close()
        for channel in self._channels:
            await channel.close(None)
        for name in [*self.apps]:
            await self.stop_replica(name)
        await self._registry_server.drain(100)
        await self.client.close()

    # Who is asked.

    async def leader(self) -> str:
        """Return the name of the replica that leads and serves, waiting for one."""
        async with asyncio.timeout(20):
            while True:
                for name, app in self.apps.items():
                    if app.replica.leads:
                        return name
                await asyncio.sleep(0.01)  # sleeps: between two looks at the replicas

    async def stub(self, principal: str = "operator/admin", replica: str = "") -> Any:
        """Return a stub of the leader, or of a replica by name."""
        app = self.apps[replica or await self.leader()]
        channel = make_channel(app.address, self.certificates.tls(principal), "scheduler")
        self._channels.append(channel)
        return SchedulerServiceStub(channel)

    async def agent(self, name: str, *skills: str, slots: int = 1, **more: Any) -> Agent:
        """Return an agent that is known, linked to the leader, and free."""
        self.registry.tell(name, *(skills or ("work",)), incarnation=more.get("incarnation", 1))
        agent = Agent(name)
        self._agents.append(agent)
        await agent.link(await self.stub(f"agent/{name}"), slots=slots, **more)
        return agent


class Agent:
    """One Work stream, frame by frame; what came is kept by kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.call: Any = None
        self.frames: list[work_pb.WorkResponse] = []
        self.error: ServiceError | None = None
        self.answer_probes = True
        self._came = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def link(
        self,
        stub: Any,
        *,
        slots: int = 1,
        incarnation: int = 1,
        held: Iterable[work_pb.AttemptRef] = (),
        held_locks: Iterable[work_pb.HeldLock] = (),
        hello: work_pb.WorkRequest | None = None,
    ) -> None:
        await self.close()
        self.frames.clear()
        self.error = None
        self.call = stub.Work()
        first = hello or work_pb.WorkRequest(
            hello=work_pb.WorkHello(
                versions=[1], instance_id="0", incarnation=incarnation, held=held, held_locks=held_locks
            )
        )
        await self.call.write(first)
        if slots:
            await self.call.write(work_pb.WorkRequest(credits=slots))
        self._reading = asyncio.create_task(self._read(self.call))

    async def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        self.call = self._reading = None

    async def say(self, **fields: Any) -> None:
        await self.call.write(work_pb.WorkRequest(**fields))

    async def finish(self, assignment: work_pb.Assignment, data: bytes = b"done", slots: int = 1) -> None:
        result = work_pb.AttemptResult(attempt=assignment.attempt)
        result.result.data = data
        await self.say(results=[result], credits=slots)

    async def assignment(self, task_id: str, number: int = 0) -> work_pb.Assignment:
        """Wait for the assignment of a task (of its attempt `number`) and return it."""

        def find() -> work_pb.Assignment | None:
            assignments: list[work_pb.Assignment] = self.all("assignments")
            for assignment in assignments:
                ref = assignment.attempt
                if ref.task_id == task_id and number in (0, ref.token.number):
                    return assignment
            return None

        found: work_pb.Assignment = await self.wait(find)
        return found

    async def ack(self, ref: work_pb.AttemptRef) -> ServiceError | None:
        """Wait for the newest ack of an attempt and return its error."""

        def find() -> work_pb.ResultAck | None:
            acks = [ack for ack in self.all("result_acks") if ack.attempt == ref]
            return acks[-1] if acks else None

        found = await self.wait(find)
        return from_status(found.error) if found.HasField("error") else None

    async def wait_ended(self) -> ServiceError:
        """Wait until the stream has ended and return the error."""
        error: ServiceError = await self.wait(lambda: self.error)
        return error

    async def wait(self, find: Callable[[], Any]) -> Any:
        """Return what `find` finds, as soon as it does."""
        async with asyncio.timeout(20):
            while (found := find()) is None:
                self._came.clear()
                await self._came.wait()
            return found

    def all(self, kind: str) -> list[Any]:
        """Return everything of one kind that came on this stream."""
        return [item for frame in self.frames for item in getattr(frame, kind)]

    async def _read(self, call: Any) -> None:
        try:
            async for frame in call:
                self.frames.append(frame)
                if frame.probe_nonce and self.answer_probes:
                    await call.write(work_pb.WorkRequest(probe_nonce=frame.probe_nonce))
                self._came.set()
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)
        except asyncio.InvalidStateError:
            self.error = self.error or ServiceError(Reason.PEER_SILENT, "the stream has ended")
        self._came.set()


def _everyone(service: str) -> dict[str, frozenset[str]]:
    methods = registry_pb.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods
    return {f"{service}/{method.name}": frozenset({"service"}) for method in methods}


_numbers = itertools.count(1)


def submission(*tasks: task_pb.TaskSpec, request_id: str = "", **spec: Any) -> pb.SubmitCollaborationRequest:
    """Return a request; without tasks there is one, "t"."""
    return pb.SubmitCollaborationRequest(
        request_id=request_id or f"request-{next(_numbers)}",
        collaboration=collaboration_pb.CollaborationSpec(tasks=tasks or (task("t"),), **spec),
    )


def task(
    task_id: str, *dependencies: str, skills: Iterable[str] = ("work",), **more: Any
) -> task_pb.TaskSpec:
    """Return a small task."""
    locks = [task_pb.ResourceClaim(resource=name) for name in more.pop("locks", ())]
    return task_pb.TaskSpec(
        task_id=task_id, required_skills=skills, dependencies=dependencies, resources=locks, **more
    )


@contextlib.asynccontextmanager
async def refused() -> AsyncIterator[list[ServiceError]]:
    """Expect a call to fail; the list then holds its error."""
    errors: list[ServiceError] = []
    try:
        yield errors
    except grpc.aio.AioRpcError as error:
        errors.append(from_rpc_error(error))
    assert errors, "the call was not refused"
