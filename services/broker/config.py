"""Every knob of the broker: unit, default, reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.broker.core.model import Limits
from services.broker.store import Retention
from services.common.config import knob
from services.common.service_config import ServiceConfig

_L = Limits()
_R = Retention()
AUDIT_MESSAGES = ("all", "terminal", "none")


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where Redis is and what a commit waits for. Times in milliseconds."""

    host: str = ""
    port: int = 0
    # Instead of host and port.
    unix_path: str = ""
    username: str = ""
    password_file: Path | None = None
    # With an authority the link is TLS; certificate and key are shown to Redis.
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    prefix: str = "muster"
    timeout_ms: int = 5_000
    must_sync: bool = True
    wait_replicas: int = 0
    wait_ms: int = 1_000

    def password(self) -> str:
        """Return what the password file holds now; raises OSError. Empty without one."""
        return "" if self.password_file is None else self.password_file.read_text(encoding="utf-8").strip()


@dataclass(frozen=True, kw_only=True)
class BrokerConfig(ServiceConfig):
    """Settings of the broker."""

    ack_deadline_ms: int = knob(
        _L.ack_deadline_ms, "After this an unanswered delivery is given again.", unit="ms"
    )
    resume_window_ms: int = knob(
        _L.resume_window_ms,
        "How long a receiver whose link broke may come back to what it holds; then others get it.",
        unit="ms",
    )
    redelivery_base_ms: int = knob(
        _L.redelivery_base_ms, "Pause after the first failed delivery; it doubles with each.", unit="ms"
    )
    redelivery_max_ms: int = knob(_L.redelivery_max_ms, "Longest such pause.", unit="ms")
    retry_horizon_ms: int = knob(
        _L.retry_horizon_ms,
        "A message_id is remembered this long, or for its ttl if that is longer.",
        unit="ms",
    )
    dedup_bytes_max_per_sender: int = knob(
        _L.dedup_bytes_max_per_sender,
        "Memory for one sender's message_ids: about 7 million that count up, 300,000 others.",
        unit="bytes",
    )
    dedup_bytes_max: int = knob(_L.dedup_bytes_max, "The same for all senders together.", unit="bytes")
    mailbox_count_max: int = knob(
        _L.mailbox_count_max, "Unsettled envelopes of one mailbox in the HIGH, NORMAL and LOW lanes."
    )
    mailbox_bytes_max: int = knob(
        _L.mailbox_bytes_max, "Bytes of one mailbox's unsettled envelopes.", unit="bytes"
    )
    mailbox_emergency_count_max: int = knob(
        _L.mailbox_emergency_count_max,
        "Unsettled envelopes of its EMERGENCY lane, which has room of its own.",
    )
    domain_share_percent: int = knob(
        _L.domain_share_percent, "The part of a mailbox that one sender may fill in one lane.", unit="%"
    )
    sender_pending_max: int = knob(
        _L.sender_pending_max, "Unsettled envelopes of one sender in all mailboxes, without EMERGENCY."
    )
    sender_emergency_pending_max: int = knob(
        _L.sender_emergency_pending_max, "Its unsettled EMERGENCY envelopes."
    )
    pending_bytes_max: int = knob(
        _L.pending_bytes_max, "Bytes of all unsettled envelopes; they are in memory too.", unit="bytes"
    )
    domains_max: int = knob(
        _L.domains_max, "Order domains (sender, receiver, lane); about 1 KiB of memory each."
    )
    fanout_max: int = knob(
        _L.fanout_max, "Mailboxes that may get a copy of one envelope to a collaboration or topic."
    )
    subscriptions_max_per_agent: int = knob(
        _L.subscriptions_max_per_agent, "Patterns that one agent or operator may be subscribed to."
    )
    subscriptions_max: int = knob(_L.subscriptions_max, "The same for all together.")
    memberships_max: int = knob(
        _L.memberships_max, "Collaborations whose members are remembered for when the scheduler is away."
    )
    membership_timeout_ms: int = knob(
        1_000, "How long the scheduler may take to say who belongs to a collaboration.", unit="ms"
    )
    tombstones_max_per_domain: int = knob(
        _L.tombstones_max_per_domain, "Beyond it the oldest tombstones become one that stands for a range."
    )
    instances_max_per_agent: int = knob(
        _L.instances_max_per_agent, "Instances of one agent whose newest incarnation is remembered."
    )
    streams_max_per_agent: int = knob(_L.streams_max_per_agent, "Mailbox streams of one identity at once.")
    send_window: int = knob(_L.send_window, "Envelopes that one stream may have unanswered.")
    unflushed_bytes_max: int = knob(
        _L.unflushed_bytes_max,
        "Deliveries that wait for one stream's network; more stay in the mailbox.",
        unit="bytes",
    )
    lane_share_normal_percent: int = knob(
        _L.lane_share_normal_percent, "Least share of a busy mailbox for NORMAL while it waits.", unit="%"
    )
    lane_share_low_percent: int = knob(
        _L.lane_share_low_percent, "Least share of a busy mailbox for LOW while it waits.", unit="%"
    )
    payload_bytes_max: int = knob(65_536, "Largest payload.", unit="bytes")
    uncommitted_bytes_max: int = knob(
        32 * 1024 * 1024, "Bytes that wait for the disk before streams are not read any more.", unit="bytes"
    )
    hello_timeout_ms: int = knob(10_000, "How long a new stream may take to say hello.", unit="ms")
    dead_letters_max_per_mailbox: int = knob(
        _R.dead_letters_max_per_mailbox, "Dead letters of one mailbox; then the oldest go."
    )
    dead_letter_age_ms_max: int = knob(
        _R.dead_letter_age_ms_max, "How long a dead letter is kept.", unit="ms"
    )
    compaction_interval_ms: int = knob(2_000, "Pause between two looks for space to free.", unit="ms")
    audit_messages: str = knob(
        "all",
        "Entries per envelope: 'all' (accepted, and how it ended), 'terminal' (how it ended), 'none'."
        " Refusals, dead letters, fencing and streams are always recorded.",
    )
    audit_backlog_max: int = knob(
        100_000,
        "Entries of envelopes that wait; beyond it they are counted and one entry says how many.",
    )
    drain_ms: int = knob(5_000, "How long calls may go on after a stop was asked for.", unit="ms")

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        super().__post_init__()
        if self.audit_messages not in AUDIT_MESSAGES:
            raise ValueError(f"audit_messages {self.audit_messages!r} is none of {', '.join(AUDIT_MESSAGES)}")
        shares = self.lane_share_normal_percent, self.lane_share_low_percent
        if min(shares) < 1 or sum(shares) > 50:
            raise ValueError(
                "lane_share_normal_percent and lane_share_low_percent: each >= 1, together <= 50"
            )
        for name, value in self.numbers().items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1")

    def numbers(self) -> dict[str, int]:
        """Return the settings that are numbers, by name."""
        return {name: getattr(self, name) for name in _NUMBERS}

    @property
    def limits(self) -> Limits:
        """The numbers by which the core decides."""
        return Limits(**{name: getattr(self, name) for name in _CORE})

    @property
    def retention(self) -> Retention:
        """How much the store keeps for people."""
        return Retention(self.dead_letters_max_per_mailbox, self.dead_letter_age_ms_max)


_CORE = tuple(name for name in Limits.__dataclass_fields__ if name in BrokerConfig.__dataclass_fields__)
_NUMBERS = tuple(
    name for name, field in BrokerConfig.__dataclass_fields__.items() if field.type in ("int", int)
)
