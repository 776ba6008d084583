"""A course of appends over a `LogStore`, with the machine in front of it and no event loop, and its check."""

from collections.abc import Callable, Iterator
from pathlib import Path

from agent_client.verify import Checkpoint, LogVerification, VerifierKey, verify_checkpoint
from services.audit.core.checkpoint import TreeHead, sign, verifier_key
from services.audit.core.effects import (
    Acknowledge,
    Commit,
    Effect,
    Integrate,
    LimitReached,
    Publish,
    Refuse,
)
from services.audit.core.events import (
    CommitFailed,
    Committed,
    Event,
    FrameArrived,
    Integrated,
    IntegrationFailed,
    TurnEnded,
)
from services.audit.core.machine import LogMachine
from services.audit.core.model import Frame, LogLimits, Producer
from services.audit.core.tiles import CHECKPOINT_PATH, bundle_at, decode_bundle, parse_path
from services.audit.core.tree import Tree, grow
from services.audit.store import LogStore
from services.audit.stores.disk import Disk
from services.audit.stores.files import FilesLog
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant

ORIGIN = "muster.internal/audit"
PRODUCERS = (Producer("broker", "broker-1", "spool"), Producer("registry", "registry-1", "spool"))
LIMITS = LogLimits(checkpoint_interval_ms=10, integration_retry_ms=10)
# Frames of the course: (producer, leaves). They cross a tile's border and several segments.
COURSE = ((0, 3), (1, 100), (0, 90), (1, 70), (0, 1), (1, 30), (0, 5))
SEGMENT_BYTES_MAX = 3_000
DIRECTORY = Path("/data/audit")


def leaf(producer: Producer, sequence: int) -> bytes:
    return b"%s %d %s" % (producer.service.encode(), sequence, b"." * (sequence % 11))


class Course:
    """Producers that send until everything is acked, whatever the store does."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        # What producers know; it outlives the process.
        self.acked = dict.fromkeys(PRODUCERS, 0)
        self.sent = dict.fromkeys(PRODUCERS, 0)
        self.wanted = dict.fromkeys(PRODUCERS, 0)
        for which, count in COURSE:
            self.wanted[PRODUCERS[which]] += count
        # Every checkpoint that anyone may have seen.
        self.seen: set[bytes] = set()
        self.errors: list[ServiceError] = []
        self.now = 0

    def open(self, store: LogStore) -> None:
        self.store = store
        opened = store.open(first_start=False)
        self.signer = opened.signer
        self.machine = LogMachine(opened.recovered, LIMITS)
        self.seen.add(opened.recovered.checkpoint)
        for producer in PRODUCERS:
            assert self.acked[producer] <= self.machine.durable_sequence(producer) <= self.sent[producer]

    def run(self, see: Callable[[], bytes | None], attempts: int = 50) -> None:
        """Send all frames, again and again, until all is acked and published."""
        while any(self.acked[one] < self.wanted[one] for one in PRODUCERS) or not self.machine.idle:
            attempts -= 1
            assert attempts, f"no end of it: {self.machine!r} {self.errors[-3:]}"
            for frame in self._frames():
                self._do([FrameArrived(frame)], see)
                self.now += 7
            self.now += 1_000
            self._do([], see)

    def _frames(self) -> Iterator[Frame]:
        at = dict.fromkeys(PRODUCERS, 0)
        for which, count in COURSE:
            producer = PRODUCERS[which]
            first, at[producer] = at[producer] + 1, at[producer] + count
            if at[producer] > self.acked[producer]:
                leaves = tuple(leaf(producer, first + n) for n in range(count))
                self.sent[producer] = max(self.sent[producer], at[producer])
                yield Frame(producer, first, leaves, ticket=which)

    def _do(self, events: list[Event], see: Callable[[], bytes | None]) -> None:
        events = [*events, TurnEnded()]
        while events:
            for effect in self.machine.step(events.pop(0), Instant(self.now)):
                after = self._carry_out(effect)
                if (note := see()) is not None:
                    self.seen.add(note)
                self.machine.validate()
                if after is not None:
                    events.append(after)

    def _carry_out(self, effect: Effect) -> Event | None:
        match effect:
            case Commit(batch, standing):
                try:
                    self.store.commit(batch, standing)
                except ServiceError as error:
                    self.errors.append(error)
                    return CommitFailed(error)
                return Committed()
            case Integrate(tree, leaves):
                growth = grow(tree, leaves)
                note = sign(ORIGIN, TreeHead(growth.tree.size, growth.tree.root()), self.signer)
                try:
                    self.store.integrate(growth, note)
                except ServiceError as error:
                    self.errors.append(error)
                    return IntegrationFailed(error)
                return Integrated(growth.tree, note)
            case Publish(tree, note):
                self.seen.add(note)
                try:
                    self.store.release(tree.size)
                except ServiceError as error:
                    self.errors.append(error)
            case Acknowledge(ticket, sequence):
                producer = PRODUCERS[ticket]
                self.acked[producer] = max(self.acked[producer], sequence)
            case Refuse() | LimitReached():
                pass
        return None

    def check(self, disk: Disk | None) -> int:
        """Open what is there with a new store and check all promises; return how many leaves it holds."""
        store = self.store if disk is None else FilesLog(DIRECTORY, ORIGIN, disk=disk)
        opened = store.open(first_start=False)
        try:
            recovered = opened.recovered
            size = recovered.tree.size
            leaves = [
                one for at in range(-(-size // 256)) for one in decode_bundle(store.read(bundle_at(at, size)))
            ]
            leaves += recovered.pending
            # Acked entries are there, in order, once; what else is there was sent.
            for producer in PRODUCERS:
                mine = [one for one in leaves if one.startswith(producer.service.encode())]
                assert mine == [leaf(producer, n) for n in range(1, len(mine) + 1)]
                assert self.acked[producer] <= len(mine) <= self.sent[producer]
                assert recovered.cursors.get(producer, 0) == len(mine)
            assert len(leaves) == sum(recovered.cursors.values())
            # Every checkpoint that was seen is of this log: no fork.
            key = VerifierKey.parse(verifier_key(ORIGIN, opened.signer.public_key))
            heads = [verify_checkpoint(note, key) for note in {*self.seen, recovered.checkpoint}]
            for head in heads:
                assert head.size <= len(leaves)
                assert grow(Tree(), leaves[: head.size]).tree.root() == head.root
            self._check_tiles(store, verify_checkpoint(recovered.checkpoint, key))
            return len(leaves)
        finally:
            store.close()

    def _check_tiles(self, store: LogStore, head: Checkpoint) -> None:
        whole = LogVerification(head)
        for path in whole.wanted():
            whole.feed(path, store.read(parse_path(path)))
        whole.finish()


def seen_checkpoint(disk: Disk) -> bytes | None:
    """What a reader of the directory sees now."""
    path = DIRECTORY / "log" / CHECKPOINT_PATH
    return disk.read(path) if disk.exists(path) else None
