"""`muster message send|box|deadletters`: envelopes between agents, as an operator sees them."""

from __future__ import annotations

import argparse

from muster.broker.v1 import broker_service_pb2 as broker
from muster.common.v1 import priority_pb2

from agent_client.cli.output import Output, clock
from agent_client.cli.words import Commands, command, group
from agent_client.client import Client
from agent_client.plain import to_plain
from agent_client.wire import moment


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    message = group(commands, "message", "mailboxes and dead letters")
    box = command(message, common, "box", _box, "show how full an agent's mailbox is")
    box.add_argument("agent")
    dead = command(message, common, "deadletters", _dead, "list messages that were given up")
    dead.add_argument("agent", help="whose messages")
    dead.add_argument("--limit", type=int, default=100, help="at most this many (default 100)")


async def _box(options: argparse.Namespace, output: Output) -> int:
    async with Client() as client:
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
    return 0


async def _dead(options: argparse.Namespace, output: Output) -> int:
    async with Client() as client:
        letters = await client.dead_letters(options.agent, limit=options.limit)
    rows = [
        (
            clock(moment(letter.dead_time)),
            letter.envelope.sender_id,
            letter.envelope.message_id,
            broker.TombstoneReason.Name(letter.reason).removeprefix("TOMBSTONE_REASON_"),
            letter.message,
        )
        for letter in letters
    ]
    columns = ("WHEN", "SENDER", "MESSAGE", "REASON", "WHY")
    output.table(columns, rows, map(to_plain, letters), f"no dead letters for {options.agent}")
    return 0
