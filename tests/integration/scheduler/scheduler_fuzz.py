"""Hostile bytes for every entry point of the scheduler, and what a peer that sends them gets to see.

The bytes come from a seed: valid protobuf with wild values, also behind values that make sense (what is wild
overrides), valid protobuf of the wrong shape, protobuf that is broken in one place, plain garbage. Whatever
comes, a call must end well or with a Status of ours that blames the caller.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from muster.scheduler.v1 import plan_pb2, work_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.protobuf import varint
from services.common.rpc.channel import service_dns_name
from services.common.rpc.status import TRAILER, from_status
from services.common.tls import TlsIdentity
from tests.integration.broker.broker_fuzz import length_field, wild

SERVICE = "muster.scheduler.v1.SchedulerService"
PATIENCE_S = 60.0
#: A watch has no end of its own.
WATCH_S = 0.15
#: What blames the service, and what must not come while it serves and leads.
UNFAIR = frozenset(
    {
        Reason.INTERNAL,
        Reason.NOT_COORDINATOR,
        Reason.STORE_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.DISK_FULL,
        Reason.SHUTTING_DOWN,
        Reason.IDENTITY_MISSING,
        Reason.CALL_TIMED_OUT,
    }
)


def methods() -> dict[str, MethodDescriptor]:
    """Return every method of the service by its name."""
    service = descriptor_pool.Default().FindServiceByName(SERVICE)
    return {method.name: method for method in service.methods}


@dataclass
class Ending:
    """What came back for one call."""

    error: ServiceError | None = None
    typed: bool = True
    code: str = "OK"
    answers: list[bytes] = field(default_factory=list)

    def complaint(self) -> str:
        """Return what is wrong with it; empty when the contract was kept."""
        if self.error is None:
            return ""
        if not self.typed:
            return f"{self.code} without ErrorInfo: {self.error}"
        if self.error.reason in UNFAIR:
            return f"{self.error.reason}: {self.error}"
        if self.error.reason is Reason.INVALID_FIELD and not all(one.field for one in self.error.violations):
            return f"no field is named: {self.error}"
        return "" if str(self.error) else f"{self.error.reason} without a message"


def _ending(error: grpc.RpcError) -> Ending:
    # A failed call is a Call too: it has the status, whatever the stubs say.
    call: Any = error
    trailers = call.trailing_metadata() or ()
    details = [status_pb2.Status.FromString(value) for key, value in trailers if key == TRAILER]
    said = details[0] if details else status_pb2.Status(code=call.code().value[0], message=call.details())
    typed = any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in said.details)
    return Ending(from_status(said), typed, call.code().name)


class Caller:
    """One hostile peer with a connection of its own; it blocks its thread (see `broker_fuzz.Caller`)."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        self._channel = grpc.secure_channel(
            address,
            tls.channel_credentials(),
            options=[
                ("grpc.ssl_target_name_override", service_dns_name("scheduler")),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.max_send_message_length", -1),
            ],
        )

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, frames: Sequence[bytes]) -> Ending:
        """Call any method with raw bytes; a stream of the client's is closed behind its frames."""
        described = methods()[method]
        path, ending = f"/{SERVICE}/{method}", Ending()
        watching = described.server_streaming and not described.client_streaming
        stub: Any = self._channel.stream_stream(path, None, None)
        timeout = WATCH_S if watching else PATIENCE_S
        try:
            # One by one: what came before an error counts.
            ending.answers.extend(stub(iter(frames), timeout=timeout, wait_for_ready=True))
        except grpc.RpcError as error:
            answers, ending = ending.answers, _ending(error)
            ending.answers = answers
            if watching and ending.code == "DEADLINE_EXCEEDED":
                return Ending(answers=answers)
        return ending


# Bytes from a seed.


def hello(instance: str = "0", incarnation: int = 1) -> bytes:
    """Return a first frame as it should be."""
    told = work_pb2.WorkHello(versions=[1], instance_id=instance, incarnation=incarnation, suspendable=True)
    return work_pb2.WorkRequest(hello=told).SerializeToString()


def _submission(rng: random.Random) -> pb.SubmitCollaborationRequest:
    message = pb.SubmitCollaborationRequest(request_id=f"f-{rng.getrandbits(12)}")
    spec = message.collaboration
    for number in range(rng.randint(1, 4)):
        one = spec.tasks.add(task_id=f"t{number}", required_skills=["dig"])
        if number:
            one.dependencies.append(f"t{rng.randrange(number)}")
    return message


def _good(rng: random.Random, method: str) -> Message:
    """Return a request that makes sense, to be broken."""
    match method:
        case "SubmitCollaboration":
            return _submission(rng)
        case "Submit":
            return pb.SubmitRequest(submissions=[_submission(rng) for _ in range(3)])
        case "PlanCollaboration":
            plan = plan_pb2.PlanCollaborationRequest(collaboration=_submission(rng).collaboration)
            plan.budget.FromMilliseconds(20)
            return plan
        case "Work":
            return work_pb2.WorkRequest(credits=1, probe_nonce=rng.getrandbits(8))
        case _:
            empty: Message = GetMessageClass(methods()[method].input_type)()
            return empty


def hostile(rng: random.Random, method: str) -> bytes:
    """Return the bytes of one request or frame."""
    descriptor, kind = methods()[method].input_type, rng.random()
    good = _good(rng, method).SerializeToString()
    if kind < 0.45:
        # Fields of a message come together: what is behind overrides, and what repeats is appended.
        return good + wild(rng, descriptor)
    if kind < 0.7:
        return wild(rng, descriptor)
    if kind < 0.8:
        return (good or b"\x0a\x05alpha")[: rng.randrange(1, len(good) or 2)]
    if kind < 0.9:
        raw = bytearray(good or b"\x0a\x05alpha")
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    if kind < 0.95:
        return length_field(
            rng.randint(1, 10), rng.randbytes(10), claimed=rng.choice((11, 2**20, 2**31, 2**63))
        )
    return rng.randbytes(rng.choice((1, 7, 100, 5_000)))


def hostile_items(rng: random.Random) -> bytes:
    """Return a Work frame that is one as a whole, with items that may be anything: the stream outlives it."""
    out = varint(2 << 3) + varint(rng.choice((0, 1, 2, 5)))
    for _ in range(rng.randint(1, 5)):
        number = rng.choice((3, 4, 5, 5, 5, 7, 7, 8, 10))
        kind = work_pb2.WorkRequest.DESCRIPTOR.fields_by_number[number].message_type
        assert kind is not None
        out += length_field(number, wild(rng, kind))
    return out


def conversations(rng: random.Random, number: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield (method, frames) of one call, chosen by the seed; `number` tells callers apart."""
    every = methods()
    rare = {"WatchCollaborations": 0.3, "PlanCollaboration": 0.3, "Work": 8.0, "Submit": 4.0}
    (method,) = rng.choices([*every], [rare.get(name, 1.0) for name in every])
    if not every[method].client_streaming:
        yield method, [hostile(rng, method)]
        return
    make_items = method == "Work" and rng.random() < 0.6
    frames = [hostile_items(rng) if make_items else hostile(rng, method) for _ in range(rng.randint(1, 4))]
    if method == "Work" and rng.random() < 0.85:
        frames.insert(0, hello(f"caller-{number}", incarnation=2**40))
    yield method, frames
