"""One end of a Redis stream under load, by redis-py; keeps the protocol of benchmarks/exchange.py.

The server syncs its append-only file before it answers. The sender adds in pipelines; the receiver reads as
a consumer group and acks in pipelines. The synchronous client with hiredis is the faster one.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import redis

PAYLOAD_BYTES = 256
PIPELINE = 256
STAMP_BYTES = 8
STREAM, GROUP = "bench", "receivers"


def payload(stamp_ns: int = 0) -> bytes:
    return stamp_ns.to_bytes(STAMP_BYTES, "big").ljust(PAYLOAD_BYTES, b".")


def send(options: argparse.Namespace, client: Any) -> None:
    add_all(client, options.warmup)
    begin = time.monotonic_ns()
    if options.rate:
        for number in range(options.count):
            due = begin + int(number * 1e9 / options.rate)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            client.xadd(STREAM, {"p": payload(due)})
    else:
        add_all(client, options.count)
    tell("sent", first_ns=begin, accepted_ns=time.monotonic_ns())


def add_all(client: Any, count: int) -> None:
    for first in range(0, count, PIPELINE):
        with client.pipeline(transaction=False) as pipeline:
            for _ in range(min(PIPELINE, count - first)):
                pipeline.xadd(STREAM, {"p": payload()})
            pipeline.execute()


def receive(options: argparse.Namespace, client: Any) -> None:
    client.delete(STREAM)
    client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    tell("ready")
    latency_us = []
    arrived, total = 0, options.warmup + options.count
    while arrived < total:
        ((_, entries),) = client.xreadgroup(GROUP, "receiver", {STREAM: ">"}, count=PIPELINE, block=60_000)
        now_ns = time.monotonic_ns()
        for _, fields in entries:
            if options.rate and arrived >= options.warmup:
                stamp_ns = int.from_bytes(fields[b"p"][:STAMP_BYTES], "big")
                latency_us.append((now_ns - stamp_ns) / 1e3)
            arrived += 1
        client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
    tell("received", last_ns=time.monotonic_ns(), latency_us=latency_us)


def tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["sender", "receiver"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--tls", nargs=3, metavar=("CA", "CERTIFICATE", "KEY"))
    options = parser.parse_args()
    tls = {}
    if options.tls:
        ca, certificate, key = options.tls
        tls = {"ssl": True, "ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
    client = redis.Redis(host="127.0.0.1", port=options.port, **tls)
    (send if options.role == "sender" else receive)(options, client)


if __name__ == "__main__":
    main()
