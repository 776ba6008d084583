"""What goes out: frames of a Mailbox stream, and what people ask for.

An envelope is never parsed and serialized again on its way out: a delivery's bytes are put together from the
bytes that were stored and the fields that the broker sets, appended behind them. That is what protobuf
allows: of a scalar field that occurs twice the last one counts; two occurrences of a message field are merged
field by field, which is why `accepted_time` is written with both of its fields. `test_broker_wire.py` holds
it against the generated classes, also for senders that filled the broker's fields themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2

from services.broker.core.addresses import is_instance
from services.broker.core.model import (
    Delivery,
    DomainKey,
    Envelope,
    Lane,
    LetterOutcome,
    SendOutcome,
    StoredDeadLetter,
    Tombstone,
)
from services.broker.core.views import MailboxView
from services.broker.wire.handshake import Terms
from services.common.core.errors import Reason, ServiceError
from services.common.protobuf import MORE, block, scalar, timestamp, varint
from services.common.rpc.status import status_proto

# A frame is put together from pieces of about this size, which are never divided.
PIECE_BYTES_MAX = 256 * 1024

_Envelope = envelope_pb2.Envelope
_ACCEPTED = pb.MailboxResponse.ACCEPTED_FIELD_NUMBER
_SETTLED = pb.MailboxResponse.SETTLED_FIELD_NUMBER
_RECALLED = pb.MailboxResponse.RECALLED_FIELD_NUMBER
_REFUSALS = pb.MailboxResponse.REFUSALS_FIELD_NUMBER
_REFUSED_TOKEN = bytes((pb.SettleRefusal.ACK_TOKEN_FIELD_NUMBER << 3,))
_SEND_CREDITS = pb.MailboxResponse.SEND_CREDITS_FIELD_NUMBER
# Tags of what is written once per envelope.
_DELIVERY = bytes((pb.MailboxResponse.DELIVERIES_FIELD_NUMBER << 3 | 2,))
_TOKEN = bytes((pb.Delivery.ACK_TOKEN_FIELD_NUMBER << 3,))
_ENVELOPE = bytes((pb.Delivery.ENVELOPE_FIELD_NUMBER << 3 | 2,))
_NUMBER = bytes((pb.Delivery.DELIVERY_NUMBER_FIELD_NUMBER << 3,))
_RETRY = bytes((_Envelope.RETRY_COUNT_FIELD_NUMBER << 3,))
_FIRST_TRY = _RETRY + b"\x00"
_FIRST = _NUMBER + b"\x01"
_SEQUENCE = varint(_Envelope.SEQUENCE_NUMBER_FIELD_NUMBER << 3)
_OUTCOME = bytes((_ACCEPTED << 3 | 2,))
_OUTCOME_ID = bytes((pb.SendOutcome.MESSAGE_ID_FIELD_NUMBER << 3 | 2,))
_OUTCOME_SEQUENCE = bytes((pb.SendOutcome.SEQUENCE_NUMBER_FIELD_NUMBER << 3,))


def parties_suffix(key: DomainKey) -> bytes:
    """Return the sender_id and receiver_id fields that override whatever the sender wrote."""
    return block(_Envelope.SENDER_ID_FIELD_NUMBER, key.sender.encode()) + block(
        _Envelope.RECEIVER_ID_FIELD_NUMBER, key.receiver.encode()
    )


def deliveries(handed_over: Sequence[Delivery]) -> Iterator[bytes]:
    """Yield pieces of a frame with deliveries."""
    parts: list[bytes] = []
    size = 0
    # All of them are for one mailbox, and most of them for any instance.
    sender = receiver = ""
    parties = b""
    accepted_at, at_time = -1, b""
    deadline, by_deadline = -1, b""
    high, high_token = -1, b""
    for token, envelope, number, due in handed_over:
        key, sequence, accepted, draft = envelope
        if key.sender != sender or key.receiver != receiver:
            sender, receiver = key.sender, key.receiver
            parties = parties_suffix(key)
        if accepted != accepted_at:
            accepted_at = accepted
            at_time = timestamp(_Envelope.ACCEPTED_TIME_FIELD_NUMBER, accepted)
        if due != deadline:
            deadline = due
            by_deadline = timestamp(pb.Delivery.ACK_DEADLINE_TIME_FIELD_NUMBER, due) if due else b""
        if token >> 14 != high:
            # Tokens count up: their upper groups are the same for a long time.
            high = token >> 14
            high_token = varint(high)
        head = _TOKEN + (MORE[token & 0x3FFF] + high_token if high else varint(token))
        body = draft.body
        tail = parties + at_time + (_FIRST_TRY if number == 1 else _RETRY + varint(number - 1))
        tail += _SEQUENCE + varint(sequence)
        foot = (_FIRST if number == 1 else _NUMBER + varint(number)) + by_deadline
        inside = varint(len(body) + len(tail))
        length = len(head) + len(inside) + len(body) + len(tail) + len(foot) + 1
        parts += (_DELIVERY, varint(length), head, _ENVELOPE, inside, body, tail, foot)
        size += length
        if size >= PIECE_BYTES_MAX:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def outcomes(answered: Sequence[SendOutcome]) -> bytes:
    """Return a piece of a frame with outcomes of sends."""
    parts: list[bytes] = []
    for message_id, sequence, error, chosen in answered:
        raw = message_id.encode()
        body = _OUTCOME_ID + varint(len(raw)) + raw + _OUTCOME_SEQUENCE + varint(sequence)
        if error is not None:
            body += block(pb.SendOutcome.ERROR_FIELD_NUMBER, status_proto(error).SerializeToString())
        if chosen is not None:
            more = pb.SendOutcome(receiver_id=chosen.receiver, receiver_count=chosen.receiver_count)
            body += more.SerializeToString()
        parts += (_OUTCOME, varint(len(body)), body)
    return b"".join(parts)


def settled(tokens: Sequence[int]) -> bytes:
    """Return a piece of a frame with tokens whose settling is durable."""
    return block(_SETTLED, b"".join([varint(token) for token in tokens]))


def recalled(tokens: Sequence[int]) -> bytes:
    """Return a piece of a frame with tokens that were taken back."""
    return block(_RECALLED, b"".join([varint(token) for token in tokens]))


def refusals(tokens: Sequence[int], error: ServiceError) -> Iterator[bytes]:
    """Yield pieces of a frame with settlings that did nothing, all for the same reason."""
    why = block(pb.SettleRefusal.ERROR_FIELD_NUMBER, status_proto(error).SerializeToString())
    parts: list[bytes] = []
    size = 0
    for token in tokens:
        parts.append(block(_REFUSALS, _REFUSED_TOKEN + varint(token) + why))
        size += len(parts[-1])
        if size >= PIECE_BYTES_MAX:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def tombstones(key: DomainKey, stones: Sequence[Tombstone]) -> bytes:
    """Return a piece of a frame that explains gaps."""
    return pb.MailboxResponse(
        tombstones=[
            pb.Tombstone(
                sender_id=key.sender,
                priority=int(key.lane),  # type: ignore[arg-type]  # the numbers are the same, a test holds it
                sequence_number=stone.sequence,
                message_id=stone.message_id,
                reason=int(stone.reason),  # type: ignore[arg-type]  # as above
                first_sequence_number=stone.first_sequence if stone.first_sequence < stone.sequence else 0,
                receiver_id=key.receiver if is_instance(key.receiver) else "",
            )
            for stone in stones
        ]
    ).SerializeToString()


def welcome(terms: Terms, waiting_count: int, *, ack_deadline_ms: int, payload_bytes_max: int) -> bytes:
    """Return a piece of a frame with the welcome."""
    answer = pb.MailboxWelcome(
        version=terms.version,
        features=sorted(terms.features),
        payload_bytes_max=payload_bytes_max,
        waiting_count=waiting_count,
    )
    answer.ack_deadline.FromMilliseconds(ack_deadline_ms)
    return pb.MailboxResponse(welcome=answer).SerializeToString()


def send_credits(count: int) -> bytes:
    """Return the field that grants credits; once in a frame, since the last one counts."""
    return scalar(_SEND_CREDITS, count)


def envelope_proto(envelope: Envelope, delivery_count: int = 0) -> envelope_pb2.Envelope:
    """Return an envelope as its receiver sees it, after `delivery_count` deliveries."""
    proto = _Envelope.FromString(envelope.draft.body)
    proto.sender_id = envelope.key.sender
    proto.receiver_id = envelope.key.receiver
    proto.accepted_time.FromMilliseconds(envelope.accepted_at)
    proto.retry_count = delivery_count
    proto.sequence_number = envelope.sequence
    return proto


def dead_letter(stored: StoredDeadLetter) -> pb.DeadLetter:
    """Return a dead letter for people."""
    number, letter = stored
    proto = pb.DeadLetter(
        dead_letter_id=number,
        envelope=envelope_proto(letter.envelope, letter.delivery_count),
        reason=int(letter.reason),  # type: ignore[arg-type]  # as in `tombstones`
        message=letter.message,
        delivery_count=letter.delivery_count,
    )
    proto.dead_time.FromMilliseconds(letter.dead_at)
    return proto


def letter_outcomes(asked: Sequence[int], outcomes: Sequence[LetterOutcome]) -> list[pb.DeadLetterOutcome]:
    """Return what became of dead letters, in the order asked; one that was not found is none."""
    known = {outcome.number: outcome for outcome in outcomes}
    missing = ServiceError(
        Reason.MESSAGE_NOT_FOUND, "no dead letter of this mailbox has this id: list them once more"
    )
    told = []
    for number in asked:
        outcome = known.get(number, LetterOutcome(number, 0, missing))
        row = pb.DeadLetterOutcome(dead_letter_id=number, sequence_number=outcome.sequence)
        if outcome.error is not None:
            row.error.CopyFrom(status_proto(outcome.error))
        told.append(row)
    return told


def mailbox(view: MailboxView, dead_letter_count: int) -> pb.GetMailboxResponse:
    """Return what a mailbox holds."""
    response = pb.GetMailboxResponse(
        agent_id=view.owner, dead_letter_count=dead_letter_count, stream_count=view.stream_count
    )
    for lane in Lane:
        depth = view.lanes[lane]
        row = response.lanes.add(
            priority=int(lane),
            waiting_count=depth.waiting_count,
            outstanding_count=depth.outstanding_count,
        )
        if depth.oldest_accepted_at is not None:
            row.oldest_accepted_time.FromMilliseconds(depth.oldest_accepted_at)
    return response
