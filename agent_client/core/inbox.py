"""Deliveries from the broker: which to hand over, which to settle, how many more to ask for.

The broker delivers at least once; here that becomes an effect once. A redelivery of an envelope that is
still being worked on only replaces its ack token, and one that was already acked is acked again without
reaching the agent's code.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

# Deliveries that may be unsettled at once: the HIGH, NORMAL and LOW lanes together, and EMERGENCY.
WINDOW = 256
EMERGENCY_WINDOW = 64
# Beyond WINDOW as many are asked for as were settled within the last tenth of a second, up to this: an agent
# that is fast does not wait for the way to the broker and back, and a slow one keeps nothing from others.
WINDOW_MAX = 2_048
PACE_MS = 100
# Acked envelopes that are remembered, by (sender, message_id).
ACKED_MAX = 4_096
# Without anything else to say, credits are granted when one part in so many of the window is free.
REFILL_PARTS = 4

# (sender, message_id)
Key = tuple[str, str]
# The order domain at its receiver: (sender, lane)
Domain = tuple[str, str]


class Handing(Enum):
    """What to do with a delivery that arrived."""

    # Hand it to the agent's code.
    NOW = auto()
    # Keep it until the agent's code has said whether it dropped the one before.
    LATER = auto()
    # The agent's code has it, or is done with it.
    NEVER = auto()


class Verdict(Enum):
    """What the agent's code decided about a delivery."""

    ACK = auto()
    NACK = auto()
    REJECT = auto()


class Settlement(NamedTuple):
    """A decision to tell the broker; `delay_ms` only for NACK (None: the broker's choice)."""

    ack_token: int
    verdict: Verdict
    delay_ms: int | None = None
    reason: str = ""
    domain: Domain = ("", "")


@dataclass(slots=True)
class InboxFrame:
    """The receiving half of one frame to the broker."""

    settlements: list[Settlement] = field(default_factory=list)
    # (ack token, extension in milliseconds)
    extends: list[tuple[int, int]] = field(default_factory=list)
    credits: int = 0
    emergency_credits: int = 0

    def __bool__(self) -> bool:
        return bool(self.settlements or self.extends or self.credits or self.emergency_credits)


@dataclass(slots=True)
class _Unsettled:
    ack_token: int
    emergency: bool
    # Whether the broker counts it as outstanding with us on the current stream.
    counted: bool = True
    # Extended for as long as nobody has decided: it waits in this process or a handler works on it.
    kept: bool = True
    # The broker took it back, and the agent's code has not said yet whether it still waited in line.
    recalled: bool = False
    # It came again before the agent's code said so.
    came_again: bool = False


@dataclass(slots=True)
class _Lane:
    window: int
    # Credits that the broker holds, and deliveries it waits for, on the current stream.
    open: int = 0
    unsettled: int = 0

    @property
    def free(self) -> int:
        return max(0, self.window - self.open - self.unsettled)

    def refill(self, *, eager: bool) -> int:
        """Return the credits to grant: all that are free when a frame goes out anyway, else a batch."""
        granted = self.free if eager or self.free * REFILL_PARTS >= self.window else 0
        self.open += granted
        return granted


class InboxCore:
    """The receiving half of a mailbox. All instants are monotonic milliseconds."""

    def __init__(self, window: int = WINDOW, emergency_window: int = EMERGENCY_WINDOW) -> None:
        # Kept across streams.
        self._unsettled: dict[Key, _Unsettled] = {}
        self._acked: OrderedDict[Key, None] = OrderedDict()
        # Decisions that the broker has not confirmed as durable, by ack token.
        self._unconfirmed: dict[int, Settlement] = {}
        self._newest_token = 0
        self._wanted = False
        # Of the current stream.
        self._lane, self._emergency = _Lane(window), _Lane(emergency_window)
        self._settlements: list[Settlement] = []
        self._extends: list[tuple[int, int]] = []
        self._open = False
        self._ack_deadline_ms = 0
        self._extend_at = 0
        # Settled since the window was looked at last, and when that was.
        self._window_least = window
        self._settled_count = 0
        self._paced_at = 0

    def __repr__(self) -> str:
        return (
            f"InboxCore(unsettled={len(self._unsettled)}, unconfirmed={len(self._unconfirmed)}, "
            f"credits={self._lane.open}+{self._emergency.open})"
        )

    @property
    def resume_ack_token(self) -> int:
        """The greatest ack token that this incarnation has received; 0 for none."""
        return self._newest_token

    @property
    def unsettled_count(self) -> int:
        """Envelopes that the agent's code has not decided about."""
        return len(self._unsettled)

    @property
    def unconfirmed_count(self) -> int:
        """Decisions that may still be lost with the stream."""
        return len(self._unconfirmed)

    @property
    def full(self) -> bool:
        """Whether the window is used up, so that the broker sends no more until something is settled."""
        return self._lane.unsettled >= self._lane.window

    def want(self) -> None:
        """Somebody takes deliveries from now on; before, none are asked for and they wait at the broker."""
        self._wanted = True

    # The stream's life.

    def restarted(self) -> list[Settlement]:
        """The next stream is a new incarnation's: the broker gives everything again, under new tokens.

        Returns the decisions that are void with the old tokens.
        """
        self._newest_token = 0
        void = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        for unsettled in self._unsettled.values():
            unsettled.counted = False
        return void

    def opened(self, ack_deadline_ms: int, now: int) -> None:
        """The broker welcomed a new stream; what was outstanding on the last one still is."""
        self._open = True
        self._lane.open = self._emergency.open = 0
        self._lane.unsettled = self._emergency.unsettled = 0
        for unsettled in self._unsettled.values():
            if unsettled.counted:
                self._lane_of(unsettled).unsettled += 1
        self._settlements = list(self._unconfirmed.values())
        self._extends = []
        self._ack_deadline_ms = max(1_000, ack_deadline_ms)
        self._extend_at = now + self._ack_deadline_ms // 2

    def closed(self) -> None:
        """The stream ended."""
        self._open = False

    # From the broker.

    def delivered(self, key: Key, ack_token: int, *, emergency: bool) -> Handing:
        """A delivery arrived."""
        lane = self._emergency if emergency else self._lane
        lane.open = max(0, lane.open - 1)
        self._newest_token = max(self._newest_token, ack_token)
        if ack_token in self._unconfirmed:
            return Handing.NEVER
        if key in self._acked and ack_token:
            self._decide(Settlement(ack_token, Verdict.ACK))
            return Handing.NEVER
        known = self._unsettled.get(key)
        if known is None:
            self._unsettled[key] = _Unsettled(ack_token, emergency)
            lane.unsettled += 1
            return Handing.NOW
        if not known.counted:
            known.counted = True
            lane.unsettled += 1
        known.ack_token = ack_token
        known.came_again = known.recalled
        return Handing.LATER if known.recalled else Handing.NEVER

    def confirmed(self, ack_token: int) -> Settlement | None:
        """A decision is durable, or refused for good. Returns it when it was still unconfirmed."""
        return self._unconfirmed.pop(ack_token, None)

    def recalled(self, ack_token: int) -> Key | None:
        """The broker took a delivery back, to give it again later in its order.

        Returns its key when it may still wait in line: the agent's code must be asked, and answers with
        `recall_answered`. One that the code is working on goes on; should it be acked, the next delivery of
        it is acked unseen.
        """
        for key, unsettled in self._unsettled.items():
            if unsettled.ack_token == ack_token and unsettled.counted:
                unsettled.counted = False
                self._lane_of(unsettled).unsettled -= 1
                unsettled.recalled = unsettled.kept
                return key if unsettled.kept else None
        return None

    # From the agent's code.

    def taken(self, key: Key) -> None:
        """A handler works on a delivery. One that needs no ack is done with that."""
        unsettled = self._unsettled.get(key)
        if unsettled is not None and not unsettled.ack_token:
            self._forget(key, unsettled)

    def given(self, key: Key) -> None:
        """The agent's code holds a delivery itself.

        It is no longer extended, so that a forgotten ack leads to a redelivery and not to silence.
        """
        self.taken(key)
        if (unsettled := self._unsettled.get(key)) is not None:
            unsettled.kept = False

    def recall_answered(self, key: Key, *, dropped: bool) -> bool:
        """The agent's code said whether a recalled delivery was still in line, and so was dropped.

        Returns whether to hand it over again at once, because it has come again meanwhile.
        """
        unsettled = self._unsettled.get(key)
        if unsettled is None or not unsettled.recalled:
            return False
        again = unsettled.came_again
        unsettled.recalled = unsettled.came_again = False
        if dropped and not again:
            del self._unsettled[key]
        return dropped and again

    def settled(
        self,
        key: Key,
        verdict: Verdict,
        *,
        domain: Domain = ("", ""),
        delay_ms: int | None = None,
        reason: str = "",
    ) -> bool:
        """The agent's code decided. Returns whether there is something to tell the broker.

        There is not when it had decided before, when the envelope needs no ack, or when the broker took the
        delivery back.
        """
        unsettled = self._unsettled.get(key)
        if unsettled is None:
            return False
        self._forget(key, unsettled)
        self._settled_count += 1
        if verdict is Verdict.ACK:
            self._acked[key] = None
            if len(self._acked) > ACKED_MAX:
                self._acked.popitem(last=False)
        if not unsettled.ack_token or not unsettled.counted:
            return False
        self._decide(Settlement(unsettled.ack_token, verdict, delay_ms, reason, domain))
        return True

    def extended(self, key: Key, extension_ms: int) -> bool:
        """The agent's code needs more time. Returns False when the delivery is settled."""
        unsettled = self._unsettled.get(key)
        if unsettled is None or not unsettled.ack_token:
            return False
        if unsettled.counted:
            self._extends.append((unsettled.ack_token, extension_ms))
        return True

    # The driver's ticks.

    def extend_due_at(self) -> int | None:
        """Return when `extend_kept` must be called next; None while the stream is closed."""
        return self._extend_at if self._open else None

    def extend_kept(self, now: int) -> None:
        """Extend everything that waits in this process or that a handler works on, by a whole deadline."""
        self._extend_at = now + self._ack_deadline_ms // 2
        self._extends += [
            (unsettled.ack_token, self._ack_deadline_ms)
            for unsettled in self._unsettled.values()
            if unsettled.kept and unsettled.counted and unsettled.ack_token
        ]

    def pace(self, now: int) -> None:
        """Fit the window to what the agent's code settles; at any time, with effect on the next `take`."""
        elapsed_ms = now - self._paced_at
        if elapsed_ms >= PACE_MS:
            settled = self._settled_count * PACE_MS // elapsed_ms
            self._lane.window = max(self._window_least, min(settled, WINDOW_MAX))
            self._settled_count, self._paced_at = 0, now

    def take(self) -> InboxFrame:
        """Return what must be written now; it may be empty."""
        if not self._open:
            return InboxFrame()
        frame = InboxFrame(self._settlements, self._extends)
        self._settlements, self._extends = [], []
        if self._wanted:
            eager = bool(frame)
            frame.credits = self._lane.refill(eager=eager)
            frame.emergency_credits = self._emergency.refill(eager=eager)
        return frame

    def _decide(self, settlement: Settlement) -> None:
        self._unconfirmed[settlement.ack_token] = settlement
        if self._open:
            self._settlements.append(settlement)

    def _forget(self, key: Key, unsettled: _Unsettled) -> None:
        del self._unsettled[key]
        if unsettled.counted:
            self._lane_of(unsettled).unsettled -= 1

    def _lane_of(self, unsettled: _Unsettled) -> _Lane:
        return self._emergency if unsettled.emergency else self._lane
