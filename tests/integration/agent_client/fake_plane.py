"""Stand-ins for registry, scheduler and broker: real sockets and mutual TLS, scripted by the test.

They keep what the client said and say what the test wants. They run on the link loop, because grpc.aio is
happiest with one loop per process; the methods that a test calls may be called from its own loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from muster.broker.v1 import broker_service_pb2 as broker
from muster.broker.v1 import broker_service_pb2_grpc as broker_grpc
from muster.common.v1 import envelope_pb2, fencing_pb2, payload_pb2
from muster.registry.v1 import registry_service_pb2 as registry
from muster.registry.v1 import registry_service_pb2_grpc as registry_grpc
from muster.scheduler.v1 import collaboration_pb2, task_pb2, work_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler_pb2
from muster.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc

from agent_client.loop import link_thread
from services.common.core.errors import Reason, ServiceError
from services.common.rpc.status import grpc_code, to_status
from tests.conftest import Certificates

T = TypeVar("T")


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp


async def refuse(context: Any, error: ServiceError) -> None:
    """End a call as the services do."""
    status = to_status(error)
    await context.abort(
        grpc_code(error), status.message, (("grpc-status-details-bin", status.SerializeToString()),)
    )


class Peer:
    """One stream of one agent, as the fake service sees it."""

    def __init__(self, hello: Any) -> None:
        self.hello = hello
        self.frames: list[Any] = []
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.ended = False

    def say(self, frame: Any) -> None:
        """Send a frame (or an error that ends the stream) from the test's thread."""
        link_thread().loop.call_soon_threadsafe(self.out.put_nowait, frame)


async def converse(
    peer: Peer, requests: AsyncIterator[Any], context: Any, on_frame: Any
) -> AsyncIterator[Any]:
    async def listen() -> None:
        async for frame in requests:
            peer.frames.append(frame)
            on_frame(peer, frame)
        peer.out.put_nowait(None)

    listener = asyncio.create_task(listen())
    try:
        while (frame := await peer.out.get()) is not None:
            if isinstance(frame, ServiceError):
                await refuse(context, frame)
            yield frame
    finally:
        peer.ended = True
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


class FakeRegistry(registry_grpc.RegistryServiceServicer):
    def __init__(self, plane: FakePlane) -> None:
        self.plane = plane
        self.sessions: list[Peer] = []
        self.incarnation = 0
        self.refusal: ServiceError | None = None
        self.heartbeat_interval_ms = 100
        self.lease_ttl_ms = 1_000
        self.acks = True
        self.resumes = True

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        hello = (await anext(aiter(requests))).hello
        if self.refusal is not None:
            await refuse(context, self.refusal)
        resumed = bool(hello.resume_session_id) and self.resumes
        if not resumed:
            self.incarnation += 1
        peer = Peer(hello)
        self.sessions.append(peer)
        welcome = registry.SessionWelcome(
            version=1, session_id=f"s{self.incarnation}", incarnation=self.incarnation, resumed=resumed
        )
        welcome.lease_ttl.FromMilliseconds(self.lease_ttl_ms)
        welcome.heartbeat_interval.FromMilliseconds(self.heartbeat_interval_ms)
        yield registry.SessionResponse(welcome=welcome)
        async for frame in converse(peer, requests, context, self._heard):
            yield frame

    def _heard(self, peer: Peer, frame: Any) -> None:
        if frame.HasField("farewell"):
            peer.out.put_nowait(None)
        if frame.HasField("heartbeat") and self.acks:
            ack = registry.HeartbeatAck(sequence_number=frame.heartbeat.sequence_number)
            peer.out.put_nowait(registry.SessionResponse(heartbeat_ack=ack))

    async def ListServices(self, request: Any, context: Any) -> Any:
        answer = registry.ListServicesResponse()
        for name, address in self.plane.addresses.items():
            kind = name.rstrip("0123456789")
            answer.replicas.add(service=kind, replica_id=name, address=address)
        if self.plane.leader:
            answer.coordinator.address = self.plane.addresses[self.plane.leader]
        return answer


class FakeScheduler(scheduler_grpc.SchedulerServiceServicer):
    def __init__(self, plane: FakePlane, name: str) -> None:
        self.plane, self.name = plane, name
        self.streams: list[Peer] = []
        self.epoch = 1
        self.silence_max_ms = 5_000
        self.acks = True

    async def Work(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        await self._lead(context)
        peer = Peer(first.hello)
        self.streams.append(peer)
        welcome = work_pb2.WorkWelcome(version=1, epoch=self.epoch)
        welcome.silence_max.FromMilliseconds(self.silence_max_ms)
        yield work_pb2.WorkResponse(welcome=welcome, probe_nonce=7)
        async for frame in converse(peer, requests, context, self._heard):
            yield frame

    async def SubmitCollaboration(self, request: Any, context: Any) -> Any:
        await self._lead(context)
        self.plane.submissions.append(request)
        if self.plane.refusals:
            await refuse(context, self.plane.refusals.pop(0))
        known = [one.request_id for one in self.plane.submissions[:-1]]
        return scheduler_pb2.SubmitCollaborationResponse(
            collaboration_id="c1",
            generation=1,
            already_accepted=request.request_id in known,
            warnings=["mind the gap"],
        )

    async def GetCollaboration(self, request: Any, context: Any) -> Any:
        return scheduler_pb2.GetCollaborationResponse(collaboration=self.plane.collaboration)

    async def ListCollaborations(self, request: Any, context: Any) -> Any:
        """As if there were a thousand; a page token is the number of those before."""
        page = request.page
        self.plane.pages.append(page)
        before = int(page.page_token or 0)
        answer = scheduler_pb2.ListCollaborationsResponse()
        for number in range(before, before + page.page_size):
            answer.collaborations.add(collaboration_id=f"c{number}")
        answer.page.next_page_token = str(before + page.page_size)
        return answer

    async def WatchCollaborations(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._lead(context)
        peer = Peer(request)
        self.plane.watches.append(peer)
        try:
            while (frame := await peer.out.get()) is not None:
                if isinstance(frame, ServiceError):
                    await refuse(context, frame)
                yield frame
        finally:
            peer.ended = True

    async def _lead(self, context: Any) -> None:
        if self.plane.leader != self.name:
            leader = self.plane.addresses.get(self.plane.leader, "")
            await refuse(
                context, ServiceError(Reason.NOT_COORDINATOR, "not me", metadata={"coordinator": leader})
            )

    def _heard(self, peer: Peer, frame: Any) -> None:
        if self.acks and frame.results:
            acks = [work_pb2.ResultAck(attempt=result.attempt) for result in frame.results]
            peer.out.put_nowait(work_pb2.WorkResponse(result_acks=acks))


class FakeBroker(broker_grpc.BrokerServiceServicer):
    def __init__(self) -> None:
        self.streams: list[Peer] = []
        # Ids of envelopes that are stored, in order, without repeats.
        self.stored: list[envelope_pb2.Envelope] = []
        self.answers = True
        self.send_credits = 1_000
        self.errors: dict[str, ServiceError] = {}

    async def Mailbox(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        peer = Peer(first.hello)
        self.streams.append(peer)
        welcome = broker.MailboxWelcome(version=1)
        welcome.ack_deadline.FromMilliseconds(30_000)
        yield broker.MailboxResponse(welcome=welcome, send_credits=self.send_credits)
        async for frame in converse(peer, requests, context, self._heard):
            yield frame

    def _heard(self, peer: Peer, frame: Any) -> None:
        answer = broker.MailboxResponse(
            settled=[ack.ack_token for ack in (*frame.acks, *frame.nacks, *frame.rejects)]
        )
        for envelope in frame.sends:
            error = self.errors.get(envelope.receiver_id)
            if error is not None:
                answer.accepted.add(message_id=envelope.message_id, error=to_status(error))
                continue
            ids = [stored.message_id for stored in self.stored]
            if envelope.message_id not in ids:
                self.stored.append(envelope)
                ids.append(envelope.message_id)
            number = ids.index(envelope.message_id) + 1
            answer.accepted.add(message_id=envelope.message_id, sequence_number=number)
        answer.send_credits = len(frame.sends)
        if self.answers and (answer.settled or answer.accepted):
            peer.out.put_nowait(answer)


class FakePlane:
    """One registry, one broker, two schedulers; `leader` says which of them leads."""

    def __init__(self, certificates: Certificates, home: Path) -> None:
        self.certificates, self.home = certificates, home
        self.addresses: dict[str, str] = {}
        self.leader = "scheduler1"
        self.registry = FakeRegistry(self)  # type: ignore[abstract]  # what no test calls is left out
        self.schedulers = {
            name: FakeScheduler(self, name)  # type: ignore[abstract]  # as above
            for name in ("scheduler1", "scheduler2")
        }
        self.broker = FakeBroker()  # type: ignore[abstract]  # as above
        # What requesters said, and what they are to hear.
        self.submissions: list[Any] = []
        self.refusals: list[ServiceError] = []
        self.watches: list[Peer] = []
        self.pages: list[Any] = []
        self.collaboration = collaboration_pb2.Collaboration()
        self._servers: dict[str, grpc.aio.Server] = {}
        self._attempts = 0

    @property
    def scheduler(self) -> FakeScheduler:
        return self.schedulers[self.leader]

    @property
    def work(self) -> Peer:
        """The newest Work stream at the leader."""
        return self.scheduler.streams[-1]

    @property
    def mailbox(self) -> Peer:
        """The newest Mailbox stream."""
        return self.broker.streams[-1]

    async def start(self) -> None:
        for name in ("registry", "scheduler1", "scheduler2", "broker"):
            await self.up(name)
        self.home.mkdir(parents=True)
        self.enrol("field-1")
        certificate, key = self.certificates.issue("operator/admin")
        context = {
            "registry": [self.addresses["registry"]],
            "trust_domain": "muster.internal",
            "ca": str(self.certificates.ca_path),
            "operator": {"certificate": str(certificate), "key": str(key)},
            "agents_directory": str(self.certificates.folder / "agent"),
        }
        (self.home / "context.json").write_text(json.dumps(context))

    def enrol(self, name: str) -> None:
        self.certificates.issue(f"agent/{name}")

    async def up(self, name: str) -> None:
        """Start a server, at its old address when it had one."""
        await self._on_link(self._up(name))

    async def down(self, name: str) -> None:
        """Stop a server as a crash would."""
        await self._on_link(self._servers.pop(name).stop(None))

    async def stop(self) -> None:
        for name in list(self._servers):
            await self.down(name)

    def assign(self, task_id: str, skill: str = "plan", **fields: Any) -> work_pb2.AttemptRef:
        """Assign a new attempt over the leader's newest stream; return its name."""
        self._attempts += 1
        attempt = work_pb2.AttemptRef(
            collaboration_id="c1",
            task_id=task_id,
            token=fencing_pb2.FencingToken(epoch=1, number=self._attempts),
        )
        spec = task_pb2.TaskSpec(task_id=task_id, required_skills=[skill])
        self.send_assignment(work_pb2.Assignment(attempt=attempt, spec=spec, **fields))
        return attempt

    def send_assignment(self, assignment: work_pb2.Assignment) -> None:
        self.work.say(work_pb2.WorkResponse(assignments=[assignment]))

    def deliver(self, token: int, message_id: str, *, peer: Peer | None = None, **fields: Any) -> None:
        """Deliver an envelope to the agent."""
        envelope = envelope_pb2.Envelope(
            message_id=message_id,
            sender_id=fields.pop("sender_id", "other"),
            receiver_id="field-1",
            message_type=fields.pop("message_type", envelope_pb2.MESSAGE_TYPE_STATUS_UPDATE),
            payload=payload_pb2.Payload(content_type="application/json", data=b'{"n": 1}'),
            requires_ack=token > 0,
            **fields,
        )
        delivery = broker.Delivery(ack_token=token, envelope=envelope, delivery_number=1)
        (peer or self.mailbox).say(broker.MailboxResponse(deliveries=[delivery]))

    @property
    def results(self) -> list[work_pb2.AttemptResult]:
        """All results that any scheduler got, oldest first."""
        return [
            result
            for scheduler in self.schedulers.values()
            for peer in scheduler.streams
            for frame in peer.frames
            for result in frame.results
        ]

    async def _up(self, name: str) -> None:
        server = grpc.aio.server()
        kind = name.rstrip("0123456789")
        if kind == "registry":
            registry_grpc.add_RegistryServiceServicer_to_server(self.registry, server)
        elif kind == "scheduler":
            scheduler_grpc.add_SchedulerServiceServicer_to_server(self.schedulers[name], server)
        else:
            broker_grpc.add_BrokerServiceServicer_to_server(self.broker, server)
        credentials = self.certificates.tls(f"service/{kind}").server_credentials()
        port = server.add_secure_port(self.addresses.get(name, "127.0.0.1:0"), credentials)
        await server.start()
        self.addresses[name] = f"127.0.0.1:{port}"
        self._servers[name] = server

    async def _on_link(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await link_thread().run(coroutine)
