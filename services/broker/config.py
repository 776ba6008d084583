"""Every knob of the broker: unit, default, reason."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from services.broker.core.model import Limits
from services.broker.store import Retention
from services.common.config import knob
from services.common.service_config import ServiceConfig

_L = Limits()
_R = Retention()
AUDIT_MESSAGES = ("all", "terminal", "none")
STORES = ("sqlite", "redis")
REDIS_SYNC = ("always", "server")
# How an address names a socket in the file system.
UNIX = "unix:"


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
        "Operations that wait to be recorded; beyond it they are counted and one entry says how many.",
    )
    audit_group_max: int = knob(
        128,
        "Envelopes of one commit that one entry records, at most 1,024: with more, readers of one envelope"
        " are sent much that they did not ask for.",
    )
    drain_ms: int = knob(5_000, "How long calls may go on after a stop was asked for.", unit="ms")
    store: str = knob(
        "sqlite",
        "'sqlite': a file, for one broker; 'redis': a Redis, for several replicas of which one leads.",
    )
    redis_address: str = knob("", "host:port of Redis, or unix:PATH of its socket; with store = 'redis'.")
    redis_username: str = knob("", "Who to log in to Redis as; empty is Redis' default user.")
    redis_password_file: Path | None = knob(None, "File that holds the password for Redis, nothing else.")
    redis_ca: Path | None = knob(
        None, "PEM file of the authority of Redis' certificate; needed unless Redis is on this machine."
    )
    redis_certificate: Path | None = knob(None, "PEM file of the certificate that is shown to Redis.")
    redis_key: Path | None = knob(None, "PEM file of its private key.")
    redis_prefix: str = knob("muster", "Begins the names of this broker's keys in Redis.")
    redis_timeout_ms: int = knob(5_000, "After this Redis counts as not answering.", unit="ms")
    redis_sync: str = knob(
        "always",
        "'always': refuse a Redis that does not sync its file at each write; 'server': accept what it does,"
        " so that a crash of Redis may lose what it had not synced.",
    )
    redis_wait_replicas: int = knob(
        0, "Replicas of Redis that must have a commit before it is acknowledged (WAIT); 0 asks none."
    )
    redis_wait_ms: int = knob(
        1_000, "How long a commit waits for them; then its outcome is unknown.", unit="ms"
    )
    election_ttl_s: int = knob(
        3, "A leader that is silent for this long is replaced; with store = 'redis'.", unit="s"
    )
    leader_wait_ms: int = knob(
        10_000, "How long a call at another replica waits while nobody leads.", unit="ms"
    )

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        super().__post_init__()
        if self.audit_messages not in AUDIT_MESSAGES:
            raise ValueError(f"audit_messages {self.audit_messages!r} is none of {', '.join(AUDIT_MESSAGES)}")
        if not 1 <= self.audit_group_max <= 1_024:
            raise ValueError(f"audit_group_max must be 1 to 1,024, not {self.audit_group_max}")
        shares = self.lane_share_normal_percent, self.lane_share_low_percent
        if min(shares) < 1 or sum(shares) > 50:
            raise ValueError(
                "lane_share_normal_percent and lane_share_low_percent: each >= 1, together <= 50"
            )
        for name, value in self.numbers().items():
            if value < _LEAST.get(name, 1):
                raise ValueError(f"{name} must be at least {_LEAST.get(name, 1)}")
        if self.store not in STORES:
            raise ValueError(f"store {self.store!r} is none of {', '.join(STORES)}")
        if self.redis_sync not in REDIS_SYNC:
            raise ValueError(f"redis_sync {self.redis_sync!r} is none of {', '.join(REDIS_SYNC)}")
        if self.store == "redis":
            self._check_redis()

    def _check_redis(self) -> None:
        if not self.redis_address:
            raise ValueError("store = 'redis' needs redis_address: host:port, or unix:PATH of its socket")
        redis = self.redis
        if not redis.prefix or set(redis.prefix) & set("{}* "):
            raise ValueError(f"redis_prefix {redis.prefix!r} must be a word without braces, stars and spaces")
        if (redis.certificate is None) != (redis.key is None):
            raise ValueError("redis_certificate and redis_key come together")
        if redis.wait_replicas and redis.wait_ms >= redis.timeout_ms:
            raise ValueError("redis_wait_ms must be less than redis_timeout_ms, which ends the waiting")
        if redis.ca is None and not (redis.unix_path or _is_loopback(redis.host)):
            raise ValueError(
                f"Redis at {redis.host} is on another machine: set redis_ca, so that the link is TLS"
            )

    @property
    def redis(self) -> RedisSettings:
        """Where Redis is; raises ValueError when the address is none."""
        host, port, unix_path = "", 0, ""
        if self.redis_address.startswith(UNIX):
            unix_path = self.redis_address.removeprefix(UNIX)
        else:
            host, _, number = self.redis_address.rpartition(":")
            if not host or not number.isdecimal() or not 0 < int(number) < 65_536:
                raise ValueError(f"redis_address {self.redis_address!r} is neither host:port nor unix:PATH")
            host, port = host.strip("[]"), int(number)
        return RedisSettings(
            host,
            port,
            unix_path,
            self.redis_username,
            self.redis_password_file,
            self.redis_ca,
            self.redis_certificate,
            self.redis_key,
            self.redis_prefix,
            self.redis_timeout_ms,
            self.redis_sync == "always",
            self.redis_wait_replicas,
            self.redis_wait_ms,
        )

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
# Numbers that may be less than 1.
_LEAST = {"redis_wait_replicas": 0}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
