"""Killed, stopped, restarted: the registry's own process, etcd, a lease; and two thousand sessions."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
from muster.registry.v1 import registry_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.etcd.client import EtcdClient
from tests.integration.registry.conftest import (
    LOST,
    PATIENCE_S,
    QUICK,
    READY,
    Eventually,
    Plane,
    Session,
    state_of,
    working,
)


async def test_agents_survive_kill_and_restart_of_the_registry_unaided(
    plane: Plane, eventually: Eventually, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = await plane.spawn(address)
    agents = [plane.tireless(address, f"agent-{number}") for number in range(5)]
    await eventually(lambda: all(agent.acked > 2 for agent in agents))
    before = [agent.welcomes[0] for agent in agents]
    for round_number in range(2):
        child.kill()
        child = await plane.spawn(address)
        wanted = round_number + 2
        await eventually(lambda wanted=wanted: all(len(agent.welcomes) >= wanted for agent in agents))
    acked = [agent.acked for agent in agents]
    await eventually(lambda: all(agent.acked > count + 2 for agent, count in zip(agents, acked, strict=True)))
    for agent, first in zip(agents, before, strict=True):
        assert {one.session_id for one in agent.welcomes} == {first.session_id}
        assert {one.incarnation for one in agent.welcomes} == {1}
        assert all(one.resumed for one in agent.welcomes[1:])
        assert all(error.row.retryable for error in agent.errors)
    stub = plane.stub(address)
    for number in range(5):
        assert await state_of(stub, f"agent-{number}") == READY


async def test_an_agent_that_died_with_the_registry_is_lost(
    plane: Plane, eventually: Eventually, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = await plane.spawn(address, **QUICK)
    session = plane.session(address)
    await session.open(load=working())
    session.cut()
    child.kill()
    await plane.spawn(address, **QUICK)
    stub = plane.stub(address)
    assert await state_of(stub) == READY

    async def lost() -> bool:
        return await state_of(stub) == LOST

    await eventually(lost)


async def test_another_replica_declares_the_sessions_of_a_dead_one_lost(
    plane: Plane, eventually: Eventually, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = await plane.spawn(address, "registry-0", **QUICK)
    there = await plane.start("registry-1", **QUICK)
    session = plane.session(address)
    await session.open(load=working())
    stub = plane.stub(there.address)

    async def state_is(wanted: int) -> bool:
        return await state_of(stub) == wanted

    await eventually(lambda: state_is(READY))
    child.kill()
    await eventually(lambda: state_is(LOST))


async def test_a_stopped_registry_loses_nobody_when_it_goes_on(
    plane: Plane, eventually: Eventually, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = await plane.spawn(address, **QUICK)
    agent = plane.tireless(address)
    await eventually(lambda: agent.acked > 2)
    child.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    await eventually(lambda: time.monotonic() - stopped > 1.5 * QUICK["lease_ttl_ms"] / 1_000)
    child.signal(signal.SIGCONT)
    acked = agent.acked
    await eventually(lambda: agent.acked > acked + 5)
    assert {one.incarnation for one in agent.welcomes} == {1}
    assert await state_of(plane.stub(address)) == READY


async def test_etcd_killed_and_restarted_harms_no_session(own_plane: Plane, eventually: Eventually) -> None:
    app = await own_plane.start()
    agents = [own_plane.tireless(app.address, f"agent-{number}") for number in range(3)]
    await eventually(lambda: all(agent.acked > 2 for agent in agents))
    stub = own_plane.stub(app.address)
    own_plane.etcd.kill()
    acked = [agent.acked for agent in agents]
    # Heartbeats need no etcd.
    await eventually(
        lambda: all(agent.acked > count + 10 for agent, count in zip(agents, acked, strict=True))
    )
    # A newcomer waits, or is told to come again.
    late = own_plane.tireless(app.address, "late")
    await own_plane.etcd.restart()
    await eventually(lambda: late.acked > 2)
    assert all(len(agent.welcomes) == 1 for agent in agents)
    assert all(error.reason is Reason.STORE_UNAVAILABLE for error in late.errors)
    for name in ("agent-0", "agent-1", "agent-2", "late"):
        assert await state_of(stub, name) == READY


async def test_a_revoked_lease_is_replaced_and_presence_with_it(
    plane: Plane, etcd_client: EtcdClient, eventually: Eventually
) -> None:
    app = await plane.start(**QUICK)
    agent = plane.tireless(app.address)
    await eventually(lambda: agent.acked > 2)
    key = f"{plane.prefix}/registry/presence/a-agent/0"
    presence = await etcd_client.get(key)
    assert presence is not None
    await etcd_client.lease_revoke(presence.lease_id)

    async def back() -> bool:
        found = await etcd_client.get(key)
        return found is not None and found.lease_id != presence.lease_id

    await eventually(back)
    acked = agent.acked
    await eventually(lambda: agent.acked * 200 > acked * 200 + 1.5 * QUICK["lease_ttl_ms"])
    assert len(agent.welcomes) == 1
    assert await state_of(plane.stub(app.address)) == READY


async def test_a_process_stops_on_sigterm_with_code_0_and_revokes_its_presence(
    plane: Plane, etcd_client: EtcdClient, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = await plane.spawn(address)
    session = plane.session(address)
    await session.open()
    assert await child.stop(PATIENCE_S) == 0, child.story()
    error = await session.error()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    assert (await etcd_client.get_prefix(f"{plane.prefix}/registry/presence/")).kvs == ()
    assert (await etcd_client.get_prefix(f"{plane.prefix}/services/")).kvs == ()


# The time of two thousand handshakes on a busy machine must not look like silence.
PATIENT: dict[str, Any] = {
    "lease_ttl_ms": 60_000,
    "suspect_after_ms": 40_000,
    "probe_window_ms": 60_000,
    "presence_ttl_s": 60,
    "open_timeout_ms": 40_000,
}


async def test_two_thousand_sessions_beat_in_one_process(plane: Plane, etcd_client: EtcdClient) -> None:
    """Sanity, not a benchmark: opened, beaten three times, none lost, no write for a heartbeat."""
    app = await plane.start(**PATIENT)
    # Forty agents with a connection each, fifty instances over each.
    agents = [plane.channel(app.address, f"agent/agent-{number:02}") for number in range(40)]
    sessions = [(Session(channel), str(instance)) for channel in agents for instance in range(50)]
    resident = psutil.Process().memory_info().rss

    async def last_write() -> int:
        rows = await etcd_client.get_prefix(f"{plane.prefix}/registry/")
        return max(kv.mod_revision for kv in rows.kvs)

    async with asyncio.timeout(50):
        # Handshakes before streams: while two thousand open, a busy machine's handshake waits too long.
        for channel in agents:
            await channel.channel_ready()
        await asyncio.gather(*(session.open(instance_id=name, load=working()) for session, name in sessions))
        written = await last_write()
        for _ in range(3):
            await asyncio.gather(*(session.beat() for session, _ in sessions))
        assert await last_write() == written
    stub = plane.stub(app.address)
    response = await stub.ListAgents(pb.ListAgentsRequest())
    assert sum(len(agent.instances) for agent in response.agents) == 2_000
    assert {one.state for agent in response.agents for one in agent.instances} == {READY}
    grown = psutil.Process().memory_info().rss - resident
    # Both ends of each stream are in this process.
    assert grown / 2_000 < 200_000, f"{grown / 2_000:.0f} bytes for each session"
    for session, _ in sessions:
        session.cut()
