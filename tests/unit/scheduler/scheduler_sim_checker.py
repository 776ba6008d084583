"""Checks the history of one simulated plane against guarantees T1 to T6, T9, T11, T12, T15, L1 and L3.

A history is what is outside of the scheduler: what requesters asked for and were answered, what agents were
told and said, what the store took, in order. The checker keeps its own small model of what that entitles
everybody to; the first fact that contradicts it raises `BrokenPromise` naming the guarantee. Of the scheduler
it uses the words of the protocol alone (specifications, records, events), none of its decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from services.common.core.ids import CollaborationId, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.changes import Change
from services.scheduler.core.course import Attempt, Savepoint
from services.scheduler.core.events import ForeignLock, HeldLock, ResultReport, StreamId
from services.scheduler.core.model import (
    COLLABORATION_ENDED,
    TASK_ENDED,
    TASK_WAITING,
    AttemptRef,
    AttemptState,
    CollaborationState,
    InstanceKey,
    LockMode,
    Payload,
    Priority,
    SchedulingPolicy,
    Speculation,
    Submission,
    TaskKey,
    TaskSpec,
    TaskState,
)
from services.scheduler.core.records import CollaborationRecord, StoredLock, TaskRecord
from services.scheduler.store import Batch
from tests.unit.scheduler.scheduler_sim_room import RoomChecker, all_served
from tests.unit.scheduler.scheduler_sim_seen import BrokenPromise, Case, Link, Seen


class Checker:
    """Feed it facts as they happen."""

    def __init__(
        self, *, ageing_ms: int, ageing_share: int, slots_max: int, grace_ms: int, class_lent: bool
    ) -> None:
        self.ageing_ms = ageing_ms
        self.ageing_share = ageing_share
        self.slots_max = slots_max
        #: What urgent work takes from others.
        self.room = RoomChecker(self, grace_ms=grace_ms, class_lent=class_lent)
        #: Until when a task waits by choice for a better agent than one that is free, None when it does not:
        #: the scheduler's own word, which PREDICTIVE has to give. The plane sets it.
        self.patience: Callable[[TaskKey], Instant | None] = lambda _: None
        self.epoch = 0
        self.now = Instant(0)
        self.cases: dict[CollaborationId, Case] = {}
        self.links: dict[StreamId, Link] = {}
        #: Tasks that wait for an agent or a delay, as far as the store says.
        self.waiting: dict[TaskKey, Seen] = {}
        #: Open attempts by instance.
        self.open_at: dict[InstanceKey, dict[TaskKey, Seen]] = {}
        #: What agents said about their attempts, whoever they are.
        self.said: dict[AttemptRef, list[tuple[InstanceKey, bytes]]] = {}
        #: What was handed over since `settled` was called last: (task, stream, counts as a start).
        self.handed: list[tuple[Seen, StreamId, bool]] = []
        #: Ended, and beyond their retention.
        self.forgotten: set[CollaborationId] = set()

    # Requesters.

    def accepted(self, collaboration_id: CollaborationId, submission: Submission, stored: bool) -> None:
        """A requester was told that its submission is accepted."""
        self._must(stored, "T1", f"{collaboration_id} was acknowledged and is not in the store")
        case = self.cases[collaboration_id]
        case.answered = True
        self._must(
            case.submission.content_hash == submission.content_hash,
            "T1",
            f"{collaboration_id} is another's content",
        )

    def refused_reuse(self, collaboration_id: CollaborationId, *, same_content: bool) -> None:
        """A requester was told that its request_id stands for other content."""
        self._must(not same_content, "T1", f"{collaboration_id}: a repetition was refused")

    def cancelled(self, collaboration_id: CollaborationId) -> None:
        """Somebody was told that a collaboration is cancelled."""
        case = self.cases[collaboration_id]
        case.cancelled = True
        state = None if case.record is None else case.record.state
        self._must(state is CollaborationState.CANCELLED, "T1", f"{collaboration_id} was cancelled: {state}")

    def ordered(self, collaboration_id: CollaborationId, *, goes_on: bool) -> None:
        """The scheduler gets an order to pause, or to let go on."""
        case = self.cases.get(collaboration_id)
        if case is not None:
            case.goes_on = goes_on

    def halted(self, collaboration_id: CollaborationId, *, goes_on: bool) -> None:
        """Somebody was told that a collaboration is paused, or that it goes on."""
        case = self.cases[collaboration_id]
        if case.goes_on is not goes_on or case.record is None or case.record.state in COLLABORATION_ENDED:
            # Somebody else wanted the opposite meanwhile, or it is over.
            return
        paused = case.record.state is CollaborationState.SUSPENDED
        self._must(paused is not goes_on, "T12", f"{collaboration_id} is {case.record.state.name}")

    # The store.

    def commit(self, batch: Batch, epoch: int, now: Instant) -> None:
        """The store took a batch that a leader of `epoch` wrote."""
        self.now = now
        self._must(epoch >= self.epoch, "L1", f"a leader of epoch {epoch} wrote after {self.epoch}")
        for collaboration_id, spec in batch.specs.items():
            if collaboration_id not in self.cases:
                self._open(collaboration_id, spec.submission, now)
        for header in batch.collaborations.values():
            self._commit_header(header)
        changed_gangs: dict[tuple[CollaborationId, TaskId], None] = {}
        for key, record in batch.tasks.items():
            seen = self.cases[key.collaboration_id].tasks[key.task_id]
            self._commit_task(seen, record)
            if seen.spec.gang is not None:
                changed_gangs[key.collaboration_id, seen.spec.gang.gang_id] = None
        # Dependencies may be done in the same batch: they are looked at when all of it is known.
        for key, record in batch.tasks.items():
            if any(attempt.open for attempt in record.attempts) or record.state is TaskState.SUCCEEDED:
                self._check_dependencies(self.cases[key.collaboration_id], key, record)
        for collaboration_id, gang_id in changed_gangs:
            self._check_gang(self.cases[collaboration_id].gangs[gang_id])
        for header in batch.collaborations.values():
            self._check_end(self.cases[header.collaboration_id])
        for collaboration_id in batch.forgotten:
            case = self.cases[collaboration_id]
            ended = case.record is not None and case.record.state in COLLABORATION_ENDED
            self._must(ended, "T3", f"{collaboration_id} was forgotten before it ended")
            self.forgotten.add(collaboration_id)

    def _open(self, collaboration_id: CollaborationId, submission: Submission, now: Instant) -> None:
        spec = submission.spec
        case = self.cases[collaboration_id] = Case(submission, {})
        for task in spec.tasks:
            key = TaskKey(collaboration_id, task.task_id)
            seen = Seen(key, task, spec.priority_of(task), spec.deadline_of(task), submission.requester)
            case.tasks[task.task_id] = seen
            if task.gang is not None:
                case.gangs.setdefault(task.gang.gang_id, []).append(seen)
            if not task.dependencies:
                seen.waiting_since = now
                self.waiting[key] = seen

    def _commit_header(self, header: CollaborationRecord) -> None:
        case = self.cases[header.collaboration_id]
        before = case.record
        if before is not None:
            self._must(
                header.generation >= before.generation, "T6", f"{header} goes back, {before.generation}"
            )
            over = before.state in COLLABORATION_ENDED
            self._must(
                not over or header.state is before.state, "T3", f"{header} had ended as {before.state.name}"
            )
        case.record = header

    def _commit_task(self, seen: Seen, record: TaskRecord) -> None:
        key, before = seen.key, seen.record
        if before is not None:
            self._must(record.generation >= before.generation, "T6", f"{key}: generation {record.generation}")
            if before.state in TASK_ENDED:
                self._must(
                    record.state is before.state, "T3", f"{key} was {before.state.name}: {record.state.name}"
                )
                self._must(record.result == before.result, "T3", f"{key}: its result was replaced")
        self._check_attempts(seen, record)
        if record.state is TaskState.SUCCEEDED and (before is None or before.state is not record.state):
            self._check_success(seen, record)
        self._must(
            record.failure_count <= seen.spec.retry.attempt_max,
            "T5",
            f"{key} failed {record.failure_count} times of {seen.spec.retry.attempt_max}",
        )
        seen.record = record
        if record.state in TASK_WAITING:
            since = Instant(max(record.ready_time or 0, record.retry_time or 0))
            if seen.waiting_since is None or since != seen.waiting_since:
                seen.passed_over.clear()
            seen.waiting_since = since
            self.waiting[key] = seen
        else:
            seen.waited_since = seen.waiting_since or seen.waited_since
            seen.waiting_since = None
            seen.passed_over.clear()
            self.waiting.pop(key, None)

    def _check_attempts(self, seen: Seen, record: TaskRecord) -> None:
        key, before = seen.key, seen.record
        tokens = [attempt.token for attempt in record.attempts]
        self._must(tokens == sorted(set(tokens)), "T2", f"{key}: {tokens}")
        known = {} if before is None else {attempt.token: attempt for attempt in before.attempts}
        for attempt in record.attempts:
            earlier = known.get(attempt.token)
            if earlier is None:
                self._check_new_attempt(seen, attempt, before)
            elif not earlier.open:
                same = attempt.state is earlier.state
                self._must(same, "T2", f"{key}: {attempt.token} was {earlier.state.name} already")
        opened = [attempt for attempt in record.attempts if attempt.open]
        self._must(not opened or record.state not in TASK_ENDED, "T3", f"{key} runs and has ended")
        if len(opened) > 1:
            # The first of the two may be a second one as well, whose first one has ended.
            fair = len(opened) == 2 and opened[1].speculative
            self._must(fair, "T3", f"{key} runs {len(opened)} times: {opened}")
            alone = seen.spec.speculation is Speculation.NEVER or seen.spec.resources or seen.spec.gang
            self._must(not alone, "T3", f"{key} must not run twice")
        for attempt in [] if before is None else before.attempts:
            if attempt.open:
                self.open_at.get(attempt.instance, {}).pop(key, None)
        for attempt in opened:
            self.open_at.setdefault(attempt.instance, {})[key] = seen

    def _check_new_attempt(self, seen: Seen, attempt: Attempt, before: TaskRecord | None) -> None:
        key = seen.key
        self._must(not self.is_paused(seen), "T12", f"{key} begins {attempt.token} and is paused")
        self._must(attempt.token > seen.newest, "T2", f"{key}: {attempt.token} after {seen.newest}")
        seen.newest = attempt.token
        self._must(attempt.token.epoch == self.epoch, "T2", f"{key}: {attempt.token} in epoch {self.epoch}")
        late = seen.deadline is not None and attempt.assign_time >= seen.deadline
        self._must(not late, "T4", f"{key} was assigned after its deadline")
        if before is not None and before.retry_time is not None and before.state is TaskState.READY:
            early = attempt.assign_time < before.retry_time
            self._must(not early, "T5", f"{key} was tried again before its delay was over")
        named = seen.spec.required_agents
        self._must(
            not named or attempt.instance.agent_id in named, "T3", f"{key} at {attempt.instance}, not {named}"
        )

    def _check_success(self, seen: Seen, record: TaskRecord) -> None:
        key = seen.key
        winners = [attempt for attempt in record.attempts if attempt.state is AttemptState.SUCCEEDED]
        self._must(len(winners) == 1 and record.result is not None, "T3", f"{key}: {winners}")
        ref = AttemptRef(key.collaboration_id, key.task_id, winners[0].token)
        data = b"" if record.result is None else record.result.data
        said = (winners[0].instance, data) in self.said.get(ref, [])
        self._must(said, "T2", f"{ref}: nobody who held it said {data!r}")
        late = seen.deadline is not None and record.end_time is not None and record.end_time > seen.deadline
        self._must(not late, "T4", f"{key} was done after its deadline")

    def _check_dependencies(self, case: Case, key: TaskKey, record: TaskRecord) -> None:
        for name in case.tasks[key.task_id].spec.dependencies:
            state = case.tasks[name].state
            self._must(
                state is TaskState.SUCCEEDED, "DAG", f"{key} is {record.state.name}, {name} {state.name}"
            )

    def _check_gang(self, members: list[Seen]) -> None:
        left = [each for each in members if each.state not in TASK_ENDED]
        runs = [
            attempt
            for each in left
            for attempt in (() if each.record is None else each.record.attempts)
            if attempt.open
        ]
        story = f"{len(runs)} of {len(left)} of {members[0].key} run"
        self._must(len(runs) in (0, len(left)), "T11", story)
        agents = {attempt.instance.agent_id for attempt in runs}
        self._must(len(agents) == len(runs), "T11", f"{members[0].key}: two members at one agent")

    def _check_end(self, case: Case) -> None:
        header = case.record
        if header is None or header.state not in COLLABORATION_ENDED:
            return
        for seen in case.tasks.values():
            self._must(
                seen.state in TASK_ENDED, "T3", f"{seen.key} is {seen.state.name}, its whole has ended"
            )
            done = header.state is not CollaborationState.COMPLETED or seen.state is TaskState.SUCCEEDED
            self._must(done, "T3", f"{seen.key} is {seen.state.name} of what is completed")

    # Leaders.

    def leads(self, epoch: int) -> None:
        """Another leadership began."""
        self.epoch = epoch
        self.room.disturbed()
        self.links.clear()
        for case in self.cases.values():
            case.published = None
        for seen in self.waiting.values():
            seen.passed_over.clear()

    def loaded(self, cases: Iterable[CollaborationId]) -> None:
        """A new leader finds these collaborations; others may be missing only when they were forgotten."""
        known = {*cases, *self.forgotten}
        for name, case in self.cases.items():
            self._must(
                name in known or not case.answered, "T1", f"{name} was accepted and is not known any more"
            )

    # Agents.

    def linked(
        self,
        stream: StreamId,
        instance: InstanceKey,
        skills: frozenset[str],
        capacities: Mapping[str, int],
        *,
        suspendable: bool,
    ) -> None:
        """The scheduler took in an agent's hello."""
        self.room.disturbed()
        for other in [name for name, link in self.links.items() if link.instance == instance]:
            del self.links[other]
        self.links[stream] = Link(instance, skills, capacities, suspendable)

    def unlinked(self, stream: StreamId) -> None:
        """A link is gone."""
        self.room.disturbed()
        self.links.pop(stream, None)

    def declared(self, instance: InstanceKey, skills: frozenset[str]) -> None:
        """The scheduler took in what an agent can do now."""
        for link in self.links.values():
            if link.instance == instance and link.skills != skills:
                self.room.disturbed()
                link.skills = skills
                for seen in self.waiting.values():
                    seen.passed_over.clear()

    def handed_over(
        self,
        stream: StreamId,
        ref: AttemptRef,
        attempt: Attempt,
        savepoint: Savepoint | None,
        locks: tuple[HeldLock, ...],
    ) -> None:
        """An agent is told to run an attempt."""
        seen = self.cases[ref.collaboration_id].tasks[ref.task_id]
        record = seen.record
        found = None if record is None else next((a for a in record.attempts if a.token == ref.token), None)
        self._must(found is not None and found.open, "T2", f"{ref} is handed over and not durable: {found}")
        self._must(ref.token not in seen.told, "T3", f"{ref} is handed over twice")
        seen.told.add(ref.token)
        link = self.links.get(stream)
        if link is None:
            # It was closed in the same batch; nobody hears it.
            return
        self._must(link.instance == attempt.instance, "T2", f"{ref} goes to {link.instance}")
        link.credits -= 1
        self._must(link.credits >= 0, "SLOTS", f"{link.instance} gets {ref} without a slot")
        self._must(not link.draining, "SLOTS", f"{link.instance} drains and gets {ref}")
        self.room.started(seen, link)
        lacking = set(seen.spec.required_skills) - link.skills
        self._must(not lacking, "SKILLS", f"{link.instance} gets {ref} and lacks {lacking}")
        self._check_needs(link, ref)
        claimed = {claim.resource for claim in seen.spec.resources}
        self._must({lock.resource for lock in locks} == claimed, "L3", f"{ref} without its locks: {locks}")
        if seen.saved is not None:
            fresh = savepoint is not None and savepoint.save_time >= seen.saved
            self._must(fresh, "T5", f"{ref} begins from {savepoint}, {seen.saved} was durable")
        starts = not attempt.speculative and seen.spec.gang is None
        self.handed.append((seen, stream, starts and not attempt.explanation.startswith("moved")))

    def _check_needs(self, link: Link, ref: AttemptRef) -> None:
        used: dict[str, int] = {}
        for seen in self.open_at.get(link.instance, {}).values():
            for name, amount in seen.spec.needs:
                used[name] = used.get(name, 0) + amount
        for name, amount in used.items():
            most = link.capacities.get(name, 0)
            self._must(
                amount <= most, "NEEDS", f"{link.instance} has {most} {name}, {amount} are taken: {ref}"
            )

    def said_result(self, instance: InstanceKey, report: ResultReport) -> None:
        """An agent says how an attempt ended; what it says reaches the scheduler now."""
        if isinstance(report.outcome, Payload):
            self.said.setdefault(report.attempt, []).append((instance, report.outcome.data))

    def acked(self, instance: InstanceKey, ref: AttemptRef, report: ResultReport | None) -> None:
        """An agent is told that its report is committed."""
        if report is None or not isinstance(report.outcome, Payload):
            return
        case = self.cases.get(ref.collaboration_id)
        record = None if case is None else case.tasks[ref.task_id].record
        self._must(record is not None, "T2", f"{ref} is acked and has no record")
        if record is not None:
            won = any(
                attempt.token == ref.token
                and attempt.state is AttemptState.SUCCEEDED
                and attempt.instance == instance
                for attempt in record.attempts
            )
            self._must(won, "T2", f"{ref} of {instance} is acked and is not the one that counts")

    def saved(self, ref: AttemptRef) -> None:
        """An agent is told that its savepoint is durable."""
        seen = self.cases[ref.collaboration_id].tasks[ref.task_id]
        record = seen.record
        kept = record is not None and (record.savepoint is not None or record.state in TASK_ENDED)
        self._must(kept, "T5", f"{ref}: its savepoint is not in the store")
        if record is not None and record.savepoint is not None:
            seen.saved = record.savepoint.save_time

    def holds(
        self, lock: HeldLock, keys: Mapping[tuple[str, str], StoredLock | ForeignLock], mode: LockMode
    ) -> None:
        """Somebody is told that a lock is held; `keys` are those in the store."""
        mine, older = False, []
        for (resource, _), row in keys.items():
            if resource != lock.resource:
                continue
            revision = row.revision if isinstance(row, StoredLock) else row.create_revision
            if revision == lock.token.number and isinstance(row, StoredLock):
                mine = True
            elif revision < lock.token.number:
                shared = isinstance(row, StoredLock) and row.mode is LockMode.SHARED
                if not (shared and mode is LockMode.SHARED):
                    older.append(row)
        self._must(mine, "L3", f"{lock} is granted and not in the store")
        self._must(not older, "L3", f"{lock} is granted and {older} is older")

    # Watchers.

    def published(self, change: Change) -> None:
        """Watchers see a change."""
        case = self.cases.get(change.collaboration_id)
        self._must(case is not None, "T6", f"{change.collaboration_id} is published and not durable")
        if case is not None:
            before = case.published
            one = before is None or change.generation == before + 1
            self._must(one, "T6", f"{change.collaboration_id}: {change.generation} after {before}")
            case.published = change.generation

    # At rest.

    def settled(self, now: Instant) -> None:
        """A batch is over, and nothing of it is left to be done."""
        self.now = now
        if self.handed:
            self._count_starts()
            self._check_urgent()
            self.handed.clear()
        self.room.settled(now)
        free = [
            link
            for link in self.links.values()
            if link.credits > self.room.kept(link.instance) and not link.draining
        ]
        if free and self.waiting:
            self._check_progress(free)

    def _count_starts(self) -> None:
        """T9: what has aged is not passed over for longer than the bound says."""
        aged = [
            seen
            for seen in self.waiting.values()
            if seen.waiting_since is not None
            and seen.waiting_since + self.ageing_ms < self.now
            and seen.priority is not Priority.EMERGENCY
            and not self.is_paused(seen)
        ]
        # Those that have just been started were aged beside it.
        rivals = aged + [
            seen
            for seen, *_ in self.handed
            if seen.waited_since is not None and seen.waited_since + self.ageing_ms < self.now
        ]
        requesters = len({seen.requester for seen in rivals})
        for seen in aged:
            if not seen.simple:
                continue
            ahead = sum(other.requester == seen.requester for other in rivals)
            before = seen.rivals if seen.passed_over else (0, 0)
            seen.rivals = max(before[0], requesters), max(before[1], ahead)
            for started, stream, counts in self.handed:
                link = self.links.get(stream)
                if link is None or not counts or started.priority is Priority.EMERGENCY:
                    continue
                if self._can(link, seen):
                    passed = seen.passed_over[stream] = seen.passed_over.get(stream, 0) + 1
                    # What one agent's slots get in one placement is decided at once.
                    bound = seen.rivals[0] * seen.rivals[1] * (self.ageing_share + self.slots_max - 1)
                    self._must(
                        passed <= bound, "T9", f"{seen.key} was passed over {passed} times at {stream}"
                    )

    def _check_urgent(self) -> None:
        for seen in self.waiting.values():
            if seen.priority is not Priority.EMERGENCY or not seen.simple or not self.is_ready(seen):
                continue
            if self._waits_by_choice(seen):
                continue
            for started, stream, counts in self.handed:
                link = self.links.get(stream)
                if counts and link is not None and started.priority > seen.priority:
                    unfair = self._can(link, seen) and not started.spec.resources
                    self._must(not unfair, "T9", f"{seen.key} waits and {started.key} was started")

    def _check_progress(self, free: list[Link]) -> None:
        # An aged gang may keep agents for itself.
        if any(
            seen.spec.gang is not None
            and seen.waiting_since is not None
            and seen.waiting_since + self.ageing_ms <= self.now
            and not self.is_paused(seen)
            for seen in self.waiting.values()
        ):
            return
        for seen in self.waiting.values():
            if seen.spec.resources or seen.spec.gang is not None or not self.is_ready(seen):
                continue
            # Where a slot is kept, capacities are kept with it.
            able = [
                link
                for link in free
                if self._can(link, seen) and not (seen.spec.needs and self.room.kept(link.instance))
            ]
            if able and self._waits_by_choice(seen):
                continue
            self._must(not able, "PROGRESS", f"{seen.key} waits and {able} could do it")

    def _waits_by_choice(self, seen: Seen) -> bool:
        """Return whether a task may wait beside a free agent: its policy looks ahead, and says until when."""
        policy = self.cases[seen.key.collaboration_id].submission.spec.policy
        until = self.patience(seen.key) if policy is SchedulingPolicy.PREDICTIVE else None
        return until is not None and until >= self.now

    def is_ready(self, seen: Seen) -> bool:
        since = seen.waiting_since
        return since is not None and since <= self.now and not self.is_paused(seen)

    def is_paused(self, seen: Seen) -> bool:
        record = self.cases[seen.key.collaboration_id].record
        return record is not None and record.state is CollaborationState.SUSPENDED

    def _can(self, link: Link, seen: Seen) -> bool:
        spec = seen.spec
        if not link.skills.issuperset(spec.required_skills):
            return False
        if spec.required_agents and link.instance.agent_id not in spec.required_agents:
            return False
        for name, amount in spec.needs:
            held = self.open_at.get(link.instance, {}).values()
            used = sum(dict(other.spec.needs).get(name, 0) for other in held)
            if used + amount > link.capacities.get(name, 0):
                return False
        return True

    def able(self, seen: Seen) -> bool:
        """Return whether the linked agents could do a task, and all that it waits for, in their time."""
        case = self.cases[seen.key.collaboration_id]
        if any(
            case.tasks[name].state not in TASK_ENDED and not self.able(case.tasks[name])
            for name in seen.spec.dependencies
        ):
            return False
        mates = [seen] if seen.spec.gang is None else case.gangs[seen.spec.gang.gang_id]
        return all_served(
            [
                {link.instance for link in self.links.values() if self._could(link, mate.spec)}
                for mate in mates
                if mate.state not in TASK_ENDED
            ]
        )

    def _could(self, link: Link, spec: TaskSpec) -> bool:
        return (
            link.skills.issuperset(spec.required_skills)
            and (not spec.required_agents or link.instance.agent_id in spec.required_agents)
            and all(amount <= link.capacities.get(name, 0) for name, amount in spec.needs)
        )

    def open_cases(self) -> dict[CollaborationId, Case]:
        """Return what has not ended."""
        return {
            name: case
            for name, case in self.cases.items()
            if case.record is None or case.record.state not in COLLABORATION_ENDED
        }

    def _must(self, holds: bool, promise: str, story: str) -> None:
        if not holds:
            raise BrokenPromise(promise, story)
