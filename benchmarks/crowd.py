"""Many idle agents in one process: each has its own identity, its own connections, a session and a mailbox.

Run: python -m benchmarks.crowd --help. As light as a client can be on the generated stubs, since what is
measured is the other end. Each agent reports that work reaches it, so that the registry calls it READY; there
is no Work stream behind that report.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from muster.broker.v1.broker_service_pb2 import MailboxHello, MailboxRequest
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.registry.v1.agent_pb2 import AgentLoad, Skill
from muster.registry.v1.registry_service_pb2 import SessionHello, SessionRequest
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from benchmarks.plane import agent_tls
from benchmarks.programs import tell
from services.common.rpc.channel import make_channel

CREDITS = 64
# Agents that connect at the same time: a handshake costs both ends a few milliseconds of processor.
JOINING_MAX = 32
_JOIN_S_MAX = 60.0


def crowd_name(number: int) -> str:
    """Return the name of one agent of the crowd."""
    return f"crowd-{number}"


def raise_file_limit() -> None:
    """Allow this process, and those that it starts, as many open files as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Member:
    """One agent: a Session stream with heartbeats, and a Mailbox stream with credit."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        tls = agent_tls(options.home, name)
        self._name, self._beats = name, 0
        self.interval_s = 0.0
        self._registry = make_channel(options.registry, tls, "registry")
        self._broker = make_channel(options.broker, tls, "broker")
        session_stub: Any = RegistryServiceStub(self._registry)
        mailbox_stub: Any = BrokerServiceStub(self._broker)
        self._session: Any = session_stub.Session()
        self._mailbox: Any = mailbox_stub.Mailbox()
        self._reader: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Be registered, connected and READY."""
        hello = SessionHello(versions=[1], instance_id="0", skills=[Skill(name="idle")], load=_report())
        await self._session.write(SessionRequest(hello=hello))
        welcome = (await self._session.read()).welcome
        self.interval_s = welcome.heartbeat_interval.ToTimedelta().total_seconds()
        first = MailboxHello(versions=[1], instance_id="0", incarnation=welcome.incarnation)
        await self._mailbox.write(MailboxRequest(hello=first))
        await self._mailbox.read()
        await self._mailbox.write(MailboxRequest(credits=CREDITS, emergency_credits=CREDITS))
        self._reader = asyncio.create_task(self._read_acks(), name=self._name)

    async def beat(self) -> None:
        """Send one heartbeat; raises when the stream is gone."""
        self._beats += 1
        request = SessionRequest()
        request.heartbeat.sequence_number = self._beats
        request.heartbeat.load.CopyFrom(_report())
        await self._session.write(request)

    async def leave(self) -> None:
        """End everything at once."""
        if self._reader is not None:
            self._reader.cancel()
        await self._registry.close(None)
        await self._broker.close(None)

    async def _read_acks(self) -> None:
        while await self._session.read():
            pass


def _report() -> AgentLoad:
    load = AgentLoad(slots=1, work_stream_open=True)
    load.last_probe_time.GetCurrentTime()
    return load


async def _beat_all(members: Sequence[Member]) -> None:
    """Send everybody's heartbeats, spread over their interval."""
    loop = asyncio.get_running_loop()
    pause_s = min(member.interval_s for member in members) / len(members)
    due = loop.time()
    while True:
        for member in members:
            await member.beat()
            due += pause_s
            if (ahead_s := due - loop.time()) > 0.005:
                await asyncio.sleep(ahead_s)


async def serve(options: argparse.Namespace) -> None:
    """Join with everybody, say so, and stay until ended."""
    raise_file_limit()
    members: list[Member] = []
    beating: set[asyncio.Task[None]] = set()
    numbers = range(options.first, options.first + options.count)
    for start in range(0, len(numbers), JOINING_MAX):
        group = [Member(options, crowd_name(number)) for number in numbers[start : start + JOINING_MAX]]
        async with asyncio.timeout(_JOIN_S_MAX):
            await asyncio.gather(*(member.join() for member in group))
        members += group
        # From their first second on: the others still take a while.
        beating.add(asyncio.create_task(_beat_all(group)))
    tell("joined", count=len(members))
    done, _ = await asyncio.wait(beating, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder with a plane's certificates")
    parser.add_argument("--registry", required=True, help="host:port")
    parser.add_argument("--broker", required=True, help="host:port")
    parser.add_argument("--first", type=int, required=True, help="number of the first agent")
    parser.add_argument("--count", type=int, required=True)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
