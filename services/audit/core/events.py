"""What can happen to the log."""

from __future__ import annotations

from dataclasses import dataclass

from services.audit.core.model import Frame
from services.audit.core.tree import Tree
from services.common.core.errors import ServiceError


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A producer sent entries."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """All events that were there have been stepped: now is the time to gather them into one commit."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The batch of the last `Commit` is durable."""


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The batch of the last `Commit` is not durable, or may be: none of it counts as logged."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class Integrated:
    """The tiles and the checkpoint of the last `Integrate` are durable."""

    tree: Tree
    # The signed note.
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class IntegrationFailed:
    """The tiles or the checkpoint of the last `Integrate` are not durable, or may be."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """No more frames will come: integrate all that is pending without waiting for the interval."""


Event = FrameArrived | TurnEnded | Committed | CommitFailed | Integrated | IntegrationFailed | DrainBegan
