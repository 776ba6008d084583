"""Sessions over mTLS sockets and a real etcd: open, report, resume, fence, silence, farewell, bad frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from muster.audit.v1 import entry_pb2
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.spool import Spool
from tests.integration.registry.conftest import (
    DRAINING,
    JOINING,
    LOST,
    OFFLINE,
    QUICK,
    READY,
    SUSPECT,
    Eventually,
    Plane,
    agent_of,
    refused,
    state_of,
    working,
)


async def test_an_agent_opens_works_drains_and_leaves(plane: Plane, eventually: Eventually) -> None:
    app = await plane.start()
    stub = plane.stub(app.address)
    session = plane.session(app.address)
    welcome = await session.open(labels={"zone": "north"}, instance_id="blue")
    assert (welcome.version, welcome.incarnation, welcome.resumed) == (1, 1, False)
    assert (welcome.lease_ttl.ToMilliseconds(), welcome.heartbeat_interval.ToMilliseconds()) == (
        10_000,
        2_000,
    )
    # The welcome follows the commit, so what it confirms is there.
    agent = await agent_of(stub)
    (instance,) = agent.instances
    assert (agent.state, agent.generation, instance.instance_id) == (JOINING, 1, "blue")
    assert dict(instance.labels) == {"zone": "north"}
    assert [(skill.name, skill.level) for skill in agent.skills] == [("maps", 0.5)]

    ack = await session.beat(working(slots=2, used=1))
    assert ack.sequence_number == 1

    async def is_ready() -> bool:
        return await state_of(stub) == READY

    await eventually(is_ready)
    instance = (await agent_of(stub)).instances[0]
    assert (instance.load.slots, instance.load.slots_used) == (2, 1)
    assert instance.lease_expire_time.ToMilliseconds() >= ack.lease_expire_time.ToMilliseconds()

    await session.drain()

    async def is_draining() -> bool:
        return await state_of(stub) == DRAINING

    await eventually(is_draining)
    await session.beat()
    await session.farewell()
    assert await state_of(stub) == OFFLINE


async def test_what_happened_is_in_the_audit_spool(plane: Plane, tmp_path: Path) -> None:
    app = await plane.start()
    first = plane.session(app.address)
    welcome = await first.open()
    resumed = plane.session(app.address)
    assert (await resumed.open(resume_session_id=welcome.session_id)).resumed
    newer = plane.session(app.address)
    await newer.open()
    with refused() as errors:
        await plane.session(app.address).open(skills=[agent_pb2.Skill(name="!")])
    assert errors[0].reason is Reason.INVALID_FIELD
    await newer.farewell()
    await plane.stop(app)

    spool = Spool.open(tmp_path / "registry-0" / "spool")
    entries = [
        entry_pb2.Entry.FromString(payload) for payload in spool.read(spool.first_sequence, 100, 1 << 20)
    ]
    spool.close()
    told = [(one.operation, one.actor, one.subject, entry_pb2.Outcome.Name(one.outcome)) for one in entries]
    me, mine = "agent/a-agent", "agent/a-agent/0"
    assert told == [
        ("session.open", me, mine, "OUTCOME_OK"),
        ("session.resume", me, mine, "OUTCOME_OK"),
        ("session.fenced", "service/registry", mine, "OUTCOME_OK"),
        ("session.open", me, mine, "OUTCOME_OK"),
        ("session.open", me, "agent/a-agent", "OUTCOME_REFUSED"),
        ("session.close", me, mine, "OUTCOME_OK"),
    ]
    assert all(one.cause_id and one.entry_id for one in entries)


async def test_a_lost_link_is_resumed_with_the_same_incarnation(plane: Plane) -> None:
    app = await plane.start()
    session = plane.session(app.address)
    first = await session.open()
    session.cut()
    again = plane.session(app.address)
    second = await again.open(resume_session_id=first.session_id)
    assert (second.incarnation, second.resumed, second.session_id) == (1, True, first.session_id)
    assert (await agent_of(plane.stub(app.address))).instances[0].reconnects == 1


async def test_a_newer_incarnation_ends_the_older_stream(plane: Plane) -> None:
    app = await plane.start()
    older, newer = plane.session(app.address), plane.session(app.address)
    await older.open()
    assert (await newer.open()).incarnation == 2
    error = await older.error()
    assert error is not None
    assert error.reason is Reason.INCARNATION_FENCED
    assert error.metadata["incarnation"] == "2"
    assert (await newer.beat()).sequence_number == 1


async def test_instances_of_one_agent_live_side_by_side(plane: Plane) -> None:
    app = await plane.start()
    sessions = [plane.session(app.address) for _ in range(3)]
    for number, session in enumerate(sessions):
        await session.open(instance_id=str(number))
    for session in sessions:
        await session.beat()
    agent = await agent_of(plane.stub(app.address))
    assert [one.instance_id for one in agent.instances] == ["0", "1", "2"]


async def test_across_replicas_one_incarnation_lives(plane: Plane, eventually: Eventually) -> None:
    here, there = await plane.start("registry-0"), await plane.start("registry-1")
    older, newer = plane.session(here.address), plane.session(there.address)
    first = await older.open()
    assert (await newer.open()).incarnation == 2
    error = await older.error()
    assert error is not None
    assert error.reason is Reason.INCARNATION_FENCED
    # And a session goes on at another replica.
    other = plane.session(here.address, "b-agent")
    first = await other.open()
    moved = plane.session(there.address, "b-agent")
    second = await moved.open(resume_session_id=first.session_id)
    assert (second.incarnation, second.resumed) == (1, True)
    error = await other.error()
    assert error is not None
    assert error.reason is Reason.PEER_SILENT
    # Both tell the same of both agents.
    for stub in (plane.stub(here.address), plane.stub(there.address)):

        async def settled(stub: Any = stub) -> bool:
            agents = [await agent_of(stub, name) for name in ("a-agent", "b-agent")]
            return [one.instances[0].incarnation for one in agents] == [2, 1]

        await eventually(settled)


async def test_silence_makes_it_suspect_then_lost(plane: Plane, eventually: Eventually) -> None:
    app = await plane.start(**QUICK)
    stub = plane.stub(app.address)
    session = plane.session(app.address)
    await session.open(load=working())
    seen: list[int] = []

    async def lost() -> bool:
        seen.append(await state_of(stub))
        return seen[-1] == LOST

    await eventually(lost)
    assert list(dict.fromkeys(seen)) == [READY, SUSPECT, LOST]
    error = await session.error()
    assert error is not None
    assert error.reason is Reason.PEER_SILENT
    # It comes back as a new incarnation.
    again = plane.session(app.address)
    welcome = await again.open()
    assert (welcome.incarnation, welcome.resumed) == (2, False)


async def test_heartbeats_keep_it_alive_beyond_the_lease(plane: Plane, eventually: Eventually) -> None:
    app = await plane.start(**QUICK)
    agent = plane.tireless(app.address)
    await eventually(lambda: agent.acked * 200 > 2 * QUICK["lease_ttl_ms"])
    assert len(agent.welcomes) == 1
    assert await state_of(plane.stub(app.address)) == READY


class TestBadFrames:
    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            ({"heartbeat": pb.Heartbeat(sequence_number=1)}, Reason.MALFORMED_FRAME),
            ({}, Reason.MALFORMED_FRAME),
            ({"hello": pb.SessionHello(versions=[9])}, Reason.UNSUPPORTED_VERSION),
            ({"hello": pb.SessionHello(versions=[1], instance_id="!")}, Reason.INVALID_FIELD),
        ],
    )
    async def test_first(self, plane: Plane, frame: dict[str, Any], reason: Reason) -> None:
        app = await plane.start()
        session = plane.session(app.address)
        await session.send(**frame)
        error = await session.error()
        assert error is not None
        assert error.reason is reason
        # It harmed nobody.
        assert (await plane.session(app.address).open()).incarnation == 1

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            ({"hello": pb.SessionHello(versions=[1])}, Reason.MALFORMED_FRAME),
            ({}, Reason.MALFORMED_FRAME),
            ({"heartbeat": pb.Heartbeat(sequence_number=7)}, Reason.MALFORMED_FRAME),
            (
                {"heartbeat": pb.Heartbeat(sequence_number=1, load=agent_pb2.AgentLoad(cpu_ratio=9.0))},
                Reason.INVALID_FIELD,
            ),
        ],
    )
    async def test_later(self, plane: Plane, frame: dict[str, Any], reason: Reason) -> None:
        app = await plane.start()
        session = plane.session(app.address)
        welcome = await session.open()
        await session.send(**frame)
        error = await session.error()
        assert error is not None
        assert error.reason is reason
        # The session lives: it is resumed.
        assert (await plane.session(app.address).open(resume_session_id=welcome.session_id)).resumed

    async def test_bytes_that_are_no_message(self, plane: Plane) -> None:
        app = await plane.start()
        channel = plane.channel(app.address, "agent/a-agent")
        open_stream: Any = channel.stream_stream
        call = open_stream("/muster.registry.v1.RegistryService/Session")()
        await call.write(b"\xff\xff\xff\xff")
        with refused() as errors:
            await call.read()
        assert errors[0].reason is Reason.MALFORMED_FRAME

    async def test_silence_instead_of_a_hello(self, plane: Plane) -> None:
        app = await plane.start(hello_timeout_ms=200)
        error = await plane.session(app.address).error()
        assert error is not None
        assert error.reason is Reason.MALFORMED_FRAME

    async def test_a_flood_of_heartbeats(self, plane: Plane) -> None:
        app = await plane.start(heartbeats_per_second_max=1)
        session = plane.session(app.address)
        await session.open()
        with refused() as errors:
            for _ in range(100):
                await session.beat()
        assert errors[0].reason is Reason.QUOTA_EXCEEDED
        assert errors[0].retry_after_ms is not None
        assert session.sent <= 30


async def test_a_draining_replica_says_so_and_another_one_takes_over(plane: Plane) -> None:
    here, there = await plane.start("registry-0"), await plane.start("registry-1")
    session = plane.session(here.address)
    welcome = await session.open(load=working())
    await plane.stop(here)
    error = await session.error()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    again = plane.session(there.address)
    second = await again.open(resume_session_id=welcome.session_id, load=working())
    assert (second.incarnation, second.resumed) == (1, True)
    assert await state_of(plane.stub(there.address)) == READY
