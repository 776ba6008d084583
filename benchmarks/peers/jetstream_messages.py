"""One end of a JetStream work queue under load, by nats-py; keeps the protocol of benchmarks/exchange.py.

The stream is on files. JetStream of this version syncs them every two minutes, not per message. The sender
publishes asynchronously with a window; the receiver pulls and acks each message, the last one with a
confirmed ack.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from typing import Any

import nats
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType

PAYLOAD_BYTES = 256
# Publishes that may be unanswered: more did not make it faster.
WINDOW = 1_024
FETCH = 256
STAMP_BYTES = 8


def payload(stamp_ns: int = 0) -> bytes:
    return stamp_ns.to_bytes(STAMP_BYTES, "big").ljust(PAYLOAD_BYTES, b".")


async def send(options: argparse.Namespace, connection: Any) -> None:
    stream = connection.jetstream(publish_async_max_pending=WINDOW)
    for _ in range(options.warmup):
        await stream.publish_async("bench.one", payload(), wait_stall=60.0)
    await stream.publish_async_completed()
    begin = time.monotonic_ns()
    for number in range(options.count):
        if options.rate:
            due = begin + int(number * 1e9 / options.rate)
            await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            await stream.publish_async("bench.one", payload(due), wait_stall=60.0)
        else:
            await stream.publish_async("bench.one", payload(), wait_stall=60.0)
    await stream.publish_async_completed()
    tell("sent", first_ns=begin, accepted_ns=time.monotonic_ns())


async def receive(options: argparse.Namespace, connection: Any) -> None:
    stream = connection.jetstream()
    await stream.add_stream(
        name="BENCH",
        subjects=["bench.one"],
        storage=StorageType.FILE,
        retention=RetentionPolicy.WORK_QUEUE,
    )
    consumer = await stream.pull_subscribe(
        "bench.one", durable="receiver", config=ConsumerConfig(max_ack_pending=8_192)
    )
    tell("ready")
    latency_us = []
    arrived, total = 0, options.warmup + options.count
    while arrived < total:
        messages = await consumer.fetch(1 if options.rate else min(FETCH, total - arrived), timeout=60.0)
        now_ns = time.monotonic_ns()
        for message in messages:
            if options.rate and arrived >= options.warmup:
                stamp_ns = int.from_bytes(message.data[:STAMP_BYTES], "big")
                latency_us.append((now_ns - stamp_ns) / 1e3)
            arrived += 1
            await (message.ack_sync(60.0) if arrived == total else message.ack())
    tell("received", last_ns=time.monotonic_ns(), latency_us=latency_us)


def tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["sender", "receiver"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--tls", nargs=3, metavar=("CA", "CERTIFICATE", "KEY"))
    options = parser.parse_args()
    tls = None
    if options.tls:
        ca, certificate, key = options.tls
        tls = ssl.create_default_context(cafile=ca)
        tls.load_cert_chain(certificate, key)
    connection = await nats.connect(f"nats://127.0.0.1:{options.port}", tls=tls)
    await (send if options.role == "sender" else receive)(options, connection)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
