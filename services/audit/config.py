"""Every knob of the audit service: unit, default, reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.audit.core.checkpoint import valid_origin
from services.audit.core.model import LogLimits
from services.common.config import knob
from services.common.core.ids import NAME_64
from services.common.service_config import ServiceConfig


@dataclass(frozen=True, kw_only=True)
class AuditConfig(ServiceConfig):
    """Settings of the audit service."""

    origin: str = knob("", "The log's name in its checkpoints; empty means <trust domain>/audit.")
    log_key: Path | None = knob(None, "The log's private key; unset means log.key in the data directory.")
    first_start: bool = knob(
        False, "Allow a new log although its key exists; without both, a first start makes both by itself."
    )
    checkpoint_interval_ms: int = knob(
        100, "Least time between two checkpoints; each costs about ten syncs.", unit="ms"
    )
    batch_leaves_max: int = knob(16_384, "Entries that one commit takes; more wait for the next.")
    batch_bytes_max: int = knob(
        8 * 2**20, "Bytes after which a commit takes no further frame; bounds its time on disk.", unit="bytes"
    )
    growth_leaves_max: int = knob(
        32_768, "Entries that one checkpoint takes in; bounds its time, about 0.2 s of hashing."
    )
    pending_bytes_max: int = knob(
        256 * 2**20,
        "Bytes durable but not under a checkpoint, in memory; beyond it frames wait.",
        unit="bytes",
    )
    producers_max: int = knob(
        10_000, "Producers whose numbering is remembered; the least recently used is forgotten."
    )
    stream_frames_max: int = knob(
        16, "Frames of one Append stream that wait for the disk; then it is not read."
    )
    tails_max: int = knob(256, "Tail streams at once; each holds one frame of at most 2 MiB.")
    index_wait_ms: int = knob(
        2_000, "How long a query waits until the newest checkpoint's entries are in the index.", unit="ms"
    )
    read_window_ms: int = knob(
        60_000, "Repeated reads of checkpoints and tiles by one reader in this time are one entry.", unit="ms"
    )
    drain_ms: int = knob(5_000, "How long calls may go on after a stop was asked for.", unit="ms")

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        super().__post_init__()
        if NAME_64.match(self.replica_id) is None:
            raise ValueError(f"replica_id {self.replica_id!r} must be 1 to 64 of [A-Za-z0-9._-]")
        if not valid_origin(self.log_origin):
            raise ValueError(
                f"origin {self.log_origin!r} must be 1 to 255 characters without space and plus sign"
            )
        for name in (
            "batch_leaves_max",
            "batch_bytes_max",
            "growth_leaves_max",
            "pending_bytes_max",
            "producers_max",
            "stream_frames_max",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    @property
    def log_origin(self) -> str:
        """The log's name."""
        return self.origin or f"{self.trust_domain}/audit"

    @property
    def limits(self) -> LogLimits:
        """The bounds of the machine."""
        return LogLimits(
            batch_leaves_max=self.batch_leaves_max,
            batch_bytes_max=self.batch_bytes_max,
            growth_leaves_max=self.growth_leaves_max,
            pending_bytes_max=self.pending_bytes_max,
            producers_max=self.producers_max,
            checkpoint_interval_ms=self.checkpoint_interval_ms,
        )
