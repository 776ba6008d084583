"""One end of a mailbox under load, written as a user writes an agent; compare `mailbox_load`.

Run: python -m benchmarks.client_load --help. The plane is the one in $MUSTER_HOME. Keeps the protocol of
`benchmarks.exchange`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque

import uvloop

from agent_client import Agent, Receipt
from agent_client.pending import Pending
from benchmarks.mailbox_load import PAYLOAD_BYTES
from benchmarks.priority import raise_own
from benchmarks.programs import tell

# Messages whose acceptance the sender does not wait for before it sends the next.
WINDOW = 4_096
_STAMP_BYTES = 8


async def send(options: argparse.Namespace) -> None:
    """Be the sending end."""
    async with Agent("sender", ["load"]) as agent:
        await agent.wait_ready()
        await _send_all(agent, options.warmup)
        first_ns = time.monotonic_ns()
        if options.rate:
            await _send_paced(agent, options.count, options.rate, first_ns)
        else:
            await _send_all(agent, options.count)
        tell("sent", first_ns=first_ns, accepted_ns=time.monotonic_ns())


async def _send_all(agent: Agent, count: int) -> None:
    waiting: deque[Pending[Receipt]] = deque()
    for _ in range(count):
        waiting.append(agent.send("receiver", _payload(0)))
        if len(waiting) == WINDOW:
            await waiting.popleft()
    while waiting:
        await waiting.popleft()


async def _send_paced(agent: Agent, count: int, rate: float, begin_ns: int) -> None:
    waiting: list[Pending[Receipt]] = []
    for number in range(count):
        due_ns = begin_ns + int(number * 1e9 / rate)
        await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
        waiting.append(agent.send("receiver", _payload(due_ns)))
    for pending in waiting:
        await pending


async def receive(options: argparse.Namespace) -> None:
    """Be the receiving end."""
    latency_us: list[float] = []
    async with Agent("receiver", ["load"]) as agent:
        await agent.wait_ready()
        tell("ready")
        arrived, total = 0, options.warmup + options.count
        async for delivery in agent.messages():
            now_ns = time.monotonic_ns()
            if options.rate and arrived >= options.warmup:
                stamp_ns = int.from_bytes(delivery.payload[:_STAMP_BYTES], "big")
                latency_us.append((now_ns - stamp_ns) / 1e3)
            arrived += 1
            delivery.ack()
            if arrived == total:
                break
    # Leaving waits until the broker has the last ack.
    tell("received", last_ns=time.monotonic_ns(), latency_us=latency_us)


def _payload(stamp_ns: int) -> bytes:
    return stamp_ns.to_bytes(_STAMP_BYTES, "big").ljust(PAYLOAD_BYTES, b".")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_load", description=__doc__)
    roles = {"sender": send, "receiver": receive}
    parser.add_argument("role", choices=list(roles))
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="messages before those that are counted")
    parser.add_argument(
        "--rate", type=float, required=True, help="messages per second; 0: as fast as possible"
    )
    options = parser.parse_args()
    if options.rate:
        raise_own()
    uvloop.run(roles[options.role](options))


if __name__ == "__main__":
    main()
