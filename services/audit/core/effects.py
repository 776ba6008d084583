"""What the log asks of the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.audit.core.model import Batch, Producer
from services.audit.core.tree import Tree
from services.common.core.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Commit:
    """Make the batch durable; answer with `Committed` or `CommitFailed`. One at a time."""

    batch: Batch
    # Where every producer stands before the batch. The machine's own: it stays as it is until the answer.
    standing: Mapping[Producer, int]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the caller that its producer's entries are durable up to this number."""

    ticket: int
    durable_sequence: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the caller that its frame was not logged."""

    ticket: int
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Integrate:
    """Grow the tree, make the tiles and then the checkpoint durable; answer with `Integrated` or
    `IntegrationFailed`. One at a time.
    """

    tree: Tree
    leaves: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Show the tree and its checkpoint to readers; entries before `tree.size` need not be pending."""

    tree: Tree
    # The signed note.
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class LimitReached:
    """Count that a bound made somebody wait, or forgot something."""

    # The setting's name.
    limit: str


Effect = Commit | Acknowledge | Refuse | Integrate | Publish | LimitReached
