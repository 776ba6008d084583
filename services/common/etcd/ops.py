"""What can be asked of etcd, and what it answers, as plain values.

Keys are `str`. etcd's keys are bytes; bytes that are not UTF-8 (another program's keys under a shared
prefix) survive the round trip by Python's surrogate escapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# etcd refuses a transaction with more operations in one branch (its flag --max-txn-ops).
TXN_OPERATIONS_MAX = 128
# etcd refuses a larger request (its flag --max-request-bytes).
REQUEST_BYTES_MAX = 1_572_864


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd stored it; `lease_id` is 0 when the key hangs on no lease."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int = 0


class Put(NamedTuple):
    """Write a key; with a `lease_id` the key is deleted when that lease ends."""

    key: str
    value: bytes
    lease_id: int = 0


class Delete(NamedTuple):
    """Delete a key, or with `prefix` every key that starts with it."""

    key: str
    prefix: bool = False


Order = Literal["key", "oldest", "newest"]


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, or with `prefix` every key that starts with it.

    `limit` 0 is no limit; `order` "oldest" and "newest" sort by create revision; `create_revision_max` 0 is
    no bound.
    """

    key: str
    prefix: bool = False
    limit: int = 0
    order: Order = "key"
    create_revision_max: int = 0


Operation = Put | Delete | Get

Target = Literal["version", "create", "mod", "value", "lease"]
Relation = Literal["=", "!=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key; a transaction succeeds only when all of its conditions hold."""

    key: str
    target: Target
    relation: Relation
    operand: int | bytes

    @classmethod
    def absent(cls, key: str) -> Compare:
        """Return the condition that `key` does not exist."""
        return cls(key, "create", "=", 0)

    @classmethod
    def exists(cls, key: str) -> Compare:
        """Return the condition that `key` exists."""
        return cls(key, "create", ">", 0)

    @classmethod
    def created_at(cls, key: str, revision: int) -> Compare:
        """Return the condition that `key` is the one created at `revision` and lives still."""
        return cls(key, "create", "=", revision)

    @classmethod
    def unchanged_since(cls, key: str, mod_revision: int) -> Compare:
        """Return the condition that `key` was last written at `mod_revision`; 0 means that it is absent."""
        return cls(key, "mod", "=", mod_revision)

    @classmethod
    def value_is(cls, key: str, value: bytes) -> Compare:
        """Return the condition that `key` holds exactly `value`."""
        return cls(key, "value", "=", value)


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a `Put` or a `Delete`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a `Get`, as of `revision`; `more` says that a limit cut it short."""

    revision: int
    kvs: tuple[KeyValue, ...]
    more: bool = False

    @property
    def first(self) -> KeyValue | None:
        """The first row, or None when there is none."""
        return self.kvs[0] if self.kvs else None


Answer = Done | Rows


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did: which branch ran, at which revision, and its answers in order."""

    succeeded: bool
    revision: int
    answers: tuple[Answer, ...]

    def rows(self, index: int) -> Rows:
        """Return the answer of the `Get` at `index` in the branch that ran."""
        answer = self.answers[index]
        if not isinstance(answer, Rows):
            raise TypeError(f"operation {index} was not a Get: it answered {answer!r}")
        return answer


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change of a key: written, or deleted (then `kv` has the key and the revision only)."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Every change up to and including `revision`, in order; never part of a revision.

    A batch without events is progress: nothing that is watched changed up to `revision`.
    """

    revision: int
    events: tuple[KeyEvent, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease; `ttl_s` is what etcd gave, which may be more than what was asked."""

    lease_id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class LeaseState:
    """A lease as etcd sees it: `remaining_s` is -1 when it is gone; `keys` hang on it."""

    remaining_s: int
    granted_s: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemberState:
    """One etcd member's answer to a state request."""

    version: str
    leader_id: int
    database_bytes: int


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after every key that starts with `prefix`.

    etcd reads a range end of one zero byte as "to the end of the key space".
    """
    for length in range(len(prefix), 0, -1):
        if prefix[length - 1] < 0xFF:
            return prefix[: length - 1] + bytes([prefix[length - 1] + 1])
    return b"\0"


def encode_key(key: str) -> bytes:
    """Return the key's bytes."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """Return the key as text; the inverse of `encode_key` for any bytes."""
    return key.decode("utf-8", "surrogateescape")
