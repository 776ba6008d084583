"""What a hello and a report must satisfy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant
from services.registry.core.admission import admit_hello, load_violations
from services.registry.core.model import HelloFields, Load, SkillLevel

ME = AgentId("a-agent")
GOOD = HelloFields(skills=(SkillLevel(Skill("b")), SkillLevel(Skill("a"), 0.5)), labels=(("zone", "1"),))


def skills(*names: str) -> tuple[SkillLevel, ...]:
    return tuple(SkillLevel(Skill(name)) for name in names)


def test_a_good_hello_is_admitted_with_defaults_and_in_order() -> None:
    hello = admit_hello(ME, GOOD)
    assert hello.instance_id == "0"
    assert [skill.name for skill in hello.skills] == ["a", "b"]
    assert admit_hello(ME, replace(GOOD, agent_id=ME, instance_id="blue.2")).instance_id == "blue.2"


def test_an_unset_level_means_one() -> None:
    hello = admit_hello(ME, replace(GOOD, skills=(SkillLevel(Skill("a"), 0.0),)))
    assert hello.skills == (SkillLevel(Skill("a"), 1.0),)


def test_no_common_version() -> None:
    with pytest.raises(ServiceError) as caught:
        admit_hello(ME, replace(GOOD, versions=(3, 2)))
    assert caught.value.reason is Reason.UNSUPPORTED_VERSION
    assert caught.value.metadata == {"supported": "1"}


def test_an_agent_may_have_no_skills() -> None:
    assert admit_hello(ME, replace(GOOD, skills=())).skills == ()


def test_speaking_for_another_agent() -> None:
    with pytest.raises(ServiceError) as caught:
        admit_hello(ME, replace(GOOD, agent_id="b-agent"))
    assert caught.value.reason is Reason.IDENTITY_MISMATCH


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (replace(GOOD, instance_id="a b"), "hello.instance_id"),
        (replace(GOOD, instance_id="x" * 65), "hello.instance_id"),
        (replace(GOOD, skills=skills(*(f"s{n}" for n in range(65)))), "hello.skills"),
        (replace(GOOD, skills=skills("a", "B!")), "hello.skills[1].name"),
        (replace(GOOD, skills=skills("a", "a")), "hello.skills[1].name"),
        (replace(GOOD, skills=(SkillLevel(Skill("a"), 1.5),)), "hello.skills[0].level"),
        (replace(GOOD, skills=(SkillLevel(Skill("a"), -0.1),)), "hello.skills[0].level"),
        (replace(GOOD, skills=(SkillLevel(Skill("a"), math.nan),)), "hello.skills[0].level"),
        (replace(GOOD, labels=tuple((f"k{n}", "") for n in range(33))), "hello.labels"),
        (replace(GOOD, labels=(("", "v"),)), "hello.labels"),
        (replace(GOOD, labels=(("洪" * 43, "v"),)), "hello.labels"),
        (replace(GOOD, labels=(("k", "v" * 129),)), "hello.labels['k']"),
        (replace(GOOD, resume_session_id="x" * 129), "hello.resume_session_id"),
        (replace(GOOD, load=Load(slots=1_025)), "hello.load.slots"),
        (replace(GOOD, load=Load(slots_used=1_025)), "hello.load.slots_used"),
        (replace(GOOD, load=Load(cpu_ratio=math.nan)), "hello.load.cpu_ratio"),
        (replace(GOOD, load=Load(cpu_ratio=1.01)), "hello.load.cpu_ratio"),
        (replace(GOOD, load=Load(last_probe_time=Instant(-1))), "hello.load.last_probe_time"),
        (
            replace(GOOD, load=Load(last_probe_time=Instant(253_402_300_800_000))),
            "hello.load.last_probe_time",
        ),
    ],
)
def test_a_bad_field_is_named(fields: HelloFields, path: str) -> None:
    with pytest.raises(ServiceError) as caught:
        admit_hello(ME, fields)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [path]


def test_every_bad_field_is_named_at_once() -> None:
    many = skills(*(f"s{n}" for n in range(65)))
    with pytest.raises(ServiceError) as caught:
        admit_hello(ME, HelloFields(instance_id="!", skills=many, load=Load(slots=9_999)))
    assert {violation.field for violation in caught.value.violations} == {
        "hello.instance_id",
        "hello.skills",
        "hello.load.slots",
    }


@given(
    st.builds(
        HelloFields,
        versions=st.lists(st.integers(0, 3)).map(tuple),
        agent_id=st.sampled_from(["", "a-agent", "b"]),
        instance_id=st.text(max_size=70),
        skills=st.lists(st.builds(SkillLevel, st.text(max_size=70).map(Skill), st.floats()), max_size=70).map(
            tuple
        ),
        labels=st.lists(st.tuples(st.text(max_size=140), st.text(max_size=140)), max_size=35).map(tuple),
        resume_session_id=st.text(max_size=140),
        load=st.builds(Load, slots=st.integers(0, 2**32 - 1), cpu_ratio=st.floats()),
    )
)
def test_any_hello_is_admitted_or_refused_with_a_typed_error(fields: HelloFields) -> None:
    try:
        hello = admit_hello(ME, fields)
    except ServiceError:
        return
    assert len(hello.skills) <= 64
    assert all(0 < skill.level <= 1 for skill in hello.skills)
    assert load_violations(hello.load, "load") == []
