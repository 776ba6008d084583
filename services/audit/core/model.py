"""The nouns of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from services.audit.core.tree import Tree


class Producer(NamedTuple):
    """One numbering of entries: a replica of a service, with the spool that it sends from."""

    service: str
    replica_id: str
    spool_id: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Entries of one producer, waiting to be logged."""

    producer: Producer
    # The number of the first leaf; each further leaf has the next.
    first_sequence: int
    leaves: tuple[bytes, ...]
    # Names the caller who waits for the answer.
    ticket: int
    # False for the log's own entries: a number whose commit failed is not used again.
    contiguous: bool = True

    @property
    def last_sequence(self) -> int:
        """The number of the last leaf."""
        return self.first_sequence + len(self.leaves) - 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf with its place."""

    index: int
    data: bytes
    # Which operations of its entry's group a reader wants; empty when all, and without a group.
    positions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit makes durable, all of it or nothing."""

    # Leaf index of the first leaf.
    first_index: int
    leaves: tuple[bytes, ...]
    # The last number logged of each producer that has leaves here.
    cursors: Mapping[Producer, int]

    @property
    def end_index(self) -> int:
        """The leaf index after the last leaf."""
        return self.first_index + len(self.leaves)


@dataclass(frozen=True, slots=True)
class Recovered:
    """The log as it was found on disk."""

    # The newest checkpoint, as signed, and its tree.
    checkpoint: bytes
    tree: Tree
    # Leaves that are durable but not in that tree, in log order.
    pending: tuple[bytes, ...]
    # The last durable number of each producer, least recently used first.
    cursors: Mapping[Producer, int]


@dataclass(frozen=True, slots=True)
class LogLimits:
    """The bounds of the machine; `config.py` gives each its reason."""

    batch_leaves_max: int = 16_384
    batch_bytes_max: int = 8 * 2**20
    growth_leaves_max: int = 32_768
    pending_bytes_max: int = 256 * 2**20
    producers_max: int = 10_000
    checkpoint_interval_ms: int = 100
    integration_retry_ms: int = 100
    integration_retry_ms_max: int = 5_000
