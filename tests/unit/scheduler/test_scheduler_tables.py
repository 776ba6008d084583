"""The life cycles: every pair of state and input either moves to a known state or is refused."""

from __future__ import annotations

import itertools
from enum import IntEnum
from typing import Any

import pytest
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.machine import InvalidTransitionError, Table
from services.scheduler.core.machine import (
    ATTEMPT,
    COLLABORATION,
    TASK,
    AttemptInput,
    CollaborationInput,
    TaskInput,
)
from services.scheduler.core.model import (
    ATTEMPT_OPEN,
    COLLABORATION_ENDED,
    TASK_ENDED,
    AttemptState,
    CollaborationState,
    FailureKind,
    LockMode,
    TaskState,
    UnknownSkillPolicy,
)

MACHINES: list[tuple[Table[Any, Any], type[IntEnum], type[IntEnum], frozenset[Any]]] = [
    (COLLABORATION, CollaborationState, CollaborationInput, COLLABORATION_ENDED),
    (TASK, TaskState, TaskInput, TASK_ENDED),
    (ATTEMPT, AttemptState, AttemptInput, frozenset(AttemptState) - ATTEMPT_OPEN),
]


@pytest.mark.parametrize(
    ("table", "states", "inputs", "ended"), MACHINES, ids=lambda each: getattr(each, "name", "")
)
def test_every_pair_is_decided(
    table: Table[Any, Any], states: type[IntEnum], inputs: type[IntEnum], ended: frozenset[Any]
) -> None:
    for state, given in itertools.product(states, inputs):
        if table.allows(state, given):
            assert table.next("x", state, given) in states
            assert state not in ended, f"{state.name} is final"
        else:
            with pytest.raises(InvalidTransitionError, match=given.name):
                table.next("x", state, given)


@pytest.mark.parametrize(
    ("table", "states", "inputs", "ended"), MACHINES, ids=lambda each: getattr(each, "name", "")
)
def test_every_input_is_used_and_every_end_reached(
    table: Table[Any, Any], states: type[IntEnum], inputs: type[IntEnum], ended: frozenset[Any]
) -> None:
    rows = [*table.rows()]
    assert {given for _, given, _ in rows} == set(inputs)
    reached = {table.start}
    for _ in rows:
        reached |= {target for state, _, target in rows if state in reached}
    assert ended <= reached
    assert {state for state, _, _ in rows} <= reached


@pytest.mark.parametrize(
    ("ours", "proto"),
    [
        (CollaborationState, collaboration_pb.CollaborationState),
        (UnknownSkillPolicy, collaboration_pb.UnknownSkillPolicy),
        (TaskState, task_pb.TaskState),
        (AttemptState, task_pb.AttemptState),
        (FailureKind, task_pb.FailureKind),
        (LockMode, task_pb.LockMode),
    ],
)
def test_the_numbers_are_the_protos(ours: type[IntEnum], proto: Any) -> None:
    prefix = proto.Name(0).removesuffix("UNSPECIFIED")
    assert {f"{prefix}{each.name}": each.value for each in ours} == {
        name: number for name, number in proto.items() if number
    }
