"""`muster message deadletters list|show|replay|drop`: messages that were given up, what becomes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from muster.broker.v1 import broker_service_pb2 as broker

from agent_client.cli.output import FAILED, OK, PATIENCE_S, Output, clock, complain
from agent_client.cli.words import Commands, command, natural, positive
from agent_client.client import Client
from agent_client.errors import from_status
from agent_client.plain import to_plain
from agent_client.wire import moment

HELP = """\
  muster message deadletters [list] [AGENT] [--limit N]   what was given up, oldest first, with its ID
  muster message deadletters show AGENT ID                one of them, with its payload
  muster message deadletters replay AGENT ID...           send it once more: a new message of its sender, at
                                                          the end of its lane, with its whole time to live
  muster message deadletters drop AGENT ID...             forget it

Your own mailbox is operator/NAME; list takes it when AGENT is left out. --all stands for every ID that is
there now. Replaying and dropping are recorded before they happen. Exit code 1: at least one ID was refused,
and stderr says which and why; the others are done.
"""
# One request may name so many (broker_service.proto).
_IDS_MAX = 1_000

_Action = Callable[[Client, list[str], argparse.Namespace, Output], Awaitable[int]]


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    dead = command(
        commands, common, "deadletters", _run, "list, show, replay or drop what was given up", HELP
    )
    dead.usage = "muster message deadletters [list|show|replay|drop] [AGENT] [ID ...] [--all] [--limit N]"
    # Plain words, not subparsers: `deadletters AGENT` means to list.
    dead.add_argument("words", nargs="*", metavar="WORD", help="what to do, whose, and which; see below")
    dead.add_argument("--all", action="store_true", help="replay or drop all that are there now")
    dead.add_argument("--limit", type=positive, default=100, help="list at most this many (default 100)")
    dead.set_defaults(refuse=dead.error)


async def _run(options: argparse.Namespace, output: Output) -> int:
    words: list[str] = list(options.words)
    actions: dict[str, _Action] = {
        "list": _list,
        "show": _show,
        "replay": partial(_change, "replay"),
        "drop": partial(_change, "drop"),
    }
    action = words.pop(0) if words and words[0] in actions else "list"
    async with Client(patience=PATIENCE_S) as client:
        return await actions[action](client, words, options, output)


async def _list(client: Client, words: list[str], options: argparse.Namespace, output: Output) -> int:
    if len(words) > 1 or options.all:
        options.refuse("list takes one AGENT, or none for your own mailbox")
    agent = words[0] if words else ""
    letters = await client.dead_letters(agent, limit=options.limit)
    rows = [
        (
            letter.dead_letter_id,
            clock(moment(letter.dead_time)),
            letter.envelope.sender_id,
            letter.envelope.message_id,
            _reason(letter),
            letter.message,
        )
        for letter in letters
    ]
    columns = ("ID", "WHEN", "SENDER", "MESSAGE", "REASON", "WHY")
    empty = f"no dead letters for {agent or 'you'}"
    output.table(columns, rows, map(to_plain, letters), empty, folds=("MESSAGE", "WHY"))
    return OK


async def _show(client: Client, words: list[str], options: argparse.Namespace, output: Output) -> int:
    agent, ids = _agent_and_ids(words, options)
    if len(ids) != 1 or options.all:
        options.refuse("show takes AGENT and one ID")
    letters = await client.dead_letters(agent, limit=None)
    letter = next((one for one in letters if one.dead_letter_id == ids[0]), None)
    if letter is None:
        complain(f"{agent} has no dead letter {ids[0]}; `muster message deadletters {agent}` lists them")
        return FAILED
    output.item(to_plain(letter), "\n".join(_lines(letter)))
    return OK


async def _change(
    what: str, client: Client, words: list[str], options: argparse.Namespace, output: Output
) -> int:
    agent, ids = _agent_and_ids(words, options)
    if bool(ids) is options.all:
        options.refuse(f"{what} takes AGENT and either IDs or --all")
    if options.all:
        ids = [letter.dead_letter_id for letter in await client.dead_letters(agent, limit=None)]
    change = client.replay_dead_letters if what == "replay" else client.drop_dead_letters
    refused = 0
    for start in range(0, len(ids), _IDS_MAX):
        for outcome in await change(agent, ids[start : start + _IDS_MAX]):
            refused += _tell(what, outcome, output)
    if not ids:
        output.line(f"no dead letters for {agent}")
    return FAILED if refused else OK


def _agent_and_ids(words: Sequence[str], options: argparse.Namespace) -> tuple[str, list[int]]:
    if not words:
        options.refuse("say whose: an agent's name, or operator/NAME for your own mailbox")
    try:
        return words[0], [natural(word) for word in words[1:]]
    except argparse.ArgumentTypeError as error:
        options.refuse(f"an ID of a dead letter is a number: {error}")
        raise


def _tell(what: str, outcome: broker.DeadLetterOutcome, output: Output) -> bool:
    """Print one outcome; return whether it is a refusal."""
    if outcome.HasField("error"):
        error = from_status(outcome.error)
        complain(f"{outcome.dead_letter_id}: {error.reason}: {error.message}")
        plain = {
            "dead_letter_id": outcome.dead_letter_id,
            "error": {"reason": error.reason, "message": error.message},
        }
        if output.as_json:
            output.json(plain)
        return True
    done = f"is sent once more as number {outcome.sequence_number}" if what == "replay" else "is forgotten"
    plain = {"dead_letter_id": outcome.dead_letter_id}
    if what == "replay":
        plain["sequence_number"] = outcome.sequence_number
    output.item(plain, f"{outcome.dead_letter_id} {done}")
    return False


def _reason(letter: broker.DeadLetter) -> str:
    return broker.TombstoneReason.Name(letter.reason).removeprefix("TOMBSTONE_REASON_")


def _lines(letter: broker.DeadLetter) -> Iterator[str]:
    plain: dict[str, Any] = to_plain(letter.envelope)
    dead_at = clock(moment(letter.dead_time))
    yield f"dead letter {letter.dead_letter_id}  {dead_at}  {_reason(letter)}: {letter.message}"
    yield f"delivered {letter.delivery_count} times, accepted {clock(moment(letter.envelope.accepted_time))}"
    for name, value in plain.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"  {name}: {text}"
