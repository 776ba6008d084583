"""Which attempts this agent holds, what it still owes the coordinator, and how many more it can take.

The Work stream may break and come back, to the same coordinator or to its successor. What crosses such a
break is kept here: attempts whose handlers run, and results until the coordinator says that they are
committed. A result is always sent under the token of its own attempt, so repeating it is harmless.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from agent_client.core.locks import LockAsk, LockCore, LockDrop
from agent_client.core.records import AttemptRef, HeldLock, Outcome, Payload, Stopped, Succeeded, Suspended

# One frame carries at most this many results (work.proto) and about this many payload bytes, so that it
# stays far below the 4 MiB limit of a message.
FRAME_RESULTS_MAX = 1_024
FRAME_BYTES_MAX = 1_048_576
# Attempts that ended lately and are remembered, so that a repeated assignment does not run again.
ENDED_MAX = 1_024


@dataclass(frozen=True, slots=True)
class WorkHello:
    """What the first frame of a stream says."""

    held: tuple[AttemptRef, ...]
    held_locks: tuple[HeldLock, ...]


@dataclass(slots=True)
class WorkFrame:
    """One frame to the coordinator."""

    credits: int = 0
    started: list[AttemptRef] = field(default_factory=list)
    # (attempt, fraction, stage)
    progress: list[tuple[AttemptRef, float, str]] = field(default_factory=list)
    results: list[tuple[AttemptRef, Outcome]] = field(default_factory=list)
    savepoints: list[tuple[AttemptRef, Payload]] = field(default_factory=list)
    probe_nonce: int = 0
    lock_asks: list[LockAsk] = field(default_factory=list)
    lock_drops: list[LockDrop] = field(default_factory=list)
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Run the handler of this attempt."""

    attempt: AttemptRef


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the handler of this attempt to stop; what it returns is dropped when `fenced`."""

    attempt: AttemptRef
    fenced: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Suspend:
    """Ask the handler of this attempt to save and stop; what it returns counts."""

    attempt: AttemptRef
    reason: str
    # Milliseconds that it may go on.
    grace_ms: int


Effect = Start | Stop | Suspend


@dataclass(slots=True)
class _Held:
    """An attempt from its assignment to the ack of its result."""

    attempt: AttemptRef
    started: bool = False
    stop_asked: bool = False
    suspend_asked: bool = False
    outcome: Outcome | None = None
    # Whether the outcome was written on the current stream.
    sent: bool = False
    # The newest savepoint that is not acked, how many of the attempt's there were, and up to which one of
    # them has been written on the current stream. One is on its way at a time.
    savepoint: Payload | None = None
    save_count: int = 0
    save_sent: int = 0


class WorkCore:
    """The agent's side of the Work stream. `slots` handlers may run at once."""

    def __init__(self, slots: int) -> None:
        self.locks = LockCore()
        self._slots = slots
        # Kept across streams. At most one attempt per task: a newer token replaces an older one.
        self._held: dict[tuple[str, str], _Held] = {}
        # Every attempt whose handler has not returned, also those that were fenced meanwhile.
        self._busy: set[AttemptRef] = set()
        # Those of them whose slot the coordinator uses already: it asked for it on the current stream.
        self._lent: set[AttemptRef] = set()
        self._ended: OrderedDict[AttemptRef, None] = OrderedDict()
        self._draining = False
        # Of the current stream.
        self._open = False
        self._credits_open = 0
        self._drain_sent = False
        self._started: list[AttemptRef] = []
        self._progress: dict[AttemptRef, tuple[float, str]] = {}
        self._unsent: deque[AttemptRef] = deque()
        # Attempts with a savepoint to write, of which none is on its way.
        self._unsaved: dict[AttemptRef, None] = {}
        self._probe_nonce = 0

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"WorkCore({state}, held={len(self._held)}, busy={len(self._busy)}/{self._slots})"

    @property
    def slots(self) -> int:
        """Handlers that may run at once."""
        return self._slots

    @property
    def busy_count(self) -> int:
        """Handlers that run now."""
        return len(self._busy)

    @property
    def held_count(self) -> int:
        """Attempts that run or whose result is not acked; a drain ends when it is 0."""
        return len(self._held)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    # The stream's life.

    def hello(self) -> WorkHello:
        """Return what the first frame of a new stream must say."""
        return WorkHello(tuple(held.attempt for held in self._held.values()), self.locks.held())

    def opened(self) -> None:
        """The coordinator welcomed a new stream: it gets again all that it may have missed."""
        self._open = True
        self._credits_open = 0
        self._drain_sent = False
        self._probe_nonce = 0
        self._unsent.clear()
        # Slots are counted anew on every stream: whoever still wants one of these asks again.
        self._lent.clear()
        self._started = [held.attempt for held in self._held.values() if held.started and not held.outcome]
        for held in self._held.values():
            held.sent = False
            held.save_sent = 0
            if held.savepoint is not None:
                self._unsaved[held.attempt] = None
            if held.outcome is not None:
                self._unsent.append(held.attempt)
        self.locks.opened()

    def closed(self) -> None:
        """The stream ended. Handlers go on; credits on that stream are void."""
        self._open = False
        self._credits_open = 0
        self._progress.clear()
        self.locks.closed()

    # From the coordinator.

    def assigned(self, attempt: AttemptRef) -> list[Effect]:
        """One attempt arrived. It used a credit, also when it turns out to be known already."""
        self._credits_open = max(0, self._credits_open - 1)
        held = self._held.get(attempt.task_key)
        if attempt in self._ended or attempt in self._busy:
            return []
        if held is not None and held.attempt.token >= attempt.token:
            return []
        effects: list[Effect] = []
        if held is not None:
            # A newer attempt of the same task at the same agent: the older one can no longer count.
            effects += self._fence(held, "a newer attempt of this task was assigned here")
        self._held[attempt.task_key] = _Held(attempt)
        self._busy.add(attempt)
        return [*effects, Start(attempt)]

    def cancelled(self, attempt: AttemptRef, *, fenced: bool, reason: str) -> list[Effect]:
        """The coordinator wants this attempt to stop."""
        held = self._current(attempt)
        if held is None:
            if not fenced and attempt not in self._busy:
                # Unknown here, for example after a crash: the coordinator waits for an answer all the same.
                self._held.setdefault(attempt.task_key, _Held(attempt, outcome=Stopped()))
                self._unsent.append(attempt)
            return []
        if fenced:
            return self._fence(held, reason)
        if held.outcome is not None or held.stop_asked:
            return []
        held.stop_asked = True
        return [Stop(attempt, fenced=False, reason=reason)]

    def suspend_asked(self, attempt: AttemptRef, *, reason: str, grace_ms: int) -> list[Effect]:
        """The coordinator needs this attempt's slot for more urgent work, and uses it from now on."""
        # One more credit, whatever has become of the attempt meanwhile: the coordinator counts it.
        self._credits_open += 1
        if attempt in self._busy:
            self._lent.add(attempt)
        held = self._current(attempt)
        if held is None:
            if attempt not in self._busy and attempt.task_key not in self._held:
                # Unknown here, for example after a crash: the coordinator waits for an answer all the same.
                self._held[attempt.task_key] = _Held(attempt, outcome=Suspended())
                self._unsent.append(attempt)
            return []
        if held.outcome is not None or held.suspend_asked:
            return []
        held.suspend_asked = True
        return [Suspend(attempt, reason, grace_ms)]

    def save_acked(self, attempt: AttemptRef) -> int:
        """The savepoint on its way is committed, or refused for good; return its number, 0 for none."""
        held = self._current(attempt)
        if held is None or not held.save_sent:
            return 0
        number, held.save_sent = held.save_sent, 0
        if number == held.save_count:
            held.savepoint = None
        else:
            self._unsaved[attempt] = None
        return number

    def acked(self, attempt: AttemptRef) -> bool:
        """The result is committed, or refused for good. Returns whether it was still owed."""
        held = self._current(attempt)
        if held is None or held.outcome is None:
            return False
        self._forget(held)
        return True

    def probed(self, nonce: int) -> None:
        """The coordinator asks for a sign of life."""
        self._probe_nonce = nonce

    # From the handlers.

    def started(self, attempt: AttemptRef) -> None:
        """The handler runs."""
        held = self._current(attempt)
        if held is not None and not held.started:
            held.started = True
            if self._open:
                self._started.append(attempt)

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """The handler reported; only the newest report of an attempt is sent."""
        held = self._current(attempt)
        if self._open and held is not None and held.outcome is None:
            self._progress[attempt] = (fraction, stage)

    def saved(self, attempt: AttemptRef, savepoint: Payload) -> int:
        """The handler saved; return the savepoint's number, 0 when it counts for nothing any more."""
        held = self._current(attempt)
        if held is None or held.outcome is not None:
            return 0
        held.savepoint = savepoint
        held.save_count += 1
        if not held.save_sent:
            self._unsaved[attempt] = None
        return held.save_count

    def ended(self, attempt: AttemptRef, outcome: Outcome) -> None:
        """The handler returned; its slot is free. The outcome of a fenced attempt goes nowhere."""
        self._busy.discard(attempt)
        self._lent.discard(attempt)
        held = self._current(attempt)
        if held is None or held.outcome is not None:
            return
        if isinstance(outcome, Stopped | Suspended) and held.savepoint is not None:
            # What was saved last travels with the end: it need not wait for the ack of the one before.
            outcome = Suspended(held.savepoint)
        held.outcome = outcome
        self._progress.pop(attempt, None)
        self.locks.attempt_ended(attempt)
        if self._open:
            self._unsent.append(attempt)

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True

    # To the coordinator.

    def take_frame(self, now: int) -> WorkFrame | None:
        """Return what must be written now, or None. `now` in monotonic milliseconds."""
        if not self._open:
            return None
        frame = WorkFrame(probe_nonce=self._probe_nonce, started=self._started)
        self._probe_nonce, self._started = 0, []
        frame.progress = [(attempt, *report) for attempt, report in self._progress.items()]
        self._progress.clear()
        self._take_savepoints(frame)
        self._take_results(frame)
        frame.lock_asks, frame.lock_drops = self.locks.take(now)
        if self._draining:
            frame.drain = not self._drain_sent
            self._drain_sent = True
        else:
            frame.credits = max(0, self._slots - (len(self._busy) - len(self._lent)) - self._credits_open)
            self._credits_open += frame.credits
        return frame if frame != WorkFrame() else None

    def _take_savepoints(self, frame: WorkFrame) -> None:
        size = 0
        while self._unsaved and len(frame.savepoints) < FRAME_RESULTS_MAX and size < FRAME_BYTES_MAX:
            attempt, _ = self._unsaved.popitem()
            held = self._current(attempt)
            if held is None or held.savepoint is None or isinstance(held.outcome, Succeeded | Suspended):
                continue
            held.save_sent = held.save_count
            frame.savepoints.append((attempt, held.savepoint))
            size += len(held.savepoint.data)

    def _take_results(self, frame: WorkFrame) -> None:
        size = 0
        while self._unsent and len(frame.results) < FRAME_RESULTS_MAX and size < FRAME_BYTES_MAX:
            held = self._current(self._unsent.popleft())
            if held is None or held.outcome is None or held.sent:
                continue
            held.sent = True
            frame.results.append((held.attempt, held.outcome))
            size += _size_of(held.outcome)

    def _current(self, attempt: AttemptRef) -> _Held | None:
        held = self._held.get(attempt.task_key)
        return held if held is not None and held.attempt == attempt else None

    def _fence(self, held: _Held, reason: str) -> list[Effect]:
        self._forget(held)
        if held.attempt in self._busy:
            return [Stop(held.attempt, fenced=True, reason=reason)]
        return []

    def _forget(self, held: _Held) -> None:
        del self._held[held.attempt.task_key]
        self.locks.attempt_ended(held.attempt)
        self._progress.pop(held.attempt, None)
        self._ended[held.attempt] = None
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)


def _size_of(outcome: Outcome) -> int:
    match outcome:
        case Succeeded(payload) | Suspended(Payload() as payload):
            return len(payload.data)
        case _:
            return 0
