"""Agents' Work streams: hello, frames, silence, broken links, and what the registry says about them."""

from __future__ import annotations

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant, after
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Task
from services.scheduler.core.effects import CancelAttempt, CloseStream, EndLease, Probe, Welcome
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    InstanceView,
    StreamId,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.instances import NO_SKILLS, Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.locking import requests as lock_requests
from services.scheduler.core.model import AttemptRef, AttemptState, InstanceKey, TaskKey
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.running import outcomes, reports, savepoints, suspension
from services.scheduler.core.timers import Timer, TimerKind

#: Probes are sent at multiples of this, in milliseconds.
_PROBE_GRID_MS = 250


def open_stream(step: Step, event: WorkOpened) -> None:
    """Link an instance, and compare what it holds with what it is thought to hold."""
    book = step.book
    instance = book.instances.get(event.instance)
    view = book.directory.instance(event.instance)
    newest = max(0 if instance is None else instance.incarnation, 0 if view is None else view.incarnation)
    if event.incarnation < newest:
        _fence(step, event.stream, event.instance, event.incarnation, newest)
        return
    if instance is None:
        instance = note_instance(book, event.instance, event.incarnation)
    elif instance.stream is not None:
        # The older link is half-open, or its incarnation is over: one instance has one stream.
        older = instance.stream
        if event.incarnation > instance.incarnation:
            _fence(step, older, event.instance, instance.incarnation, event.incarnation)
        else:
            replaced = ServiceError(Reason.PEER_SILENT, "this stream was replaced by a newer one")
            step.effects.append(CloseStream(older, replaced))
        unlink(step, instance)
    book.timers.cancel(instance.timer)
    instance.incarnation = event.incarnation
    instance.recovered = False
    instance.stream = event.stream
    instance.suspendable = event.suspendable
    instance.heard = step.now
    instance.timer = _probe_later(step, instance)
    book.streams[event.stream] = instance
    step.effects.append(Welcome(event.stream))
    step.entry(
        "work.open",
        f"agent/{event.instance}",
        f"agent/{event.instance.agent_id}",
        attributes={"incarnation": str(event.incarnation), "held": str(len(event.held))},
    )
    observing.linked(step, instance)
    _reconcile(step, instance, event.stream, event.held)
    lock_requests.reconcile(step, instance, event.stream, event.held_locks)
    book.victims.put_instance(instance)
    book.index.touch(instance)


def take_frame(step: Step, event: WorkFrame) -> None:
    """Take in everything that one frame holds."""
    book = step.book
    instance = book.streams.get(event.stream)
    if instance is None:
        # The stream was closed by us while this frame was on its way; what matters is sent again.
        return
    instance.heard = step.now
    if event.probe_nonce and event.probe_nonce == instance.probe_nonce:
        instance.probe_nonce = 0
    if event.started:
        ended = {report.attempt for report in event.results}
        for ref in event.started:
            reports.start(step, instance, event.stream, ref, ended)
    for report in event.progress:
        reports.progress(step, instance, report)
    for saved in event.savepoints:
        savepoints.save(step, instance, event.stream, saved)
    for result in event.results:
        reports.result(step, instance, event.stream, result)
    for released in event.lock_releases:
        lock_requests.release(step, instance, released)
    for asked in event.lock_requests:
        lock_requests.request(step, instance, event.stream, asked)
    if event.drain and not instance.draining:
        _drain(step, instance)
    if event.credits:
        _grant(step, instance, event.stream, event.credits)
    book.index.touch(instance)


def close_stream(step: Step, event: WorkClosed) -> None:
    """A link is gone: its agent has a while to come back, unless the registry says that it will not."""
    instance = step.book.streams.get(event.stream)
    if instance is None:
        return
    unlink(step, instance)
    step.entry("work.close", f"agent/{instance.key}", f"agent/{instance.key.agent_id}")
    view = step.book.directory.instance(instance.key)
    if not (instance.held or instance.lock_ids):
        forget(step, instance)
    elif view is not None and is_over(view, instance):
        lose(step, instance, "the registry says that it is gone")


def probe(step: Step, instance: Instance) -> None:
    """Ask a linked instance for a sign of life, or close its stream when it was silent for too long."""
    book = step.book
    if instance.stream is None or instance.heard is None:
        return
    silent_ms = step.now - instance.heard
    if silent_ms >= book.settings.silence_ms_max:
        story = f"nothing came for {silent_ms} ms; open a new stream"
        step.effects.append(CloseStream(instance.stream, ServiceError(Reason.PEER_SILENT, story)))
        close_stream(step, WorkClosed(step.cause_id, instance.stream))
        return
    book.probe_nonce += 1
    instance.probe_nonce = book.probe_nonce
    step.effects.append(Probe(instance.stream, book.probe_nonce))
    instance.timer = _probe_later(step, instance)
    claims.renew(step, instance)


def _probe_later(step: Step, instance: Instance) -> Timer:
    """Set the next probe, on a grid: a hundred idle agents are probed by four ticks a second, not twenty."""
    at = after(step.now, step.book.settings.probe_interval_ms)
    return step.book.timers.set(Instant(at + -at % _PROBE_GRID_MS), TimerKind.PROBE, instance)


def lose(step: Step, instance: Instance, why: str) -> None:
    """An instance will not come back: its attempts go elsewhere, its locks to others."""
    for task in [*instance.held.values()]:
        if (attempt := task.at(instance.key)) is not None:
            outcomes.lose(step, task, attempt, f"{instance.key}: {why}")
    claims.end_instance(step, instance)
    forget(step, instance)


def forget(step: Step, instance: Instance) -> None:
    """Let go of an unlinked instance on which nothing depends any more."""
    book = step.book
    book.timers.cancel(instance.timer)
    instance.timer = None
    book.index.forget_instance(instance)
    del book.instances[instance.key]
    step.effects.append(EndLease(instance.key))


def unlink(step: Step, instance: Instance) -> None:
    """Take an instance off its stream; the grace for its return begins."""
    book = step.book
    if instance.stream is not None:
        del book.streams[instance.stream]
    instance.stream = None
    instance.heard = None
    instance.credits = 0
    instance.draining = False
    instance.probe_nonce = 0
    book.timers.cancel(instance.timer)
    until = after(step.now, book.settings.reconnect_grace_ms)
    instance.timer = book.timers.set(until, TimerKind.GRACE, instance)
    lock_requests.end_waiting(step, instance)
    claims.renew(step, instance)
    book.victims.drop_instance(instance)
    book.index.touch(instance)


def _drain(step: Step, instance: Instance) -> None:
    """Give an instance nothing new: what runs goes on, what it has not started moves if somebody else can."""
    instance.draining = True
    step.entry("work.drain", f"agent/{instance.key}", f"agent/{instance.key.agent_id}")
    step.book.victims.drop_instance(instance)
    for task in [*instance.held.values()]:
        attempt = task.at(instance.key)
        if attempt is None or attempt.state is not AttemptState.ASSIGNED or attempt.start_time is not None:
            continue
        if any(_can_take(other, task) for other in step.book.instances.values() if other is not instance):
            outcomes.move(step, task, attempt, f"{instance.key} drains and had not started it")


def _can_take(other: Instance, task: Task) -> bool:
    named = task.demand.agents
    return (
        other.stream is not None
        and not other.draining
        and level_for(other.levels, task.demand) is not None
        and (not named or other.key.agent_id in named)
    )


def note_instance(book: Book, key: InstanceKey, incarnation: int) -> Instance:
    """Return a new instance with what the registry says about it."""
    instance = book.instances[key] = Instance(key, incarnation)
    view = book.directory.instance(key)
    if view is not None:
        _declare(instance, view)
    return instance


def change_agents(step: Step, event: AgentsChanged) -> None:
    """Take in what the registry says: skills, and instances that are gone or were replaced."""
    book = step.book
    changed: list[AgentView] = [*event.agents]
    if event.snapshot:
        gone = book.directory.keep_only(agent.agent_id for agent in event.agents)
        changed += [agent._replace(skills=frozenset(), instances=()) for agent in gone]
    for agent in event.agents:
        book.directory.put(agent)
    names = frozenset(agent.agent_id for agent in changed)
    for instance in [instance for key, instance in book.instances.items() if key.agent_id in names]:
        _change_instance(step, instance)


def _change_instance(step: Step, instance: Instance) -> None:
    view = step.book.directory.instance(instance.key)
    if view is None:
        instance.levels = NO_SKILLS
        step.book.index.touch(instance)
        step.book.victims.put_instance(instance)
        return
    _declare(instance, view)
    step.book.index.touch(instance)
    step.book.victims.put_instance(instance)
    if instance.stream is None:
        if is_over(view, instance):
            give_up(step, instance)
    elif view.incarnation > instance.incarnation:
        # Its process may live on under the new incarnation and still run its attempts: the grace lets it
        # come back and say so. A session that merely ended does not count against a stream that answers.
        _fence(step, instance.stream, instance.key, instance.incarnation, view.incarnation)
        unlink(step, instance)


def give_up(step: Step, instance: Instance) -> None:
    """The registry says that an unlinked instance is gone: do not wait for it; after a takeover, not long.

    Whoever took the leader down may have taken the registry with it, and then its sessions are over although
    the agents live and are on their way to the new leader.
    """
    if not instance.recovered:
        lose(step, instance, "the registry says that it is gone")
        return
    book = step.book
    until = after(step.now, book.settings.gone_grace_ms)
    if instance.timer is not None and until < instance.timer.at:
        book.timers.cancel(instance.timer)
        instance.timer = book.timers.set(until, TimerKind.GRACE, instance)


def is_over(view: InstanceView, instance: Instance) -> bool:
    """Return whether the registry knows that the incarnation last seen will not come back."""
    return view.incarnation > instance.incarnation or (view.gone and view.incarnation == instance.incarnation)


def _fence(step: Step, stream: StreamId, key: InstanceKey, incarnation: int, newest: int) -> None:
    error = ServiceError(
        Reason.INCARNATION_FENCED,
        f"incarnation {incarnation} of {key} is over: {newest} is live; open a new session at the registry",
        metadata={"incarnation": str(newest)},
    )
    step.effects.append(CloseStream(stream, error))
    step.entry(
        "work.open", f"agent/{key}", f"agent/{key.agent_id}", outcome=Outcome.REFUSED, reason=error.reason
    )


def _grant(step: Step, instance: Instance, stream: StreamId, more: int) -> None:
    """Add credits; the stream of an agent that grants more than may be open ends: its count is off."""
    most = step.book.settings.credit_max
    total = instance.credits + more
    if total > most:
        error = ServiceError(Reason.INVALID_FIELD, f"credits: {total} would be open, at most {most} may be")
        step.effects.append(CloseStream(stream, error))
        close_stream(step, WorkClosed(step.cause_id, stream))
        return
    if not instance.draining:
        instance.credits = total


def _reconcile(step: Step, instance: Instance, stream: StreamId, held: tuple[AttemptRef, ...]) -> None:
    """Adopt the attempts that the agent still holds, stop void ones, lose those that it knows nothing of.

    An attempt that the agent names is adopted even by a newer incarnation: whoever names the current token
    runs it, and starting a second one beside it is what tokens are there to avoid.
    """
    named: set[TaskKey] = set()
    for ref in held:
        task = step.book.task(ref)
        attempt = None if task is None else task.at(instance.key)
        if task is None or attempt is None or attempt.token != ref.token:
            step.effects.append(CancelAttempt(stream, ref, "this attempt is no longer the current one"))
            continue
        named.add(task.key)
        if attempt.incarnation != instance.incarnation:
            attempt = attempt._replace(incarnation=instance.incarnation)
            task.replace(attempt)
            step.task_changed(task)
        if attempt.state is AttemptState.SUSPENDING:
            # It may not have heard it; and if it has, slots are counted anew on every link.
            suspension.ask_again(step, task, attempt, instance)
    lost: list[Task] = [task for key, task in instance.held.items() if key not in named]
    for task in lost:
        # Assigned to a link that broke: the agent never got it, or died and forgot it.
        if (attempt := task.at(instance.key)) is not None:
            outcomes.lose(step, task, attempt, f"{instance.key} came back without it")


def _declare(instance: Instance, view: InstanceView) -> None:
    """Take in what an instance says that it can do."""
    instance.levels = dict(view.skills)
    instance.capacities = dict(view.capacities)
    instance.cost = view.cost
