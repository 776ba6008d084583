"""Policies that adapt, through the core: what is chosen, learned, kept, and what an operator may change."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.scheduler.config import arms_of
from services.scheduler.core.book import Settings
from services.scheduler.core.course import Trial
from services.scheduler.core.effects import Effect
from services.scheduler.core.events import PolicyAction, PolicyOrdered, ReplyId
from services.scheduler.core.model import PolicyArm, PolicyWeights, SchedulingPolicy
from services.scheduler.core.policies import adapting
from services.scheduler.core.policies.bandit import TRIALS_MIN
from tests.unit.scheduler.scheduler_stage import EMERGENCY, START, Stage, answer, task

PRIORITY = PolicyArm(SchedulingPolicy.PRIORITY)
EARLIEST = PolicyArm(SchedulingPolicy.MULTI_OBJECTIVE, PolicyWeights(finish_time=1.0))
ROUND = PolicyArm(SchedulingPolicy.ROUND_ROBIN)


@pytest.fixture
def stage() -> Stage:
    return Stage(
        Settings(arms=(PRIORITY, ROUND, EARLIEST), probe_interval_ms=10**9, silence_ms_max=2 * 10**9),
        validate=False,
    )


def order(stage: Stage, action: PolicyAction) -> list[Effect]:
    return stage.batch(PolicyOrdered("order", action, "operator/admin", "why not", ReplyId(9)))


def run(stage: Stage, stream: object, number: int, took_ms: int = 1_000) -> str:
    """Let one collaboration be done; return its arm."""
    name = f"n{number}"
    stage.submit(task("t"), request_id=name)
    trial = stage.collaboration(name).trial
    stage.frame(stream, started=(stage.ref("t", name),))  # type: ignore[arg-type]
    stage.pass_time(took_ms)
    stage.finish(stream, "t", request_id=name)  # type: ignore[arg-type]
    assert trial is not None
    return trial.arm


def operations(stage: Stage) -> list[str]:
    return [entry.operation for entry in stage.entries]


def test_what_serves_better_is_found_and_used(stage: Stage) -> None:
    """ROUND_ROBIN is made to look quick: what it gets takes a quarter of the time."""
    stream = stage.agent("a", slots=2)
    arms: list[str] = []
    for number in range(400):
        stage.submit(task("t"), request_id=f"n{number}")
        trial = stage.collaboration(f"n{number}").trial
        assert trial is not None
        arms.append(trial.arm)
        stage.pass_time(1_500 if trial.arm == "ROUND_ROBIN" else 6_000)
        stage.finish(stream, "t", request_id=f"n{number}")
    assert set(arms[:TRIALS_MIN]) == {"PRIORITY"}
    assert arms[-100:].count("ROUND_ROBIN") >= 85
    assert stage.collaboration("n399").tasks["t"].demand.style.policy is SchedulingPolicy.ROUND_ROBIN  # type: ignore[index]
    [preferred] = [entry for entry in stage.entries if entry.operation == "policy.prefer"]
    assert preferred.attributes["policy"] == "ROUND_ROBIN"
    assert preferred.attributes["load"] == "light"
    submitted = [entry for entry in stage.entries if entry.operation == "collaboration.submit"]
    assert "ROUND_ROBIN under light load" in submitted[-1].attributes["policy"]
    # Kept for the next leader, which goes on with it.
    stage.take_over()
    assert stage.state.book.bandit.load("light").preferred == "ROUND_ROBIN"
    assert stage.state.book.bandit.load("light").arms["ROUND_ROBIN"].count > 100


def test_a_choice_stays_with_its_collaboration_under_the_next_leader(stage: Stage) -> None:
    stage.submit(task("t"))
    stage.collaboration().trial = Trial(EARLIEST.name, "full")
    stage.store.headers[stage.collaboration().collaboration_id] = stage.store.headers[
        stage.collaboration().collaboration_id
    ]._replace(trial=Trial(EARLIEST.name, "full"))
    stage.take_over()
    style = stage.task("t").demand.style
    assert (style.policy, style.weights) == (EARLIEST.policy, EARLIEST.weights)
    assert stage.state.book.bandit.load("full").arms[EARLIEST.name].pending == 1


def test_nothing_is_tried_on_emergencies_and_what_names_a_policy_is_left_alone(stage: Stage) -> None:
    stage.submit(task("t", priority=EMERGENCY))
    assert stage.collaboration().trial == Trial("PRIORITY", "")
    stage.submit(task("t"), request_id="r2", policy=SchedulingPolicy.LEAST_LOADED)
    assert stage.collaboration("r2").trial is None


def test_a_missed_deadline_is_worth_nothing_and_a_cancelled_one_says_nothing(stage: Stage) -> None:
    stage.submit(task("t"), deadline=Instant(START + 5_000))
    stage.pass_time(6_000)
    cell = stage.state.book.bandit.load("full").arms["PRIORITY"]
    assert (cell.count, cell.mean, cell.pending) == (1, 0.0, 0)
    stage.submit(task("t"), request_id="r2")
    assert cell.pending == 1
    stage.cancel("r2")
    assert (cell.count, cell.pending) == (1, 0)


def test_freeze_and_reset_are_recorded_and_survive(stage: Stage) -> None:
    stream = stage.agent("a")
    assert run(stage, stream, 1) == "PRIORITY"
    order(stage, PolicyAction.FREEZE)
    run(stage, stream, 2)
    assert stage.state.book.bandit.load("light").arms["PRIORITY"].count == 1
    stage.take_over()
    assert adapting.view(stage.state.book).frozen
    order(stage, PolicyAction.RESET)
    assert stage.state.book.bandit.load("light").arms["PRIORITY"].count == 0
    assert adapting.view(stage.state.book).frozen
    order(stage, PolicyAction.UNFREEZE)
    assert adapting.view(stage.state.book).frozen is False
    assert [each for each in operations(stage) if each.startswith("policy.")] == [
        "policy.freeze",
        "policy.reset",
        "policy.unfreeze",
    ]


def test_where_policies_do_not_adapt_nothing_is_chosen_or_changed() -> None:
    stage = Stage()
    stage.submit(task("t"))
    assert stage.collaboration().trial is None
    assert adapting.view(stage.state.book).arms == ()
    error = answer(order(stage, PolicyAction.FREEZE))
    assert isinstance(error, ServiceError)
    assert error.reason is Reason.WRONG_STATE


@pytest.mark.parametrize(
    "text", ["", "NONSENSE", "PRIORITY,PRIORITY", "MULTI_OBJECTIVE:speed=1", "MULTI_OBJECTIVE:cost=x"]
)
def test_a_configuration_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="adaptive_policies"):
        arms_of(text)


def test_off_by_default() -> None:
    assert Settings().arms == ()
