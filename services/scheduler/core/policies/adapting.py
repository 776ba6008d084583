"""Policies of collaborations that name none are chosen by what came of earlier ones; off by default.

What a collaboration brings its arm: the earliest end that could be predicted for it when it was submitted
(its longest chain of expected durations), over how long it took; 0 when a deadline passed. Cancelled, paused
and otherwise failed ones say nothing. A collaboration with an EMERGENCY is served by the default and counts
for nothing; while the choice is frozen, all are served by the preferred arm and count for nothing.

The choice is in the collaboration's record, so that it stays with it under every leader. What was learned is
one record, which rides in the batch of each end and is guarded like every write; a new leader counts anew
what is under way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Collaboration, Trial
from services.scheduler.core.effects import Answer, SaveLearned
from services.scheduler.core.events import PolicyAction, PolicyOrdered
from services.scheduler.core.model import CollaborationSpec, CollaborationState, PolicyArm, Priority
from services.scheduler.core.policies.bandit import Change, Choice, LoadCell, PolicyCell
from services.scheduler.core.prediction.cells import LearnedKey

KEY = LearnedKey("policies", "adaptive")
#: The share of the slots that are taken or waited for is below the first, the second, or neither.
_LIGHT, _BUSY = 0.5, 1.0
_SELF = "service/scheduler"


class PolicyView(NamedTuple):
    """What is known about the policies, for people."""

    arms: tuple[str, ...]
    frozen: bool
    #: By the name of the load, in order of load.
    loads: tuple[tuple[str, LoadCell], ...]


def choose(book: Book, spec: CollaborationSpec) -> tuple[Trial | None, str]:
    """Return the arm for a new collaboration and why; None when its policy is given."""
    bandit = book.bandit
    if not bandit.arms or spec.policy is not None:
        return None, ""
    if Priority.EMERGENCY in {spec.priority_of(task) for task in spec.tasks}:
        return Trial(bandit.default, ""), f"{bandit.default}: nothing is tried on an emergency"
    load = _load(book)
    choice = bandit.preferred(load) if bandit.cell.frozen else bandit.choose(load)
    trial = Trial(choice.arm, "" if bandit.cell.frozen else load)
    return trial, _words(load, choice, frozen=bandit.cell.frozen)


def styled(book: Book, spec: CollaborationSpec, trial: Trial | None) -> CollaborationSpec:
    """Return a specification with the policy of its trial; with the default if that is gone."""
    if trial is None:
        return spec
    arms = {arm.name: arm for arm in book.settings.arms}
    arm = arms.get(trial.arm) or PolicyArm(book.settings.policy)
    return replace(spec, policy=arm.policy, weights=spec.weights if arm.weights is None else arm.weights)


def adopt(book: Book, trial: Trial | None) -> None:
    """Note a trial that began under the leader before and goes on."""
    if trial is not None and trial.load and book.bandit.arms:
        book.bandit.adopt(trial.load, trial.arm)


def restore(book: Book, cell: PolicyCell) -> None:
    """Take over what the leader before had learned."""
    book.bandit.cell = cell.copy()


def abandon(book: Book, collaboration: Collaboration) -> None:
    """A collaboration says nothing about its policy any more."""
    trial = collaboration.trial
    if trial is not None and trial.load:
        collaboration.trial = Trial(trial.arm, "")
        if book.bandit.arms:
            book.bandit.abandon(trial.load, trial.arm)


def ended(step: Step, collaboration: Collaboration) -> None:
    """Learn from a collaboration that has ended."""
    book, trial = step.book, collaboration.trial
    if trial is None or not trial.load or not book.bandit.arms:
        return
    reward = _reward(step, collaboration)
    if reward is None or book.bandit.cell.frozen:
        book.bandit.abandon(trial.load, trial.arm)
        return
    for change in book.bandit.learn(trial.load, trial.arm, reward):
        _record(step, trial.load, change)
    step.effects.append(SaveLearned(KEY, book.bandit.cell.copy()))


def order(step: Step, event: PolicyOrdered) -> None:
    """Freeze the choice, let it go on, or forget all that was learned, as an operator wants."""
    bandit = step.book.bandit
    if not bandit.arms:
        error = ServiceError(
            Reason.WRONG_STATE,
            'policies do not adapt here: set scheduling_policy = "ADAPTIVE" in the configuration',
            metadata={"state": "OFF"},
        )
        step.effects.append(Answer(event.reply, error))
        return
    if event.action is PolicyAction.RESET:
        pending = [
            (load, name)
            for load, cell in bandit.cell.loads.items()
            for name, arm in cell.arms.items()
            for _ in range(arm.pending)
        ]
        bandit.cell = PolicyCell(frozen=bandit.cell.frozen)
        for load, name in pending:
            bandit.adopt(load, name)
    else:
        bandit.cell.frozen = event.action is PolicyAction.FREEZE
    step.effects.append(SaveLearned(KEY, bandit.cell.copy()))
    step.entry(
        f"policy.{event.action.name.lower()}",
        "policy/adaptive",
        event.actor,
        attributes={"why": event.reason} if event.reason else None,
    )
    step.effects.append(Answer(event.reply, bandit.cell))


def view(book: Book) -> PolicyView:
    """Return what is known about the policies."""
    bandit = book.bandit
    if not bandit.arms:
        return PolicyView((), False, ())
    return PolicyView(
        bandit.arms,
        bandit.cell.frozen,
        tuple((name, bandit.load(name)) for name in ("light", "busy", "full")),
    )


def _load(book: Book) -> str:
    index = book.index
    index.settle()
    slots = index.fleet.totals.slots
    if not slots:
        return "full"
    share = (int(index.fleet.held.sum()) + index.waiting_count) / slots
    return "light" if share < _LIGHT else "busy" if share < _BUSY else "full"


def _reward(step: Step, collaboration: Collaboration) -> float | None:
    failures = [collaboration.tasks[task_id].failure for task_id in collaboration.failed]
    if any(failure is not None and failure.reason == "DEADLINE_PASSED" for failure in failures):
        return 0.0
    if collaboration.state is not CollaborationState.COMPLETED:
        return None
    bound_ms = max((task.rank_ms for task in collaboration.tasks.values()), default=0)
    return min(1.0, bound_ms / max(1, step.now - collaboration.submit_time))


def _record(step: Step, load: str, change: Change) -> None:
    step.entry(
        f"policy.{change.what}",
        "policy/adaptive",
        _SELF,
        attributes={"load": load, "policy": change.arm, "why": change.why},
    )


def _words(load: str, choice: Choice, *, frozen: bool) -> str:
    return f"{choice.arm} under {load} load: {'frozen, ' if frozen else ''}{choice.why}"
