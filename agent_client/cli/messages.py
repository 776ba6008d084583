"""`muster message …`: envelopes to and from agents, as an operator sees them."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from typing import Any

from muster.broker.v1 import broker_service_pb2 as broker
from muster.common.v1 import priority_pb2

from agent_client.cli import deadletters, topics
from agent_client.cli.mailbox import receiving, send
from agent_client.cli.output import OK, PATIENCE_S, Output, clock, complain
from agent_client.cli.words import Commands, command, group, positive, seconds
from agent_client.client import Client
from agent_client.core.addresses import TOPIC
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.link import Envelope
from agent_client.loop import link_thread
from agent_client.payload import encode
from agent_client.plain import to_plain
from agent_client.wire import envelope_to_proto, moment, receipt_from_proto

TYPES = [kind.value for kind in MessageType]
PRIORITIES = [priority.value for priority in Priority]
SEND_HELP = """\
PAYLOAD is JSON when it reads as JSON, else text; "-" reads standard input. What it is sent as is durable
when the command ends. Answers come to your own mailbox: `muster message receive`.

  muster message send field '{"road": "r8", "closed": true}' --type resource-request
"""
RECEIVER_HELP = (
    "an agent, operator/NAME, skill/SKILL (the least loaded agent that has it), collaboration/ID (each"
    " member) or topic/TOPIC (each subscriber)"
)
RECEIVE_HELP = """\
Each message is acknowledged when it was printed. One command receives at a time: a new one ends the one
before.
"""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    message = group(commands, common, "message", "mailboxes and dead letters")
    sent = command(message, common, "send", _send, "send a message", SEND_HELP)
    sent.add_argument("receiver", metavar="RECEIVER", help=RECEIVER_HELP)
    _describe(sent)
    published = command(message, common, "publish", _publish, "send a message to a topic's subscribers")
    published.add_argument("topic", metavar="TOPIC", help="segments with dots between them: roads.closed")
    _describe(published)
    topics.add(message, common)
    got = command(message, common, "receive", _receive, "print what comes to your own mailbox", RECEIVE_HELP)
    got.add_argument("--count", type=positive, metavar="N", help="end after N messages")
    got.add_argument("--timeout", type=seconds, metavar="S", help="end when none came for so long")
    box = command(message, common, "box", _box, "show how full a mailbox is")
    box.add_argument("agent", nargs="?", default="", help="whose mailbox; your own when left out")
    deadletters.add(message, common)


def _describe(sent: argparse.ArgumentParser) -> None:
    sent.add_argument("payload", metavar="PAYLOAD", help="what it says")
    sent.add_argument("--text", action="store_true", help="PAYLOAD is text, also when it reads as JSON")
    sent.add_argument(
        "--type",
        type=_word,
        choices=TYPES,
        default="STATUS_UPDATE",
        metavar="TYPE",
        help=f"{', '.join(TYPES)} (default STATUS_UPDATE)",
    )
    sent.add_argument(
        "--priority",
        type=_word,
        choices=PRIORITIES,
        default="NORMAL",
        metavar="PRIORITY",
        help=f"{', '.join(PRIORITIES)} (default NORMAL)",
    )
    sent.add_argument("--ttl", type=seconds, metavar="S", help="how long it may wait (default 300 s)")
    sent.add_argument("--correlation-id", default="", metavar="ID", help="the conversation it belongs to")
    sent.add_argument("--collaboration", default="", metavar="ID", help="the collaboration it belongs to")
    sent.add_argument(
        "--require-receiver", action="store_true", help="refused when a topic or team has nobody else"
    )


async def _send(options: argparse.Namespace, output: Output) -> int:
    return await _send_to(options.receiver, options, output)


async def _publish(options: argparse.Namespace, output: Output) -> int:
    return await _send_to(f"{TOPIC}{options.topic}", options, output)


async def _send_to(receiver: str, options: argparse.Namespace, output: Output) -> int:
    text = sys.stdin.read() if options.payload == "-" else options.payload
    envelope = Envelope(
        message_id=f"m-{secrets.token_hex(12)}",
        receiver=receiver,
        message_type=MessageType(options.type),
        payload=encode(text if options.text else _value(text)),
        priority=Priority(options.priority),
        ttl=options.ttl,
        correlation_id=options.correlation_id,
        collaboration_id=options.collaboration,
        requires_receiver=options.require_receiver,
    )
    outcome = await link_thread().run(send(envelope_to_proto(envelope), PATIENCE_S))
    receipt = receipt_from_proto(outcome, receiver)
    plain = {
        "message_id": envelope.message_id,
        "receiver_id": receipt.receiver,
        "sequence_number": receipt.sequence_number,
        "receiver_count": receipt.receiver_count,
    }
    if receipt.receiver:
        line = f"is stored for {receipt.receiver}, number {receipt.sequence_number} from you in its lane"
    else:
        line = f"is stored for {receipt.receiver_count} receivers of {receiver}"
    output.item(plain, f"{envelope.message_id} {line}")
    return OK


async def _receive(options: argparse.Namespace, output: Output) -> int:
    # On the link loop as a whole: what was printed and what was acknowledged stay together.
    return await link_thread().run(_print_incoming(options.count, options.timeout, output))


async def _print_incoming(count: int | None, timeout: float | None, output: Output) -> int:
    async with receiving() as incoming:
        while count is None or count > 0:
            try:
                async with asyncio.timeout(timeout):
                    delivery = await incoming.next()
            except TimeoutError:
                break
            output.item(_plain(delivery), _line(delivery))
            if not await incoming.ack(delivery):
                complain(f"{delivery.envelope.message_id} was taken back meanwhile; it comes again")
            count = None if count is None else count - 1
    return OK


async def _box(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        box = await client.mailbox(options.agent)
    rows = [
        (
            priority_pb2.Priority.Name(lane.priority).removeprefix("PRIORITY_"),
            lane.waiting_count,
            lane.outstanding_count,
            clock(moment(lane.oldest_accepted_time) if lane.HasField("oldest_accepted_time") else None),
        )
        for lane in box.lanes
    ]
    output.table(("LANE", "WAITING", "OUTSTANDING", "OLDEST"), rows, [to_plain(box)], "the mailbox is empty")
    output.line(f"{box.dead_letter_count} dead letters, {box.stream_count} streams receive")
    return OK


def _word(text: str) -> str:
    return text.upper().replace("-", "_")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(delivery: broker.Delivery) -> dict[str, Any]:
    return {"delivery_number": delivery.delivery_number, **to_plain(delivery.envelope)}


def _line(delivery: broker.Delivery) -> str:
    envelope = delivery.envelope
    plain = to_plain(envelope)
    kind, lane, value = plain["message_type"], plain["priority"], plain["payload"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    again = f"  (delivery {delivery.delivery_number})" if delivery.delivery_number > 1 else ""
    return f"{clock(moment(envelope.accepted_time))}  {envelope.sender_id}  {kind}  {lane}  {text}{again}"
