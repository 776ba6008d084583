"""`muster message publish|subscribe|unsubscribe|subscriptions`: topics, as an operator sees them."""

from __future__ import annotations

import argparse

from agent_client.cli.output import OK, PATIENCE_S, Output
from agent_client.cli.words import Commands, command
from agent_client.client import Client

SUBSCRIBE_HELP = """\
What is published to matching topics from now on comes to the mailbox, until `unsubscribe`. "*" stands for
exactly one segment of a topic, "**" at the end for one or more:

  muster message subscribe 'roads.*'
"""


def add(message: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands of `muster message` that are about subscriptions."""
    made = command(
        message, common, "subscribe", _subscribe, "have a mailbox get what is published", SUBSCRIBE_HELP
    )
    ended = command(message, common, "unsubscribe", _unsubscribe, "end a subscription")
    for one in (made, ended):
        one.add_argument("pattern", metavar="PATTERN", help="a topic, or a pattern of topics")
        one.add_argument("--agent", default="", help="whose mailbox; your own when left out")
    listed = command(message, common, "subscriptions", _list, "list what a mailbox is subscribed to")
    listed.add_argument("agent", nargs="?", default="", help="whose mailbox; your own when left out")


async def _subscribe(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        await client.subscribe(options.pattern, agent=options.agent)
    return _told(options, output, "subscribed to")


async def _unsubscribe(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        await client.unsubscribe(options.pattern, agent=options.agent)
    return _told(options, output, "not subscribed to")


async def _list(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        patterns = await client.subscriptions(options.agent)
    rows = [(pattern,) for pattern in patterns]
    plain = [{"agent_id": options.agent, "pattern": pattern} for pattern in patterns]
    output.table(("PATTERN",), rows, plain, "no subscriptions")
    return OK


def _told(options: argparse.Namespace, output: Output, what: str) -> int:
    whose = options.agent or "your mailbox"
    output.item(
        {"agent_id": options.agent, "pattern": options.pattern}, f"{whose} is {what} {options.pattern}"
    )
    return OK
