"""Hostile bytes for the broker's entry points, and what a peer that sends them gets to see.

A frame is made from a seed: valid protobuf with wild values, valid protobuf of the wrong shape, protobuf that
is broken in one place, and plain garbage. Whatever comes, a call must end well or with a Status of ours.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2, status_pb2
from muster.broker.v1 import broker_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.protobuf import varint
from services.common.rpc.channel import service_dns_name
from services.common.rpc.status import TRAILER, from_status
from services.common.tls import TlsIdentity
from tests.integration.broker.broker_client import envelope

SERVICE = "/muster.broker.v1.BrokerService"
UNARY: dict[str, Any] = {
    "GetMailbox": pb.GetMailboxRequest,
    "ListDeadLetters": pb.ListDeadLettersRequest,
    "ReplayDeadLetters": pb.ReplayDeadLettersRequest,
    "DropDeadLetters": pb.DropDeadLettersRequest,
    "Subscribe": pb.SubscribeRequest,
    "Unsubscribe": pb.UnsubscribeRequest,
    "ListSubscriptions": pb.ListSubscriptionsRequest,
}
DEPTH_MAX = 4
PATIENCE_S = 60.0
# How a call may end, or an envelope be refused, that does not keep the contract; never INTERNAL.
FAIR = frozenset(
    {
        Reason.MALFORMED_FRAME,
        Reason.UNSUPPORTED_VERSION,
        Reason.INVALID_FIELD,
        Reason.PAYLOAD_TOO_LARGE,
        Reason.IDENTITY_MISMATCH,
        Reason.AGENT_NOT_FOUND,
        Reason.RECEIVER_NOT_FOUND,
        # This broker has neither a registry nor a scheduler to ask.
        Reason.ROUTE_UNAVAILABLE,
        Reason.REQUEST_ID_REUSED,
        Reason.INCARNATION_FENCED,
        Reason.STALE_ACK_TOKEN,
        Reason.ACCESS_DENIED,
        Reason.QUOTA_EXCEEDED,
        Reason.MAILBOX_FULL,
        # Two hostile streams claimed to be one instance.
        Reason.WRONG_STATE,
    }
)

_NUMBERS = (0, 1, 2, 3, 127, 128, 1_024, 65_536, 65_537, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
_TEXTS = (
    b"", b"a", b"beta", b"mallory", b"nobody", b"operator/admin", b"../../etc", b"a b", b"\x00", b"a-1",
    b"a-2", "号".encode(), b"x" * 64, b"x" * 65, b"x" * 5_000, b"00-" + b"0" * 52,
    b"mallory#0", b"mallory#caller-1", b"nobody#1", b"mallory#", b"#", b"mallory#a#b", b"operator/admin#0",
    b"topic/roads.closed", b"topic/roads.*", b"topic/", b"skill/plans", b"collaboration/c-1", b"roads.*",
    b"**", b"routes", b"instances",
)  # fmt: skip
_DOUBLES = (0.0, -0.0, 0.5, 1.0, -1.0, 1e308, 5e-324, math.inf, -math.inf, math.nan)
_NOT_UTF8 = (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x80")


@dataclass
class Ending:
    """What came back for one call."""

    # None for a good end.
    error: ServiceError | None = None
    # Whether the error came as a Status with our ErrorInfo.
    typed: bool = True
    code: str = "OK"
    responses: list[pb.MailboxResponse] = field(default_factory=list)

    @property
    def outcomes(self) -> list[pb.SendOutcome]:
        return [outcome for response in self.responses for outcome in response.accepted]

    def complaint(self) -> str:
        """Return what is wrong with it; empty when the contract was kept."""
        if self.error is not None and (said := _complaint(self.error, typed=self.typed)):
            return f"{self.code}: {said}"
        for outcome in self.outcomes:
            if outcome.HasField("error"):
                said = _complaint(from_status(outcome.error), typed=_is_typed(outcome.error))
                if said:
                    return f"outcome of {outcome.message_id!r}: {said}"
        for response in self.responses:
            for refusal in response.refusals:
                if not _is_typed(refusal.error):
                    return f"refusal of {refusal.ack_token} without ErrorInfo"
        return ""


def _complaint(error: ServiceError, *, typed: bool) -> str:
    if not typed:
        return f"no ErrorInfo in {error.reason}: {error}"
    if error.reason not in FAIR:
        return f"{error.reason}: {error}"
    if error.reason is Reason.INVALID_FIELD and not all(one.field for one in error.violations or [None]):  # type: ignore[union-attr]
        return f"no field is named: {error}"
    return "" if str(error) else f"{error.reason} without a message"


def _is_typed(status: status_pb2.Status) -> bool:
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            domain: str = error_details_pb2.ErrorInfo.FromString(detail.value).domain
            return domain == "muster"
    return False


def _ending(error: grpc.RpcError) -> Ending:
    # A failed call is a Call too: it has the status, whatever the stubs say.
    call: Any = error
    trailers = call.trailing_metadata() or ()
    details = [status_pb2.Status.FromString(value) for key, value in trailers if key == TRAILER]
    said = details[0] if details else status_pb2.Status(code=call.code().value[0], message=call.details())
    return Ending(from_status(said), _is_typed(said), call.code().name)


class Caller:
    """One hostile peer with a connection of its own; it blocks its thread.

    Not grpc.aio: there a write that meets the end of a call replaces the server's status by its own INTERNAL
    (github.com/grpc/grpc/issues/36066), and what the server said is the point here.
    """

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        self._channel = grpc.secure_channel(
            address,
            tls.channel_credentials(),
            options=[
                ("grpc.ssl_target_name_override", service_dns_name("broker")),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._mailbox: Any = self._channel.stream_stream(f"{SERVICE}/Mailbox", None, None)

    def close(self) -> None:
        self._channel.close()

    def converse(self, frames: Sequence[bytes]) -> Ending:
        """Send raw frames on one Mailbox stream, close our side, and return everything that came."""
        ending, responses = Ending(), list[pb.MailboxResponse]()
        try:
            answers = self._mailbox(iter(frames), timeout=PATIENCE_S, wait_for_ready=True)
            # One by one: what came before an error counts.
            responses.extend(pb.MailboxResponse.FromString(raw) for raw in answers)
        except grpc.RpcError as error:
            ending = _ending(error)
        ending.responses = responses
        return ending

    def ask(self, method: str, raw: bytes) -> Ending:
        """Call a unary method with raw bytes."""
        call: Any = self._channel.unary_unary(f"{SERVICE}/{method}", None, None)
        try:
            call(raw, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return _ending(error)
        return Ending()


def hello(instance: str = "0", *, send_only: bool = False) -> bytes:
    """Return a first frame as it should be."""
    features = ["routes", "instances"]
    told = pb.MailboxHello(
        versions=[1], features=features, instance_id=instance, incarnation=2**62, send_only=send_only
    )
    return pb.MailboxRequest(hello=told).SerializeToString()


# Frames from a seed.


def length_field(number: int, content: bytes, claimed: int | None = None) -> bytes:
    """Return a length-delimited field; `claimed` is a length that lies."""
    return varint(number << 3 | 2) + varint(len(content) if claimed is None else claimed) + content


def wild(rng: random.Random, descriptor: Descriptor, depth: int = 0) -> bytes:
    """Return bytes of a message of this type: known fields with wild values, some of a wrong wire type."""
    out = b""
    fields = list(descriptor.fields)
    for _ in range(rng.randint(0, 6)):
        if not fields or rng.random() < 0.08:
            out += _stray(rng)
            continue
        chosen = rng.choice(fields)
        # A lie about the wire type now and then: parsers must skip it or refuse it.
        out += _stray(rng, chosen.number) if rng.random() < 0.05 else _valued(rng, chosen, depth)
    return out


def _valued(rng: random.Random, chosen: FieldDescriptor, depth: int) -> bytes:
    kind = chosen.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        assert chosen.message_type is not None
        content = b"" if depth >= DEPTH_MAX else wild(rng, chosen.message_type, depth + 1)
        return length_field(chosen.number, content)
    if kind in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}:
        return length_field(chosen.number, rng.choice(_TEXTS if rng.random() < 0.995 else _NOT_UTF8))
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return varint(chosen.number << 3 | 1) + struct.pack("<d", rng.choice(_DOUBLES))
    return varint(chosen.number << 3) + varint(_number(rng))


def _stray(rng: random.Random, number: int | None = None) -> bytes:
    """Return a field that the message does not have, or has with another wire type."""
    number = number or rng.choice((0, 9, 99, 15, 2_047, 2**29 - 1))
    # Groups (3, 4) and what is no wire type at all (6, 7) break a whole frame; most of the others do not.
    wire = rng.choice((0, 1, 2, 5)) if rng.random() < 0.97 else rng.randrange(8)
    content = {
        0: varint(_number(rng)),
        1: rng.randbytes(8),
        2: varint(3) + rng.randbytes(3),
        5: rng.randbytes(4),
    }.get(wire, b"")
    return varint(number << 3 | wire) + content


def _number(rng: random.Random) -> int:
    return rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(rng.randint(1, 64))


def _good(rng: random.Random) -> bytes:
    """Return a frame that keeps the contract, to be broken."""
    sends = [envelope(f"f-{rng.getrandbits(48)}", "nobody", rng.randbytes(20)) for _ in range(3)]
    request = pb.MailboxRequest(sends=sends, acks=[pb.Ack(ack_token=rng.getrandbits(40))])
    request.nacks.add(ack_token=7).delay.FromMilliseconds(5)
    request.extends.add(ack_token=8).extension.FromMilliseconds(5_000)
    request.rejects.add(ack_token=9, reason="no")
    return request.SerializeToString()


def _truncated(rng: random.Random) -> bytes:
    raw = _good(rng)
    return raw[: rng.randrange(1, len(raw))]


def _flipped(rng: random.Random) -> bytes:
    raw = bytearray(_good(rng))
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _spliced(rng: random.Random) -> bytes:
    one, other = _good(rng), _good(rng)
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def _lying(rng: random.Random) -> bytes:
    return length_field(rng.randint(1, 8), rng.randbytes(10), claimed=rng.choice((11, 2**20, 2**31, 2**63)))


def _deep(rng: random.Random) -> bytes:
    raw = b""
    for _ in range(rng.choice((10, 101, 1_000))):
        # Groups inside groups: unknown fields that a parser follows down.
        raw = varint(9 << 3 | 3) + raw + varint(9 << 3 | 4)
    return raw


def _many(rng: random.Random) -> bytes:
    count = rng.choice((1_025, 3_000))
    return rng.choice(
        (
            length_field(2, b"") * count,
            length_field(3, b"\x08\x01") * count * 22,
            length_field(4, b"") * count * 22,
            length_field(99, b"y") * count,
        )
    )


def _second_hello(rng: random.Random) -> bytes:
    return hello(f"i{rng.randrange(99)}")


def _garbage(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 7, 60, 1_500)))


def _wild_frame(rng: random.Random) -> bytes:
    return wild(rng, pb.MailboxRequest.DESCRIPTOR)


def wild_items(rng: random.Random) -> bytes:
    """Return a frame that is one as a whole, with items that may be anything: the stream outlives it."""
    out = b""
    for _ in range(rng.randint(1, 5)):
        number = rng.choice((2, 2, 2, 3, 4, 5, 6))
        kind = pb.MailboxRequest.DESCRIPTOR.fields_by_number[number].message_type
        assert kind is not None
        content = wild(rng, kind)
        if number == 2 and rng.random() < 0.5:
            # Nearly right: what is wild comes behind and overrides. Few ids, so that little is stored.
            receiver = rng.choice(("mallory", "mallory", "mallory#0", "topic/roads.closed", "skill/plans"))
            content = envelope(f"w-{rng.getrandbits(12)}", receiver).SerializeToString() + content
        out += length_field(number, content)
    return out


# With weights: what is built from the descriptors finds most.
_KINDS: dict[Callable[[random.Random], bytes], int] = {
    _wild_frame: 100,
    _truncated: 10,
    _flipped: 15,
    _spliced: 10,
    _lying: 5,
    _deep: 3,
    _many: 1,
    _second_hello: 3,
    _garbage: 13,
}


def hostile_frame(rng: random.Random) -> bytes:
    """Return one frame."""
    (make,) = rng.choices(list(_KINDS), list(_KINDS.values()))
    return make(rng)


def hostile_request(rng: random.Random, method: str) -> bytes:
    """Return bytes for a unary method."""
    if rng.random() < 0.7:
        return wild(rng, UNARY[method].DESCRIPTOR)
    return _garbage(rng) if rng.random() < 0.5 else _lying(rng)
