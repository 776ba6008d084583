"""What comes in: frames of a Mailbox stream."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from google.protobuf.duration_pb2 import Duration
from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2

from services.broker.core.events import Extend, FrameReceived, Nack, Reject
from services.broker.core.model import Draft, Lane, RefusedDraft
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import AGENT_ID, NAME_64

VERSION = 1
INSTANCE_DEFAULT = "0"
# What a store's signed 64 bits hold.
INCARNATION_MAX = 2**63 - 1
SENDS_MAX = 1_024
# All of them may be refused: the answers must fit into what may wait for one stream.
SETTLINGS_MAX = 16_384
TTL_MS_DEFAULT = 300_000
TTL_MS_MIN = 1_000
TTL_MS_MAX = 7 * 24 * 3_600_000
RETRY_MAX_DEFAULT = 3
RETRY_MAX_MAX = 100
ID_BYTES_MAX = 64
CONTENT_TYPE_BYTES_MAX = 127
TRACEPARENT_BYTES = 55
MESSAGE_TYPES = frozenset(value for value in envelope_pb2.MessageType.values() if value)
# What an envelope may have beyond its payload, fields that this version does not know included.
ENVELOPE_OVERHEAD_BYTES_MAX = 4_096
OPERATOR_PREFIX = "operator/"
FINGERPRINT_BYTES = 8

_is_name = NAME_64.match
_TRACEPARENT_BYTES = frozenset({0, TRACEPARENT_BYTES})
_LANES = {0: Lane.NORMAL, **{int(lane): lane for lane in Lane}}


# Receivers repeat; what is asked often is remembered.
@lru_cache(maxsize=4_096)
def is_address(text: str) -> bool:
    """Return whether `text` names an agent ("field-1") or an operator ("operator/admin")."""
    return AGENT_ID.match(text.removeprefix(OPERATOR_PREFIX)) is not None


def read_hello(request: pb.MailboxRequest) -> pb.MailboxHello:
    """Return a stream's first frame, or raise what is wrong with it."""
    hello = request.hello
    if not request.HasField("hello") or len(request.ListFields()) != 1:
        raise ServiceError(Reason.MALFORMED_FRAME, "the first frame must hold a hello and nothing else")
    if VERSION not in hello.versions:
        raise ServiceError(
            Reason.UNSUPPORTED_VERSION,
            f"this broker speaks version {VERSION}: upgrade the client or the broker",
            metadata={"supported": str(VERSION)},
        )
    if hello.instance_id and NAME_64.match(hello.instance_id) is None:
        raise invalid("hello.instance_id", "1 to 64 bytes of [A-Za-z0-9._-], or empty")
    if hello.incarnation > INCARNATION_MAX:
        raise invalid("hello.incarnation", f"at most {INCARNATION_MAX}: take it from the registry's welcome")
    return hello


def read_frame(
    request: pb.MailboxRequest, stream_id: int, address: str, payload_bytes_max: int
) -> tuple[FrameReceived, int]:
    """Return a later frame and the bytes that it brings to the disk; raises MALFORMED_FRAME.

    What is wrong with one envelope refuses that envelope only.
    """
    _check_shape(request)
    drafts = [
        read_envelope(envelope, index, address, payload_bytes_max)
        for index, envelope in enumerate(request.sends)
    ]
    frame = FrameReceived(
        stream_id,
        [ack.ack_token for ack in request.acks],
        _settlings(request),
        request.credits,
        request.emergency_credits,
        drafts,
    )
    return frame, sum(len(draft.body) for draft in drafts if isinstance(draft, Draft))


def read_envelope(
    envelope: envelope_pb2.Envelope, index: int, address: str, payload_bytes_max: int
) -> Draft | RefusedDraft:
    """Return `sends[index]` as a draft, or why it is refused.

    Fields that the broker sets are left as they came: what it appends overrides them (see `responses`).
    """
    # Each read of a field costs 50 to 100 ns and there are 50,000 envelopes a second: everything is asked at
    # once, and `_fault` finds out what it was for the few that are not fine.
    message_id, receiver, lane = envelope.message_id, envelope.receiver_id, envelope.priority
    payload, retry_max = envelope.payload, envelope.retry_max
    payload_bytes = len(payload.data)
    ttl_ms = _milliseconds(envelope.ttl) if envelope.HasField("ttl") else TTL_MS_DEFAULT
    if not (
        _is_name(message_id)
        and (not envelope.sender_id or envelope.sender_id == address)
        and is_address(receiver)
        and envelope.message_type in MESSAGE_TYPES
        and lane in _LANES
        and retry_max <= RETRY_MAX_MAX
        and TTL_MS_MIN <= ttl_ms <= TTL_MS_MAX
        and len(envelope.correlation_id) <= ID_BYTES_MAX
        and len(envelope.causation_id) <= ID_BYTES_MAX
        and len(envelope.collaboration_id) <= ID_BYTES_MAX
        and len(envelope.traceparent) in _TRACEPARENT_BYTES
        and len(payload.content_type) <= CONTENT_TYPE_BYTES_MAX
    ):
        return RefusedDraft(message_id, _fault(envelope, index, address))
    body = envelope.SerializeToString()
    if payload_bytes > payload_bytes_max:
        return RefusedDraft(message_id, _too_large("payload", payload_bytes, payload_bytes_max))
    if len(body) > payload_bytes + ENVELOPE_OVERHEAD_BYTES_MAX:
        limit = payload_bytes + ENVELOPE_OVERHEAD_BYTES_MAX
        return RefusedDraft(message_id, _too_large("envelope", len(body), limit))
    if not retry_max and not envelope.HasField("retry_max"):
        retry_max = RETRY_MAX_DEFAULT
    fingerprint = blake2b(body, digest_size=FINGERPRINT_BYTES).digest()
    return tuple.__new__(
        Draft,
        (message_id, receiver, _LANES[lane], envelope.requires_ack, ttl_ms, retry_max, fingerprint, body),
    )


def _fault(envelope: envelope_pb2.Envelope, index: int, address: str) -> ServiceError:
    if envelope.sender_id not in {"", address}:
        return ServiceError(
            Reason.IDENTITY_MISMATCH,
            f"sender_id is {envelope.sender_id[:80]!r} and the certificate says {address!r}: leave it empty",
            metadata={"identity": address},
        )
    rules = (
        ("message_id", NAME_64.match(envelope.message_id), "1 to 64 bytes of [A-Za-z0-9._-]"),
        ("receiver_id", is_address(envelope.receiver_id), "an agent's name, or operator/<name>"),
        ("message_type", envelope.message_type in MESSAGE_TYPES, "one of MessageType, not UNSPECIFIED"),
        ("priority", envelope.priority in _LANES, "one of Priority"),
        ("retry_max", envelope.retry_max <= RETRY_MAX_MAX, f"at most {RETRY_MAX_MAX}"),
        ("ttl", not envelope.HasField("ttl") or _is_ttl(envelope.ttl), f"{TTL_MS_MIN} to {TTL_MS_MAX} ms"),
        ("correlation_id", len(envelope.correlation_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("causation_id", len(envelope.causation_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("collaboration_id", len(envelope.collaboration_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("traceparent", len(envelope.traceparent) in _TRACEPARENT_BYTES, "empty or 55 bytes"),
    )
    for name, is_good, rule in rules:
        if not is_good:
            return invalid(f"sends[{index}].{name}", rule)
    return invalid(f"sends[{index}].payload.content_type", f"at most {CONTENT_TYPE_BYTES_MAX} bytes")


def _check_shape(request: pb.MailboxRequest) -> None:
    if request.HasField("hello"):
        raise ServiceError(Reason.MALFORMED_FRAME, "hello comes first and once: open a new stream instead")
    if len(request.sends) > SENDS_MAX:
        raise ServiceError(
            Reason.MALFORMED_FRAME, f"sends: {len(request.sends)} in one frame, at most {SENDS_MAX}"
        )
    settlings = len(request.acks) + len(request.nacks) + len(request.extends) + len(request.rejects)
    if settlings > SETTLINGS_MAX:
        raise ServiceError(
            Reason.MALFORMED_FRAME, f"{settlings} acks, nacks, extends and rejects, at most {SETTLINGS_MAX}"
        )


def _settlings(request: pb.MailboxRequest) -> list[Nack | Extend | Reject]:
    settlings: list[Nack | Extend | Reject] = [
        Nack(nack.ack_token, _milliseconds(nack.delay) if nack.HasField("delay") else None)
        for nack in request.nacks
    ]
    settlings += [Extend(extend.ack_token, _milliseconds(extend.extension)) for extend in request.extends]
    settlings += [Reject(reject.ack_token, reject.reason) for reject in request.rejects]
    return settlings


def _is_ttl(ttl: Duration) -> bool:
    return TTL_MS_MIN <= _milliseconds(ttl) <= TTL_MS_MAX


def _milliseconds(duration: Duration) -> int:
    """Return a duration rounded down; one that protobuf itself calls invalid is as wrong as its number."""
    milliseconds: int = duration.seconds * 1_000 + duration.nanos // 1_000_000
    return milliseconds


def _too_large(what: str, size: int, limit: int) -> ServiceError:
    return ServiceError(
        Reason.PAYLOAD_TOO_LARGE,
        f"the {what} has {size} bytes, at most {limit}: send a reference to larger content",
        metadata={"limit_bytes": str(limit), "size_bytes": str(size)},
    )
