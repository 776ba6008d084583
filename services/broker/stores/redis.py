"""Mailboxes in Redis: blocks of envelopes in two streams, one field per order domain in a hash.

The same blocks and records as in the SQLite store, for the same reason: an envelope is written once, in the
entry of its commit, and an ack moves a number in its domain's field.

    meta            hash: epoch and life (the fence), number of the newest commit, block and dead letter
    domains         hash: domain id -> next_sequence, cursor and what lies above it, failures, tombstones
    heads           stream: heads of one commit's envelopes, kept until the dedupe window has passed
    bodies          stream: the envelopes themselves, kept until all of the block are settled
    letters         stream: dead letters, for people; letters:<receiver>: sorted set of their numbers
    agents          set; incarnations: hash; subscriptions: set
    routed          hash: id whose receivers the broker chose -> what a repeat is answered;
                    routed_ends: sorted set of when they may be forgotten

All keys share one hash tag, so that a cluster keeps them together, where a script can change them at once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from services.broker.config import RedisSettings
from services.broker.core.model import (
    Batch,
    IncarnationRecord,
    Recovered,
    StoredDeadLetter,
    Subscription,
)
from services.broker.store import Compaction, Retention
from services.broker.stores import blocks, records
from services.broker.stores.ledger import DROP_BLOCKS_MAX, Ledger
from services.broker.stores.redis_letters import RedisLetters
from services.broker.stores.redis_link import (
    CLAIM,
    WRITE,
    Command,
    Entry,
    RedisLink,
    entry_id,
    entry_number,
    in_parts,
    pack,
)
from services.broker.stores.redis_server import check_server
from services.broker.stores.surviving import StoredBlock, move, recover
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant

# Heads and bytes of bodies read with one command.
PAGE_HEADS = 256
PAGE_BYTES = 8 * 1024 * 1024
# Routed ids that one compaction may drop.
DROP_ROUTED_MAX = 10_000


class RedisStore:
    """See `services.broker.store.MailboxStore`. Owned by the event loop.

    `epoch` is that of the leadership under which it is used. After another store with a greater one, or this
    one again, was loaded, `commit` and `compact` raise NOT_COORDINATOR, definite: nothing was kept.
    """

    def __init__(self, settings: RedisSettings, epoch: int) -> None:
        self._settings, self._epoch = settings, epoch
        self._link = RedisLink(settings)
        self._tag = f"{{{settings.prefix}}}:"
        self._letters = RedisLetters(self._link, self._tag)
        self._life = 0
        self._ledger = Ledger()
        # Numbers of the newest commit, block and dead letter.
        self._commit = self._block = self._letter = 0
        # (keep_until, block id) of heads whose bodies are gone, a heap; and of the others by block id.
        self._old_heads: list[tuple[int, int]] = []
        self._heads: dict[int, int] = {}
        # Mailboxes whose dead letters the next compaction counts.
        self._to_count: set[str] = set()

    async def load(self, now: Instant) -> Recovered:
        """Begin a new life of the broker and return what is durable."""
        link = self._link
        await check_server(link, must_sync=self._settings.must_sync)
        self._life = int(await link.run(CLAIM, self._key("meta"), self._epoch))
        # Commit point: nobody else writes from here on, so that what is read piece by piece fits together.
        meta, domains, agents, incarnations, routed, subscriptions = await link.call_all(
            [
                ("HGETALL", self._key("meta")),
                ("HGETALL", self._key("domains")),
                ("SMEMBERS", self._key("agents")),
                ("HGETALL", self._key("incarnations")),
                ("HGETALL", self._key("routed")),
                ("SMEMBERS", self._key("subscriptions")),
            ]
        )
        self._commit = int(meta.get(b"commit", 0))
        self._block = int(meta.get(b"block", 0))
        self._letter = int(meta.get(b"letter", 0))
        ledger, stored = Ledger(), await self._read_blocks()
        found = []
        for domain_id, text in domains.items():
            record = records.decode_domain(text)
            ledger.recover_domain(record, int(domain_id))
            found.append(record)
        # In a thread: there may be a million of them, and the lease has to be kept meanwhile.
        envelopes, remembered = await asyncio.to_thread(recover, stored, ledger, now)
        self._ledger = ledger
        self._heads = {one.block_id: one.keep_until for one in stored if one.body is not None}
        self._old_heads = [(one.keep_until, one.block_id) for one in stored if one.body is None]
        heapq.heapify(self._old_heads)
        self._to_count = {record.key.receiver for record in found}
        await self._check_life()
        return Recovered(
            self._life,
            tuple(found),
            tuple(envelopes),
            tuple(remembered),
            frozenset(agent.decode() for agent in agents),
            tuple(
                IncarnationRecord(agent, instance, int(incarnation))
                for who, incarnation in incarnations.items()
                for agent, instance in [json.loads(who)]
            ),
            tuple(
                one
                for one in itertools.starmap(records.decode_routed, routed.items())
                if one.keep_until > now
            ),
            frozenset(Subscription(*json.loads(one)) for one in subscriptions),
        )

    async def commit(self, batch: Batch) -> None:
        """Make `batch` durable."""
        ledger = self._ledger
        ids = ledger.ids_of(batch.domains)
        block = self._block + bool(batch.envelopes)
        letter = self._letter + len(batch.dead_letters)
        commands: list[Command] = []
        heads = body = b""
        if batch.envelopes:
            heads, body = blocks.encode(batch.envelopes, ids)
            commands += self._add_block(block, batch.keep_until, heads, body)
        fields = [(ids[record.key], records.encode_domain(record)) for record in batch.domains]
        commands += in_parts("HSET", self._key("domains"), fields)
        commands += self._letters.add(batch.dead_letters, self._letter + 1)
        if batch.dead_letters_gone:
            commands += self._letters.drop(await self._letters.owners(batch.dead_letters_gone))
        commands += in_parts("SADD", self._key("agents"), [(agent,) for agent in batch.agents_known])
        commands += in_parts("SREM", self._key("agents"), [(agent,) for agent in batch.agents_forgotten])
        commands += self._routing_commands(batch)
        for agent, instance, incarnation in batch.incarnations:
            who = json.dumps([agent, instance])
            if incarnation:
                commands.append(("HSET", self._key("incarnations"), who, incarnation))
            else:
                commands.append(("HDEL", self._key("incarnations"), who))
        await self._write(
            commands, block, letter, frees=not (batch.envelopes or batch.dead_letters or batch.routed)
        )
        # Commit point: the batch is in Redis, and in its file. What is remembered here follows, so that a
        # failed commit leaves it as it was.
        ledger.add_domains(ids)
        self._letter = letter
        if batch.envelopes:
            self._block = block
            self._heads[block] = batch.keep_until
            places = [(ids[one.key], one.sequence) for one in batch.envelopes]
            ledger.add_block(block, places, len(heads) + len(body))
        for record in batch.domains:
            ledger.settle(record)
        self._to_count.update(one.envelope.key.receiver for one in batch.dead_letters)

    async def compact(self, now: Instant, retention: Retention) -> Compaction:
        """Free what is not needed any longer."""
        ledger, counted = self._ledger, self._to_count
        ended = self._take_ended_heads(now)
        self._to_count = set()
        try:
            done = await self._compact(now, retention, ended, counted)
        except ServiceError:
            # Another time: what was chosen is chosen again.
            self._to_count |= counted
            for one in ended:
                heapq.heappush(self._old_heads, one)
            raise
        self._to_count |= counted
        return replace(done, is_done=not (ledger.spent or len(ended) == DROP_BLOCKS_MAX or counted))

    async def _compact(
        self, now: Instant, retention: Retention, ended: Sequence[tuple[int, int]], to_count: set[str]
    ) -> Compaction:
        ledger = self._ledger
        spent, sparse = ledger.choose_spent(), ledger.choose_sparse(self._block + 1)
        moved = move(await self._read(sparse), ledger)
        block = self._block + (moved is not None)
        commands: list[Command] = []
        if moved is not None:
            commands += self._add_block(block, moved.keep_until, moved.heads, moved.body)
        gone = [*spent, *sparse]
        commands += in_parts("XDEL", self._key("bodies"), [(entry_id(one),) for one in gone])
        commands += in_parts("XDEL", self._key("heads"), [(entry_id(one),) for _, one in ended])
        letters = await self._letters.find_old(now, retention, to_count)
        commands += self._letters.drop(letters)
        commands += await self._drop_routed(now)
        if commands:
            await self._write(commands, block, self._letter, frees=True)
        # Commit point, as in `commit`.
        del ledger.spent[: len(spent)]
        for block_id in gone:
            ledger.drop_block(block_id)
            heapq.heappush(self._old_heads, (self._heads.pop(block_id), block_id))
        if moved is not None:
            self._block = block
            self._heads[block] = moved.keep_until
            ledger.forget_extents(set(sparse))
            ledger.add_block(block, moved.places, moved.bytes_stored)
        size = sum(one.bytes_stored for one in ledger.blocks.values())
        dropped = Counter(receiver for receiver, _ in letters)
        return Compaction(dict(dropped), len(spent), len(sparse), size)

    async def list_dead_letters(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a mailbox with numbers above `after`, oldest first."""
        return await self._letters.list_after(receiver, after, limit)

    async def find_dead_letters(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        """Return those of `numbers` that are dead letters of this mailbox."""
        return await self._letters.find(receiver, numbers)

    async def count_dead_letters(self, receiver: str) -> int:
        """Return how many dead letters of a mailbox are kept."""
        return await self._letters.count(receiver)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._link.close()

    def _key(self, name: str) -> str:
        return self._tag + name

    async def _write(
        self, commands: Sequence[Command], block: int, letter: int, *, frees: bool = False
    ) -> None:
        """Run commands and note the numbers; with `frees` also when the memory is full."""
        meta, commit = self._key("meta"), self._commit + 1
        numbers: Command = ("HSET", meta, "commit", commit, "block", block, "letter", letter)
        # Redis asks for memory at the first command of a script that writes, and only if that one can grow:
        # `HSET` is refused, and all behind it, while a deletion, of nothing here, goes on with all behind it.
        first: list[Command] = [("HDEL", meta, "none")] if frees else []
        await self._link.run(WRITE, meta, self._life, *pack([*first, numbers, *commands]))
        self._commit = commit

    async def _check_life(self) -> None:
        """Make sure that nobody took over while much was read; raises NOT_COORDINATOR."""
        if int(await self._link.call("HGET", self._key("meta"), "life") or 0) != self._life:
            raise ServiceError(
                Reason.NOT_COORDINATOR, "another broker replica took over while this one loaded"
            )

    # Blocks.

    def _add_block(self, block_id: int, keep_until: int, heads: bytes, body: bytes) -> list[Command]:
        """Return what adds a block; `n` lets its reader know how much `bodies` has of it."""
        entry = entry_id(block_id)
        return [
            ("XADD", self._key("heads"), entry, "k", keep_until, "n", len(body), "h", heads),
            ("XADD", self._key("bodies"), entry, "b", body),
        ]

    async def _read_blocks(self) -> list[StoredBlock]:
        """Return every block, oldest first."""
        heads: list[tuple[int, int, int, bytes]] = []
        after = "-"
        while after:
            page = await self._link.call("XRANGE", self._key("heads"), after, "+", "COUNT", PAGE_HEADS)
            heads += [_head(entry) for entry in page]
            after = f"({page[-1][0].decode()}" if len(page) == PAGE_HEADS else ""
        bodies: dict[int, bytes] = {}
        for first, last in _pages([(block_id, size) for block_id, _, size, _ in heads]):
            page = await self._link.call("XRANGE", self._key("bodies"), entry_id(first), entry_id(last))
            bodies |= {entry_number(entry[0]): entry[1][b"b"] for entry in page}
        return [StoredBlock(one, until, content, bodies.get(one)) for one, until, _, content in heads]

    async def _read(self, block_ids: Sequence[int]) -> list[StoredBlock]:
        stored = []
        for block_id in block_ids:
            entry = entry_id(block_id)
            (head,), (body,) = await self._link.call_all(
                [("XRANGE", self._key(name), entry, entry) for name in ("heads", "bodies")]
            )
            _, keep_until, _, heads = _head(head)
            stored.append(StoredBlock(block_id, keep_until, heads, body[1][b"b"]))
        return stored

    def _take_ended_heads(self, now: Instant) -> list[tuple[int, int]]:
        """Return heads that the dedupe window does not need and that belong to no body."""
        old = self._old_heads
        ended: list[tuple[int, int]] = []
        while old and old[0][0] <= now and len(ended) < DROP_BLOCKS_MAX:
            ended.append(heapq.heappop(old))
        return ended

    # Routing.

    def _routing_commands(self, batch: Batch) -> list[Command]:
        routed, ends = self._key("routed"), self._key("routed_ends")
        ids = [records.encode_routed(one) for one in batch.routed]
        until = [(one.keep_until, who) for one, (who, _) in zip(batch.routed, ids, strict=True)]
        subscribed, unsubscribed = (
            [(json.dumps(one),) for one in some] for some in (batch.subscribed, batch.unsubscribed)
        )
        return [
            *in_parts("HSET", routed, ids),
            *in_parts("ZADD", ends, until),
            *in_parts("SADD", self._key("subscriptions"), subscribed),
            *in_parts("SREM", self._key("subscriptions"), unsubscribed),
        ]

    async def _drop_routed(self, now: Instant) -> list[Command]:
        """Return what drops routed ids that the dedupe window does not need."""
        routed, ends = self._key("routed"), self._key("routed_ends")
        ended = await self._link.call("ZRANGEBYSCORE", ends, "-inf", now, "LIMIT", 0, DROP_ROUTED_MAX)
        fields = [(who,) for who in ended]
        return [*in_parts("HDEL", routed, fields), *in_parts("ZREM", ends, fields)]


def _pages(sizes: Collection[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Yield (first, last) of runs of blocks whose bodies together have about `PAGE_BYTES`."""
    first, last, total = 0, 0, 0
    for block_id, size in sizes:
        if total and total + size > PAGE_BYTES:
            yield first, last
            total = 0
        first, last, total = first if total else block_id, block_id, total + size + 1
    if total:
        yield first, last


def _head(entry: Entry) -> tuple[int, int, int, bytes]:
    name, fields = entry
    return entry_number(name), int(fields[b"k"]), int(fields[b"n"]), fields[b"h"]
