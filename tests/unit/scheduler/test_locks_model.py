"""The lock table against naive models, over random courses of events.

Two kinds of courses. *Plain*: an owner has one request at a time, so the table must do exactly what a dozen
lines of brute force do. *Nested*: owners hold locks and ask for more, so deadlocks arise; then the invariants
are checked after every event, and at the end that everything comes to an end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, InstanceId, ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.locking.queue import ForeignKey, InstanceOwner, LockId, LockOwner, LockRequest
from services.scheduler.core.locking.table import Freed, Lent, LockOutcome, LockTable, Proposed, Refused
from services.scheduler.core.locking.words import LockView
from services.scheduler.core.model import InstanceKey, LockMode, Priority, ResourceClaim

RESOURCES = [ResourceName(name) for name in "ABCD"]
OWNERS = 5
STEP_MS = 10

Modes = dict[ResourceName, LockMode]


@dataclass(frozen=True)
class Event:
    kind: str
    owner: int
    claims: tuple[ResourceClaim, ...]
    priority: Priority
    later_ms: int
    may_wait: bool
    # Which of several candidates an event is about.
    pick: int


claims = st.lists(
    st.builds(ResourceClaim, st.sampled_from(RESOURCES), st.sampled_from(LockMode)),
    min_size=1,
    max_size=3,
    unique_by=lambda claim: claim.resource,
).map(tuple)


def events(kinds: list[str]) -> st.SearchStrategy[list[Event]]:
    return st.lists(
        st.builds(
            Event,
            kind=st.sampled_from(kinds),
            owner=st.integers(0, OWNERS - 1),
            claims=claims,
            priority=st.sampled_from(Priority),
            later_ms=st.integers(0, 2 * STEP_MS),
            may_wait=st.integers(0, 9).map(bool),
            pick=st.integers(0, 7),
        ),
        max_size=60,
    )


def owner(number: int) -> InstanceOwner:
    return InstanceOwner(InstanceKey(AgentId(f"o{number}"), InstanceId("0")))


def conflict(one: Modes, other: Modes) -> bool:
    return any(LockMode.EXCLUSIVE in (one[name], other[name]) for name in one.keys() & other.keys())


@dataclass
class Known:
    """What a test knows about one request from the outcomes alone."""

    request: LockRequest
    order: tuple[int, int]
    modes: Modes
    stage: str = "waiting"
    #: The class in which it counts: its own, or a more urgent one that was lent to it.
    counts: Priority = Priority.LOW


@dataclass
class Course:
    """Feeds events to a table and keeps what the outcomes say."""

    table: LockTable = field(default_factory=lambda: LockTable(ageing_step_ms=STEP_MS))
    now: int = 1_000
    made: int = 0
    known: dict[LockId, Known] = field(default_factory=dict)
    foreign: dict[ResourceName, str] = field(default_factory=dict)

    def staged(self, *stages: str) -> list[Known]:
        return [known for known in self.known.values() if known.stage in stages]

    def of(self, who: LockOwner, *stages: str) -> list[Known]:
        return [known for known in self.staged(*stages) if known.request.owner == who]

    def apply(self, event: Event) -> list[LockOutcome]:
        self.now += event.later_ms
        outcomes = self._apply(event)
        self.note(outcomes)
        return outcomes

    def note(self, outcomes: Iterable[LockOutcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Proposed(request):
                    assert self.known[request.lock_id].stage == "waiting"
                    self.known[request.lock_id].stage = "proposed"
                case Refused(request):
                    assert self.known.pop(request.lock_id).stage == "waiting"
                case Lent(request, lender, priority):
                    known = self.known[request.lock_id]
                    assert priority < known.counts, "nothing is lent that it has already"
                    assert self.known[lender.lock_id].counts == priority
                    gained = (known.counts - priority) * STEP_MS
                    known.order = (known.order[0] - gained, known.order[1])
                    known.counts = priority
                case Freed(lock_id, resources):
                    known = self.known[lock_id]
                    for name in resources:
                        del known.modes[name]
                    if not known.modes:
                        del self.known[lock_id]

    def _apply(self, event: Event) -> list[LockOutcome]:
        def picked(*stages: str) -> Known | None:
            candidates = self.staged(*stages)
            return candidates[event.pick % len(candidates)] if candidates else None

        match event.kind:
            case "request":
                return self._request(event)
            case "confirm" if known := picked("proposed", "abandoned"):
                return self.confirm(known)
            case "roll back" if known := picked("proposed", "abandoned"):
                if known.stage == "abandoned":
                    del self.known[known.request.lock_id]
                else:
                    known.stage = "waiting"
                return self.table.roll_back(known.request.lock_id)
            case "release" if known := picked("waiting", "proposed", "held"):
                return self._release(known)
            case "release part" if known := picked("held"):
                return self.table.release(known.request.lock_id, [next(iter(known.modes))])
            case "give up" if known := picked("waiting"):
                return self.table.give_up(known.request.lock_id)
            case "expire":
                who = owner(event.owner)
                for known in self.of(who, "waiting"):
                    del self.known[known.request.lock_id]
                for known in self.of(who, "proposed"):
                    known.stage = "abandoned"
                return self.table.expire_owner(who)
            case "foreign":
                return self._foreign(event.claims[0].resource)
        return []

    def _request(self, event: Event) -> list[LockOutcome]:
        self.made += 1
        request = LockRequest(LockId(f"l{self.made}"), owner(event.owner), event.claims, event.priority)
        counts = min(event.priority, self.lent_to(request.owner) or event.priority)
        order = (self.now + counts * STEP_MS, self.made)
        self.known[request.lock_id] = Known(
            request, order, {claim.resource: claim.mode for claim in event.claims}, counts=counts
        )
        return self.table.request(request, Instant(self.now), may_wait=event.may_wait)

    def confirm(self, known: Known) -> list[LockOutcome]:
        if known.stage == "proposed":
            known.stage = "held"
        agent = known.request.owner.instance if isinstance(known.request.owner, InstanceOwner) else None
        assert agent is not None
        self.made += 1
        token = FencingToken(1, self.made)
        return self.table.confirm(known.request.lock_id, token, agent, Instant(self.now))

    def _release(self, known: Known) -> list[LockOutcome]:
        if known.stage == "waiting":
            del self.known[known.request.lock_id]
        elif known.stage == "proposed":
            known.stage = "abandoned"
        return self.table.release(known.request.lock_id)

    def _foreign(self, resource: ResourceName) -> list[LockOutcome]:
        if resource in self.foreign:
            return self.table.remove_foreign(resource, self.foreign.pop(resource))
        self.made += 1
        self.foreign[resource] = f"foreign {resource}"
        self.table.put_foreign(ForeignKey(resource, self.foreign[resource], self.made))
        return []

    # Naive arithmetic on what is known.

    def in_the_way(self, known: Known) -> list[Known]:
        """Who holds what leaves no room for `known`."""
        return [
            other
            for other in self.staged("proposed", "abandoned", "held")
            if conflict(known.modes, other.modes)
        ]

    def before(self, known: Known) -> list[Known]:
        """Who waits before `known` and conflicts with it."""
        return [
            other
            for other in self.staged("waiting")
            if other.order < known.order and conflict(known.modes, other.modes)
        ]

    def waits_for(self, start: LockOwner, target: LockOwner) -> bool:
        """Whether `start` waits for something that `target` holds, through others too."""
        seen, stack = {start, target}, [start]
        while stack:
            for known in self.of(stack.pop(), "waiting"):
                holders = {
                    other.request.owner for other in self.in_the_way(known) if other.stage != "abandoned"
                }
                if target in holders:
                    return True
                found = holders | {other.request.owner for other in self.before(known)}
                stack += found - seen
                seen |= found
        return False

    def lent_to(self, who: LockOwner) -> Priority | None:
        """The most urgent class of all who wait for `who`: directly, or for somebody who does."""
        waits = {
            (known.request.owner, other.request.owner, known.request.priority)
            for known in self.staged("waiting")
            for other in (*self.in_the_way(known), *self.before(known))
            if other.stage != "abandoned"
        }
        reached = {who}
        while more := {waiter for waiter, blocker, _ in waits if blocker in reached} - reached:
            reached |= more
        classes = [
            known.request.priority
            for known in self.staged("waiting")
            if known.request.owner != who
            and any((known.request.owner, blocker, known.request.priority) in waits for blocker in reached)
        ]
        return min(classes, default=None)

    def is_grantable(self, known: Known) -> bool:
        """The rule, word by word: room, nobody before it who may not be passed, no circle."""
        owner_of = known.request.owner
        if self.in_the_way(known) or known.modes.keys() & self.foreign.keys():
            return False
        may_pass = bool(self.of(owner_of, "proposed", "held"))
        if not all(
            may_pass and self.waits_for(other.request.owner, owner_of) for other in self.before(known)
        ):
            return False
        then_waiting = {
            other.request.owner
            for other in self.staged("waiting")
            if other is not known and conflict(other.modes, known.modes)
        }
        return not has_circle(self.hard_edges() | {(other, owner_of) for other in then_waiting})

    def hard_edges(self) -> set[tuple[LockOwner, LockOwner]]:
        return {
            (known.request.owner, other.request.owner)
            for known in self.staged("waiting")
            for other in self.in_the_way(known)
            if other.stage != "abandoned"
        }

    def check(self) -> None:
        """The table shows what the outcomes said, and no two holders are incompatible."""
        views: dict[LockId, list[LockView]] = {}
        for view in self.table.snapshot():
            if view.lock_id is not None:
                views.setdefault(view.lock_id, []).append(view)
        assert views.keys() == self.known.keys()
        for lock_id, known in self.known.items():
            # All or none.
            assert {view.resource: view.mode for view in views[lock_id]} == known.modes
            assert {view.held for view in views[lock_id]} == {known.stage != "waiting"}
        holders = self.staged("proposed", "abandoned", "held")
        assert not any(
            conflict(one.modes, other.modes) for one in holders for other in holders if one is not other
        )
        # Priority inheritance: what is lent is the most urgent class that waits, through chains too.
        for who in {known.request.owner for known in self.known.values()}:
            lent = self.table.lent_to(who)
            assert (None if lent is None else lent.priority) == self.lent_to(who), who
        # No inversion: whoever is waited for waits itself in a place of at least that class.
        for known in self.staged("waiting"):
            for other in self.in_the_way(known):
                for own in self.of(other.request.owner, "waiting") if other.stage != "abandoned" else ():
                    assert own.counts <= known.counts, (known, other, own)


def has_circle(edges: set[tuple[LockOwner, LockOwner]]) -> bool:
    """Naive: take away edges to those who wait for nobody until nothing changes."""
    while kept := {(one, other) for one, other in edges if any(other == start for start, _ in edges)}:
        if kept == edges:
            return True
        edges = kept
    return False


@settings(max_examples=400, deadline=None)
@given(events(["request", "request", "confirm", "roll back", "release", "give up", "expire", "foreign"]))
def test_with_one_request_an_owner_it_does_what_brute_force_does(course_events: list[Event]) -> None:
    course = Course()
    for event in course_events:
        if event.kind == "request" and course.of(
            owner(event.owner), "waiting", "proposed", "abandoned", "held"
        ):
            continue
        outcomes = course.apply(event)
        course.check()
        # Whoever has room has somebody in front of it.
        for known in course.staged("waiting"):
            free = not course.in_the_way(known) and not (known.modes.keys() & course.foreign.keys())
            assert not free or course.before(known), f"{known} should have been granted"
        proposed = [course.known[o.request.lock_id] for o in outcomes if isinstance(o, Proposed)]
        assert not any(course.before(known) for known in proposed), "somebody was overtaken"
        assert [known.order for known in proposed] == sorted(known.order for known in proposed)


@settings(max_examples=600, deadline=None)
@given(
    events(
        ["request"] * 5
        + ["confirm"] * 3
        + ["roll back", "release", "release part", "give up", "expire", "foreign"]
    )
)
def test_with_nested_requests_no_deadlock_is_left_and_none_is_invented(course_events: list[Event]) -> None:
    course = Course()
    for event in course_events:
        waits_before = course.hard_edges()
        for outcome in course.apply(event):
            if isinstance(outcome, Refused) and "cycle" in outcome.error.metadata:
                check_circle(outcome, course, event, waits_before)
        course.check()
        assert not has_circle(course.hard_edges())
        assert not [known for known in course.staged("waiting") if course.is_grantable(known)], "forgotten"
    drain(course)


def check_circle(
    refused: Refused,
    course: Course,
    event: Event,
    waits_before: set[tuple[LockOwner, LockOwner]],
) -> None:
    """Each step of the circle was real: it stood before the event, or the event's request made it."""
    names = refused.error.metadata["cycle"].split(" -> ")
    assert names[0] == names[-1] == str(refused.request.owner)
    real = {(str(one), str(other)) for one, other in waits_before}
    steps = set(itertools.pairwise(names))
    if event.kind == "request":
        new = {claim.resource: claim.mode for claim in event.claims}
        # Holders as they are now are those of then, save for what went on when the circle was broken.
        real |= {
            (str(owner(event.owner)), str(other.request.owner))
            for other in course.staged("proposed", "abandoned", "held")
            if conflict(new, other.modes)
        }
        assert steps <= real
    else:
        # A grant that was rolled back waits again.
        assert event.kind == "roll back"


def drain(course: Course) -> None:
    """Let every owner that waits for nothing finish, again and again: nobody may be left."""
    for resource in list(course.foreign):
        course.note(course._foreign(resource))
    while True:
        in_flight = course.staged("proposed", "abandoned")
        if in_flight:
            course.note(course.confirm(in_flight[0]))
            continue
        done = [known for known in course.staged("held") if not course.of(known.request.owner, "waiting")]
        if not done:
            break
        course.note(course.table.release(done[0].request.lock_id))
    course.check()
    assert course.known == {}, "somebody waits for ever"
    assert repr(course.table) == "<LockTable requests=0 resources=0>"
