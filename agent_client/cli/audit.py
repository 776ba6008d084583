"""`muster audit query|tail|verify|prove`: what happened, and that the record of it is true."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from muster.audit.v1 import entry_pb2

from agent_client.audit import AuditLog, Verified
from agent_client.cli.output import OK, PATIENCE_S, Output, clock
from agent_client.cli.steps import Steps
from agent_client.cli.words import Commands, command, group, instant, natural, positive
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


async def _query(options: argparse.Namespace, output: Output) -> int:
    async with AuditLog(patience=PATIENCE_S) as log:
        entries = await log.query(
            actor=options.actor,
            operation=options.operation,
            subject=options.subject,
            collaboration_id=options.collaboration,
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
    if output.as_json:
        output.json({**asdict(proven), "entry": to_plain(proven.entry), "proof": list(proven.proof)})
        return OK
    output.line(
        f"Entry {proven.leaf_index} is in the log of {proven.tree_size} entries ({len(proven.proof)} hashes):"
    )
    output.line(f"  {clock(moment(proven.entry.event_time))}  {_facts(proven.entry)}")
    output.line(f"  root {proven.root_hash}")
    return OK


def _row(logged: entry_pb2.LoggedEntry) -> tuple[object, ...]:
    entry = logged.entry
    return (
        logged.leaf_index,
        clock(moment(entry.event_time)),
        entry.actor,
        entry.operation,
        entry.subject,
        _outcome(entry),
    )


def _facts(entry: entry_pb2.Entry) -> str:
    return f"{entry.actor}  {entry.operation}  {entry.subject}  {_outcome(entry)}"


def _outcome(entry: entry_pb2.Entry) -> str:
    name = entry_pb2.Outcome.Name(entry.outcome).removeprefix("OUTCOME_")
    return f"{name} {entry.reason}" if entry.reason else name


def _plain(logged: entry_pb2.LoggedEntry) -> dict[str, object]:
    return {"leaf_index": logged.leaf_index, "entry": to_plain(logged.entry)}
