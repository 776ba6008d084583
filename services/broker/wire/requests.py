"""What comes in: frames of a Mailbox stream."""

from __future__ import annotations

import re
from hashlib import blake2b

from google.protobuf.duration_pb2 import Duration
from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2

from services.broker.core.addresses import is_instance, is_mailbox, read_route
from services.broker.core.events import Extend, FrameReceived, Nack, Reject
from services.broker.core.model import Draft, Lane, RefusedDraft, Route, RoutedDraft, RouteKind
from services.broker.wire.handshake import INSTANCES, ROUTES, Terms
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import NAME_64

INSTANCE_DEFAULT = "0"
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
TRACESTATE_BYTES_MAX = 512
MESSAGE_TYPES = frozenset(value for value in envelope_pb2.MessageType.values() if value)
# What an envelope may have beyond its payload, fields that this version does not know included.
ENVELOPE_OVERHEAD_BYTES_MAX = 4_096
FINGERPRINT_BYTES = 8

_is_name = NAME_64.match
# https://www.w3.org/TR/trace-context/#traceparent-header: version ff and ids of zeros only are invalid.
_is_traceparent = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
).match
_LANES = {0: Lane.NORMAL, **{int(lane): lane for lane in Lane}}


def read_frame(
    request: pb.MailboxRequest, stream_id: int, address: str, payload_bytes_max: int, terms: Terms
) -> tuple[FrameReceived, int]:
    """Return a later frame and the bytes that it brings to the disk; raises MALFORMED_FRAME.

    What is wrong with one envelope refuses that envelope only.
    """
    _check_shape(request)
    drafts = [
        read_envelope(envelope, index, address, payload_bytes_max, terms)
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
    size = sum(len(draft.body) for draft in drafts if isinstance(draft, Draft))
    return frame, size + sum(len(one.draft.body) for one in drafts if isinstance(one, RoutedDraft))


def read_envelope(
    envelope: envelope_pb2.Envelope, index: int, address: str, payload_bytes_max: int, terms: Terms
) -> Draft | RoutedDraft | RefusedDraft:
    """Return `sends[index]` as a draft, or why it is refused.

    Fields that the broker sets are left as they came: what it appends overrides them (see `responses`).
    """
    # Each read of a field costs 50 to 100 ns and there are 50,000 envelopes a second: everything is asked at
    # once, and `_fault` finds out what it was for the few that are not fine.
    message_id, receiver, lane = envelope.message_id, envelope.receiver_id, envelope.priority
    payload, retry_max = envelope.payload, envelope.retry_max
    payload_bytes = len(payload.data)
    ttl_ms = _milliseconds(envelope.ttl) if envelope.HasField("ttl") else TTL_MS_DEFAULT
    route: Route | None = None
    has_receiver = is_mailbox(receiver)
    if not has_receiver and ROUTES in terms.features:
        route = read_route(receiver)
        has_receiver = route is not None
    if not has_receiver and INSTANCES in terms.features:
        has_receiver = is_instance(receiver)
    traced = envelope.traceparent or envelope.tracestate
    if not (
        _is_name(message_id)
        and (not envelope.sender_id or envelope.sender_id == address)
        and has_receiver
        and envelope.message_type in MESSAGE_TYPES
        and lane in _LANES
        and retry_max <= RETRY_MAX_MAX
        and TTL_MS_MIN <= ttl_ms <= TTL_MS_MAX
        and len(envelope.correlation_id) <= ID_BYTES_MAX
        and len(envelope.causation_id) <= ID_BYTES_MAX
        and len(envelope.collaboration_id) <= ID_BYTES_MAX
        and not envelope.address
        and (not envelope.reply_instance or _is_name(envelope.reply_instance))
        and (not traced or _is_trace(envelope.traceparent, envelope.tracestate))
        and len(payload.content_type) <= CONTENT_TYPE_BYTES_MAX
    ):
        return RefusedDraft(message_id, _fault(envelope, index, address, terms))
    if route is not None:
        # Each copy is told who its receiver is on its way out, and all what the sender wrote.
        envelope.address = receiver
        envelope.receiver_id = receiver = ""
    body = envelope.SerializeToString()
    if payload_bytes > payload_bytes_max:
        return RefusedDraft(message_id, _too_large("payload", payload_bytes, payload_bytes_max))
    if len(body) > payload_bytes + ENVELOPE_OVERHEAD_BYTES_MAX:
        limit = payload_bytes + ENVELOPE_OVERHEAD_BYTES_MAX
        return RefusedDraft(message_id, _too_large("envelope", len(body), limit))
    if not retry_max and not envelope.HasField("retry_max"):
        retry_max = RETRY_MAX_DEFAULT
    fingerprint = blake2b(body, digest_size=FINGERPRINT_BYTES).digest()
    draft: Draft = tuple.__new__(
        Draft,
        (message_id, receiver, _LANES[lane], envelope.requires_ack, ttl_ms, retry_max, fingerprint, body),
    )
    if route is None:
        return draft
    return RoutedDraft(message_id, route, envelope.requires_receiver, draft)


def _fault(envelope: envelope_pb2.Envelope, index: int, address: str, terms: Terms) -> ServiceError:
    if envelope.sender_id not in {"", address}:
        return ServiceError(
            Reason.IDENTITY_MISMATCH,
            f"sender_id is {envelope.sender_id[:80]!r} and the certificate says {address!r}: leave it empty",
            metadata={"identity": address},
        )
    rules = (
        ("message_id", NAME_64.match(envelope.message_id), "1 to 64 bytes of [A-Za-z0-9._-]"),
        ("receiver_id", *_receiver_rule(envelope.receiver_id, terms)),
        ("message_type", envelope.message_type in MESSAGE_TYPES, "one of MessageType, not UNSPECIFIED"),
        ("priority", envelope.priority in _LANES, "one of Priority"),
        ("retry_max", envelope.retry_max <= RETRY_MAX_MAX, f"at most {RETRY_MAX_MAX}"),
        ("ttl", not envelope.HasField("ttl") or _is_ttl(envelope.ttl), f"{TTL_MS_MIN} to {TTL_MS_MAX} ms"),
        ("correlation_id", len(envelope.correlation_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("causation_id", len(envelope.causation_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("collaboration_id", len(envelope.collaboration_id) <= ID_BYTES_MAX, "at most 64 bytes"),
        ("address", not envelope.address, "set by the broker: write it into receiver_id"),
        (
            "reply_instance",
            not envelope.reply_instance or NAME_64.match(envelope.reply_instance),
            "an instance_id, 1 to 64 bytes of [A-Za-z0-9._-], or empty",
        ),
        ("traceparent", _is_trace(envelope.traceparent, ""), "empty, or as W3C Trace Context has it"),
        (
            "tracestate",
            _is_trace(envelope.traceparent, envelope.tracestate),
            f"at most {TRACESTATE_BYTES_MAX} bytes, and only with a traceparent",
        ),
    )
    for name, is_good, rule in rules:
        if not is_good:
            return invalid(f"sends[{index}].{name}", rule)
    return invalid(f"sends[{index}].payload.content_type", f"at most {CONTENT_TYPE_BYTES_MAX} bytes")


def _receiver_rule(receiver: str, terms: Terms) -> tuple[bool, str]:
    if is_mailbox(receiver):
        return True, ""
    feature = INSTANCES if is_instance(receiver) else ROUTES
    if feature is ROUTES and read_route(receiver) is None:
        return False, _ROUTE_RULES.get(receiver.partition("/")[0], _ADDRESS_RULE)
    return feature in terms.features, f"name the feature {feature!r} in the hello to use such addresses"


_ROUTE_RULES: dict[str, str] = {
    RouteKind.SKILL: "skill/<skill>, where a skill is 1 to 64 bytes of [a-z0-9._-]",
    RouteKind.COLLABORATION: "collaboration/<id>, as the scheduler gave it: 1 to 64 bytes of [A-Za-z0-9._-]",
    RouteKind.TOPIC: "topic/<topic>: segments of [A-Za-z0-9_-] with dots between, at most 8 and 128 bytes;"
    " wildcards are for subscriptions only",
}
_ADDRESS_RULE = (
    "an agent's name (a-z, 0-9 and '-') or operator/<name>, of either one instance as <name>#<instance>;"
    " skill/<skill>, collaboration/<id> or topic/<topic>"
)


def _is_trace(traceparent: str, tracestate: str) -> bool:
    if not traceparent:
        return not tracestate
    return _is_traceparent(traceparent) is not None and len(tracestate) <= TRACESTATE_BYTES_MAX


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
