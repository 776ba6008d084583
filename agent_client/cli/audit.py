"""`muster audit query|tail|verify|prove`: what happened, and that the record of it is true."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from muster.audit.v1 import entry_pb2

from agent_client.audit import AuditLog, Verified
from agent_client.cli.output import OK, PATIENCE_S, Output, clock
from agent_client.cli.steps import Steps
from agent_client.cli.words import Commands, command, group, instant, natural, positive
from agent_client.errors import NotFoundError
from agent_client.operations import operations, summary
from agent_client.plain import to_plain
from agent_client.wire import moment

TIME_HELP = "RFC 3339; local time unless it names a zone"
OUTCOMES = [name.removeprefix("OUTCOME_") for name, value in entry_pb2.Outcome.items() if value]


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    audit = group(commands, common, "audit", "the log of everything that happened")
    query = command(audit, common, "query", _query, "list entries that match all conditions, oldest first")
    query.add_argument("--collaboration", default="", help="of this collaboration")
    query.add_argument("--actor", default="", help='who acted, for example "agent/field"')
    query.add_argument("--operation", default="", help='what was done; "task.*" for all that begins so')
    query.add_argument("--subject", default="", help='on what; may end in "*"')
    query.add_argument("--cause", default="", help="caused by this request, attempt or message")
    query.add_argument("--service", default="", help="recorded by this service")
    query.add_argument("--outcome", action="append", default=[], choices=OUTCOMES, help="may be repeated")
    query.add_argument("--since", type=instant, metavar="TIME", help=TIME_HELP)
    query.add_argument("--until", type=instant, metavar="TIME", help=TIME_HELP)
    query.add_argument("--limit", type=positive, default=200, help="at most this many (default 200)")
    tail = command(audit, common, "tail", _tail, "follow the log; Ctrl-C ends it")
    tail.add_argument("--collaboration", default="", help="of this collaboration")
    tail.add_argument("--from-index", type=natural, metavar="N", help="from this leaf on; else from the end")
    verify_text = "check signature, every entry, and that the log only grew since the last time"
    command(
        audit,
        common,
        "verify",
        _verify,
        verify_text,
        "The log's key is trusted at first sight and kept in the plane's folder as audit.key, the newest\n"
        "verified checkpoint as verified-checkpoint. Nothing of the service's code is used to check it.",
    )
    prove = command(audit, common, "prove", _prove, "prove that one entry is in the log")
    prove.add_argument("index", type=natural, help="the entry's leaf index, as `muster audit query` shows it")
    prove.add_argument("--subject", default="", help="show this one of several operations that it records")


async def _query(options: argparse.Namespace, output: Output) -> int:
    async with AuditLog(patience=PATIENCE_S) as log:
        entries = await log.query(
            actor=options.actor,
            operation=options.operation,
            subject=options.subject,
            collaboration_id=options.collaboration,
            cause_id=options.cause,
            service=options.service,
            outcomes=tuple(options.outcome),
            start=options.since,
            end=options.until,
            limit=options.limit,
        )
    rows = [_row(logged) for logged in entries]
    columns = ("INDEX", "WHEN", "ACTOR", "OPERATION", "SUBJECT", "OUTCOME")
    output.table(columns, rows, map(_plain, entries), "no entry matches", folds=("SUBJECT", "OUTCOME"))
    return OK


async def _tail(options: argparse.Namespace, output: Output) -> int:
    async with AuditLog(patience=PATIENCE_S) as log:
        async for logged in log.tail(from_index=options.from_index, collaboration_id=options.collaboration):
            output.item(_plain(logged), "  ".join(str(cell) for cell in _row(logged)))
    return OK


async def verify(log: AuditLog, output: Output) -> Verified:
    """Verify the log and say what was established."""
    with Steps(output, "checking entries") as steps:
        verified = await log.verify(steps.report)
    grew = "" if verified.previous_size is None else f", grown from {verified.previous_size}"
    output.item(
        {"verified": True, **asdict(verified)},
        f"The log {verified.origin} is whole: {verified.tree_size} entries{grew}, signed, root "
        f"{verified.root_hash[:16]}…",
    )
    return verified


async def _verify(_: argparse.Namespace, output: Output) -> int:
    async with AuditLog(patience=PATIENCE_S) as log:
        await verify(log, output)
    return OK


async def _prove(options: argparse.Namespace, output: Output) -> int:
    async with AuditLog(patience=PATIENCE_S) as log:
        proven = await log.prove(options.index)
    shown = [one for one in operations(proven.entry) if options.subject in ("", one.subject)]
    if not shown:
        raise NotFoundError(
            f"entry {proven.leaf_index} records nothing about {options.subject}", reason="ENTRY_NOT_FOUND"
        )
    if output.as_json:
        plain = {**asdict(proven), "entry": to_plain(proven.entry), "proof": list(proven.proof)}
        output.json(plain | _told(proven.entry, shown))
        return OK
    output.line(
        f"Entry {proven.leaf_index} is in the log of {proven.tree_size} entries ({len(proven.proof)} hashes):"
    )
    for one in shown:
        output.line(f"  {clock(moment(one.event_time))}  {_facts(one)}")
    output.line(f"  root {proven.root_hash}")
    return OK


def _row(logged: entry_pb2.LoggedEntry) -> tuple[object, ...]:
    entry = logged.entry
    return (
        logged.leaf_index,
        clock(moment(entry.event_time)),
        entry.actor,
        entry.operation,
        summary(entry, logged.group_positions),
        _outcome(entry),
    )


def _facts(entry: entry_pb2.Entry) -> str:
    details = [f"{name}={entry.attributes[name]}" for name in sorted(entry.attributes)]
    details += [f"cause={entry.cause_id}"] if entry.cause_id else []
    return "  ".join([entry.actor, entry.operation, entry.subject, _outcome(entry), *details])


def _outcome(entry: entry_pb2.Entry) -> str:
    name = entry_pb2.Outcome.Name(entry.outcome).removeprefix("OUTCOME_")
    return f"{name} {entry.reason}" if entry.reason else name


def _plain(logged: entry_pb2.LoggedEntry) -> dict[str, object]:
    entry = logged.entry
    shown = operations(entry, logged.group_positions)
    return {"leaf_index": logged.leaf_index, "entry": to_plain(entry)} | _told(entry, shown)


def _told(entry: entry_pb2.Entry, shown: Sequence[entry_pb2.Entry]) -> dict[str, object]:
    """Return those of an entry's several operations that are shown, each as an entry of its own."""
    return {"operations": [to_plain(one) for one in shown]} if entry.HasField("group") else {}
