"""The life of one envelope in a mailbox, as a table.

Three states wait for the disk: nothing that they promise has been told to anybody yet, so that a failed
commit can take them back.
"""

from __future__ import annotations

from enum import IntEnum

from services.common.core.machine import Table


class DeliveryState(IntEnum):
    """Where an envelope stands."""

    # Numbered; its commit is under way; its sender has no answer yet.
    ACCEPTING = 0
    # Durable, and handed over as soon as its turn comes.
    WAITING = 1
    # Durable, and held back after a failed delivery; its order domain waits with it.
    DELAYED = 2
    # Handed over under an ack token.
    OUTSTANDING = 3
    # No ack wanted: it is handed over once it is durable that it will not come again.
    RELEASING = 4
    # Acked; the ack is not durable yet.
    ACKING = 5
    # Given up; that is not durable yet.
    BURYING = 6
    # Delivered, for good.
    DONE = 7
    # A dead letter with a tombstone.
    DEAD = 8
    # Never accepted: its commit failed and its sender was told.
    WITHDRAWN = 9


class DeliveryInput(IntEnum):
    """What can happen to an envelope."""

    PERSISTED = 0
    PERSIST_FAILED = 1
    HANDED_OVER = 2
    RELEASED = 3
    ACKED = 4
    EXTENDED = 5
    NACKED = 6
    REJECTED = 7
    DEADLINE_PASSED = 8
    # Its receiver went away while it was the oldest that it held of this domain.
    RECEIVER_LOST = 9
    # Taken back because an earlier one of its domain comes again, or its receiver left.
    RECALLED = 10
    DELAY_OVER = 11
    EXPIRED = 12
    EXHAUSTED = 13


_S = DeliveryState
_I = DeliveryInput

TABLE: Table[DeliveryState, DeliveryInput] = Table(
    "delivery",
    _S.ACCEPTING,
    {
        (_S.ACCEPTING, _I.PERSISTED): _S.WAITING,
        (_S.ACCEPTING, _I.PERSIST_FAILED): _S.WITHDRAWN,
        (_S.WAITING, _I.HANDED_OVER): _S.OUTSTANDING,
        (_S.WAITING, _I.RELEASED): _S.RELEASING,
        (_S.WAITING, _I.EXPIRED): _S.BURYING,
        (_S.DELAYED, _I.DELAY_OVER): _S.WAITING,
        (_S.DELAYED, _I.EXPIRED): _S.BURYING,
        (_S.OUTSTANDING, _I.ACKED): _S.ACKING,
        (_S.OUTSTANDING, _I.EXTENDED): _S.OUTSTANDING,
        (_S.OUTSTANDING, _I.NACKED): _S.DELAYED,
        (_S.OUTSTANDING, _I.DEADLINE_PASSED): _S.DELAYED,
        (_S.OUTSTANDING, _I.RECEIVER_LOST): _S.DELAYED,
        (_S.OUTSTANDING, _I.RECALLED): _S.WAITING,
        (_S.OUTSTANDING, _I.REJECTED): _S.BURYING,
        # Failed once more than retry_max allows, or after its ttl.
        (_S.OUTSTANDING, _I.EXHAUSTED): _S.BURYING,
        (_S.OUTSTANDING, _I.EXPIRED): _S.BURYING,
        (_S.RELEASING, _I.PERSISTED): _S.DONE,
        (_S.RELEASING, _I.PERSIST_FAILED): _S.WAITING,
        (_S.ACKING, _I.PERSISTED): _S.DONE,
        (_S.ACKING, _I.PERSIST_FAILED): _S.OUTSTANDING,
        (_S.BURYING, _I.PERSISTED): _S.DEAD,
        (_S.BURYING, _I.PERSIST_FAILED): _S.WAITING,
    },
)
