"""What was noted since it was last looked at: for the metrics, and for the detectors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.core.instants import Instant
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import InstanceKey
from services.scheduler.core.monitoring.alerts import Alerts
from services.scheduler.core.monitoring.detectors import QUEUE_SAMPLES, DriftCounter, LinkCounter
from services.scheduler.core.timers import Timer

#: Notes that wait for the metrics; a driver takes them after every batch.
NOTES_MAX = 65_536


class Miss(NamedTuple):
    """One prediction beside what came."""

    #: Actual over predicted duration.
    ratio: float
    inside: bool


@dataclass(slots=True)
class Round:
    """One look at all that runs, some instances at a time."""

    #: When the next one begins.
    next_time: Instant
    #: Instances that are still to be looked at.
    left: list[Instance]
    #: What was found stuck, as alerts name it.
    stuck: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Observed:
    """See the module. Owned by the scheduler's book."""

    alerts: Alerts = field(default_factory=Alerts)
    #: (stage, milliseconds) of tasks, and misses of predictions, for the metrics.
    stages: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))
    misses: deque[Miss] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))
    #: Of deadlines that are predicted to be missed, for the metrics: warned, recovered, missed, over.
    deadlines: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))
    links: dict[InstanceKey, LinkCounter] = field(default_factory=dict)
    drifts: dict[str, DriftCounter] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=lambda: deque(maxlen=QUEUE_SAMPLES))
    #: OBSERVE, while anything is open or linked.
    timer: Timer | None = None
    #: None between two looks.
    round: Round | None = None
