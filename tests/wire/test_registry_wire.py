"""Proto to model and back."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from muster.common.v1 import page_pb2
from muster.registry.v1 import agent_pb2, registry_service_pb2

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.registry import wire
from services.registry.core.effects import Ack, PresencePut, Welcome
from services.registry.core.model import (
    NO_LEASE,
    AgentRecord,
    AgentState,
    Held,
    Instance,
    LeaseId,
    LinkId,
    Load,
    SkillLevel,
)

INSTANTS = st.integers(0, 253_402_300_799_999).map(Instant)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=64)
COUNTS = st.integers(0, 2**63 - 1)
SKILLS = st.lists(
    st.builds(SkillLevel, NAMES.map(Skill), st.floats(0.001, 1)), max_size=5, unique_by=lambda one: one.name
).map(lambda skills: tuple(sorted(skills)))
LOADS = st.builds(
    Load,
    st.integers(0, 1_024),
    st.integers(0, 1_024),
    st.none() | st.floats(0, 1),
    st.none() | COUNTS,
    st.booleans(),
    COUNTS,
    st.none() | INSTANTS,
)
INSTANCES = st.builds(
    Instance,
    NAMES.map(InstanceId),
    COUNTS,
    st.sampled_from(AgentState),
    INSTANTS,
    LOADS,
    INSTANTS,
    INSTANTS,
    SKILLS,
    st.dictionaries(NAMES, st.text(max_size=10), max_size=4).map(
        lambda labels: tuple(sorted(labels.items()))
    ),
    COUNTS,
    COUNTS,
)
RECORDS = st.builds(
    AgentRecord,
    NAMES.map(AgentId),
    INSTANTS,
    SKILLS,
    COUNTS,
    st.lists(INSTANCES, max_size=4).map(tuple),
)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: AgentRecord) -> None:
    stored = wire.encode_record(record)
    assert wire.decode_record(stored) == record
    assert wire.encode_record(wire.decode_record(stored)) == stored


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_value_error(stored: bytes) -> None:
    with contextlib.suppress(ValueError):
        wire.decode_record(stored)
    with contextlib.suppress(ValueError):
        wire.decode_presence(stored, NO_LEASE)


@given(NAMES, NAMES, COUNTS, COUNTS)
def test_presence_comes_back_as_it_was(agent: str, instance: str, incarnation: int, reconnects: int) -> None:
    put = PresencePut(InstanceId(instance), incarnation, reconnects)
    stored = wire.encode_presence(AgentId(agent), put)
    assert wire.decode_presence(stored, LeaseId(7)) == Held(incarnation, reconnects, LeaseId(7))
    message = agent_pb2.AgentInstance.FromString(stored)
    assert (message.agent_id, message.instance_id) == (agent, instance)


def test_golden_bytes_of_a_stored_agent() -> None:
    """What an earlier release stored must still be read; a change here needs a migration."""
    load = Load(2, 1, 0.5, 1_024, True, 7, Instant(1_700_000_000_001))
    instance = Instance(
        InstanceId("0"),
        3,
        AgentState.BUSY,
        Instant(1_700_000_010_000),
        load,
        Instant(1_700_000_000_002),
        Instant(1_700_000_000_000),
        (SkillLevel(Skill("maps"), 0.5),),
        (("zone", "north"),),
        250,
        2,
    )
    record = AgentRecord(AgentId("a"), Instant(1_600_000_000_000), instance.skills, 9, (instance,))
    stored = wire.encode_record(record)
    assert stored.hex() == GOLDEN
    assert wire.decode_record(bytes.fromhex(GOLDEN)) == record


GOLDEN = (
    "0a016112060880a0f8fa051a0f0a046d61707311000000000000e03f226d0a0161120130180320032a06088ae2cfaa06"
    "32200802100119000000000000e03f208008280130073a0a0880e2cfaa0610c0843d3a0a0880e2cfaa061080897a4206"
    "0880e2cfaa064a0f0a046d61707311000000000000e03f520d0a047a6f6e6512056e6f72746858fa01600228033009"
)


def test_an_unset_hello_is_decoded_with_nothing_made_up() -> None:
    fields = wire.hello_fields(registry_service_pb2.SessionHello())
    assert (fields.versions, fields.skills, fields.instance_id, fields.load) == ((), (), "", Load())


def test_a_set_hello_is_decoded_whole() -> None:
    hello = registry_service_pb2.SessionHello(
        versions=[2, 1],
        agent_id="a",
        instance_id="blue",
        skills=[agent_pb2.Skill(name="maps", level=0.5)],
        labels={"zone": "north"},
        resume_session_id="1.x",
        load=agent_pb2.AgentLoad(
            slots=2,
            slots_used=1,
            cpu_ratio=0.0,
            work_stream_open=True,
            coordinator_epoch=7,
            last_probe_time=Timestamp(seconds=1, nanos=2_000_000),
        ),
    )
    fields = wire.hello_fields(hello)
    assert fields.versions == (2, 1)
    assert fields.skills == (SkillLevel(Skill("maps"), 0.5),)
    assert fields.labels == (("zone", "north"),)
    assert fields.resume_session_id == "1.x"
    assert fields.load == Load(2, 1, 0.0, None, True, 7, Instant(1_002))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_any_timestamp_decodes(seconds: int, nanos: int) -> None:
    load = agent_pb2.AgentLoad()
    load.last_probe_time.seconds, load.last_probe_time.nanos = seconds, nanos
    assert wire.load(load).last_probe_time is not None


def test_frames_to_the_agent() -> None:
    welcome = Welcome("c", LinkId(1), "3.abc", 3, resumed=True)
    frame = wire.welcome_frame(welcome, lease_ttl_ms=10_500, heartbeat_interval_ms=2_000).welcome
    assert (frame.version, frame.session_id, frame.incarnation, frame.resumed) == (1, "3.abc", 3, True)
    assert (frame.lease_ttl.ToMilliseconds(), frame.heartbeat_interval.ToMilliseconds()) == (10_500, 2_000)
    ack = wire.ack_frame(Ack(LinkId(1), 5, Instant(1_001))).heartbeat_ack
    assert (ack.sequence_number, ack.lease_expire_time.ToMilliseconds()) == (5, 1_001)


class TestPages:
    def request(self, token: str, skill: str = "", size: int = 0) -> registry_service_pb2.ListAgentsRequest:
        page = page_pb2.PageRequest(page_size=size, page_token=token)
        return registry_service_pb2.ListAgentsRequest(page=page, skill=skill)

    def test_a_token_leads_on(self) -> None:
        assert wire.page_after(self.request("")) == ""
        assert wire.page_after(self.request(wire.page_token("maps", AgentId("a")), "maps")) == "a"

    @pytest.mark.parametrize("token", ["!", "AAAA", "💧", "YQ==", "Cg=="])
    def test_a_foreign_token_is_refused(self, token: str) -> None:
        with pytest.raises(ServiceError) as caught:
            wire.page_after(self.request(token))
        assert [one.field for one in caught.value.violations] == ["page.page_token"]

    def test_a_token_of_another_list_is_refused(self) -> None:
        with pytest.raises(ServiceError) as caught:
            wire.page_after(self.request(wire.page_token("maps", AgentId("a")), "boats"))
        assert caught.value.reason is Reason.INVALID_FIELD

    def test_sizes(self) -> None:
        assert wire.page_size(page_pb2.PageRequest()) == 100
        assert wire.page_size(page_pb2.PageRequest(page_size=1_000)) == 1_000
        with pytest.raises(ServiceError):
            wire.page_size(page_pb2.PageRequest(page_size=1_001))
