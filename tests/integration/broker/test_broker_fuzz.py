"""Hostile input at every entry point: a typed error or a clean end, the broker goes on, memory is flat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from muster.broker.v1 import broker_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.protobuf import varint
from services.common.rpc.channel import service_dns_name
from tests.conftest import Certificates
from tests.integration.broker.broker_client import MailboxClient, envelope
from tests.integration.broker.broker_fuzz import (
    UNARY,
    Caller,
    Ending,
    hello,
    hostile_frame,
    hostile_request,
    length_field,
    wild_items,
)
from tests.integration.broker.broker_load import AWAY
from tests.integration.broker.broker_process import BrokerProcess

# A run of many is replayed by MUSTER_FUZZ_SEED=<the seed that a failure names> and its own command.
SEED = int(os.environ.get("MUSTER_FUZZ_SEED", "1"))
CALLS, NIGHTLY_CALLS = 2_000, 150_000
CALLERS = 8
# Unary calls among all, and streams whose first frame is the hostile one.
UNARY_SHARE, FIRST_SHARE = 0.15, 0.1
# Streams whose frames have a fair shape and hostile items.
ITEMS_SHARE = 0.6
FRAMES_MAX = 4
# What the process may have grown by after the first tenth, however many calls follow. Its parts: allocator
# slack, and what the hostile envelopes that were fine in the end leave in mailboxes and dedupe windows.
GROWTH_BYTES_MAX = 24 * 1024 * 1024


async def serves(address: str, certificates: Certificates) -> bool:
    """Whether an honest pair gets an envelope through."""
    try:
        beta = await MailboxClient.open(address, certificates.tls("agent/honest"))
        alpha = await MailboxClient.open(address, certificates.tls("agent/alpha"), send_only=True)
    except AWAY:
        return False
    token = random.randbytes(6).hex()
    (outcome,) = await alpha.send(envelope(f"h-{token}", "honest", token.encode()))
    (delivery,) = await beta.take(1)
    await beta.ack([delivery])
    await alpha.close()
    await beta.close()
    return not outcome.HasField("error") and delivery.envelope.payload.data == token.encode()


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, free_port: Callable[[], int]
) -> Iterator[BrokerProcess]:
    """A broker's process of its own, so that its memory is nobody else's; it outlives every test here."""
    made = BrokerProcess(certificates, tmp_path_factory.mktemp("broker"), free_port())
    made.start()
    yield made
    assert made.process is not None, "it was ended by a test"
    assert made.process.poll() is None, f"the broker died: {made.log_path.read_text()[-2_000:]}"
    made.kill()


@pytest.fixture
def caller(process: BrokerProcess, certificates: Certificates) -> Iterator[Caller]:
    """A hostile peer."""
    made = Caller(process.address, certificates.tls("agent/mallory"))
    assert made.converse([hello()]).code == "OK"
    yield made
    made.close()


def _call(caller: Caller, number: int, seed: int) -> tuple[Ending, str]:
    """Make the call that `seed` stands for; return what came and what the call was."""
    rng = random.Random(seed)
    if rng.random() < UNARY_SHARE:
        method = rng.choice(list(UNARY))
        return caller.ask(method, hostile_request(rng, method)), method
    make = wild_items if rng.random() < ITEMS_SHARE else hostile_frame
    frames = [make(rng) for _ in range(rng.randint(1, FRAMES_MAX))]
    if rng.random() > FIRST_SHARE:
        frames.insert(0, hello(f"caller-{number}", send_only=rng.random() < 0.5))
    return caller.converse(frames), "Mailbox"


async def _storm(address: str, certificates: Certificates, seeds: range) -> Counter[str]:
    """Make all calls, several at a time, and look at every ending; return how they ended."""
    tls, wanted, seen = certificates.tls("agent/mallory"), iter(seeds), Counter[str]()

    def blow(number: int) -> None:
        caller = Caller(address, tls)
        for seed in wanted:
            ending, what = _call(caller, number, seed)
            if ending.complaint():
                # Nothing is left for the others: they end with the calls that they make now.
                deque(wanted, maxlen=0)
                pytest.fail(f"{what}, MUSTER_FUZZ_SEED={seed}: {ending.complaint()}")
            seen[ending.error.reason if ending.error else "OK"] += 1
            seen["envelopes answered"] += len(ending.outcomes)
        caller.close()

    async with asyncio.TaskGroup() as callers:
        for number in range(CALLERS):
            callers.create_task(asyncio.to_thread(blow, number))
    return seen


async def _weather(process: BrokerProcess, certificates: Certificates, calls: int) -> None:
    assert process.process is not None
    memory = psutil.Process(process.process.pid).memory_info
    warm = SEED + calls // 10
    seen = await _storm(process.address, certificates, range(SEED, warm))
    before = memory().rss
    for start in range(warm, SEED + calls, 10_000):
        seen += await _storm(process.address, certificates, range(start, min(start + 10_000, SEED + calls)))
        print(f"{start - SEED} calls, grown by {(memory().rss - before) / 2**20:.1f} MiB: {dict(seen)}")
    grown = memory().rss - before
    assert grown < GROWTH_BYTES_MAX, f"{grown / 2**20:.1f} MiB more after {calls} hostile calls"
    assert await serves(process.address, certificates)
    # Nothing of it was a defect that the edge had to catch.
    assert "a call failed unexpectedly" not in process.log_path.read_text()


async def test_a_storm_of_hostile_calls(
    process: BrokerProcess, caller: Caller, certificates: Certificates
) -> None:
    await _weather(process, certificates, CALLS)


@pytest.mark.nightly
async def test_a_long_storm_of_hostile_calls(
    process: BrokerProcess, caller: Caller, certificates: Certificates
) -> None:
    await _weather(process, certificates, NIGHTLY_CALLS)


# What each frame is refused with; the words are looked for in the message and the violated fields.
CORPUS: dict[str, tuple[bytes, Reason | None, str]] = {
    "nothing": (b"", None, ""),
    "cut inside a tag": (b"\x92", Reason.MALFORMED_FRAME, "not the message"),
    "cut inside a field": (b"\x12\x20abc", Reason.MALFORMED_FRAME, "not the message"),
    "a length beyond 2 GiB": (length_field(2, b"", claimed=2**31), Reason.MALFORMED_FRAME, "not the message"),
    "a length of 2^63": (length_field(2, b"", claimed=2**63), Reason.MALFORMED_FRAME, "not the message"),
    "a varint of eleven bytes": (b"\x38" + b"\xff" * 11, Reason.MALFORMED_FRAME, "not the message"),
    "field number 0": (b"\x00\x01", Reason.MALFORMED_FRAME, "not the message"),
    "no wire type": (b"\x0f\x01", Reason.MALFORMED_FRAME, "not the message"),
    "a group that does not end": (b"\x4b", Reason.MALFORMED_FRAME, "not the message"),
    "groups a thousand deep": (b"\x4b" * 1_000 + b"\x4c" * 1_000, Reason.MALFORMED_FRAME, "not the message"),
    "text that is not UTF-8": (
        length_field(2, length_field(1, b"\xff\xfe")),
        Reason.MALFORMED_FRAME,
        "not the message",
    ),
    "a surrogate in text": (
        length_field(2, length_field(1, b"\xed\xa0\x80")),
        Reason.MALFORMED_FRAME,
        "not the message",
    ),
    "unknown fields": (length_field(99, b"?") + varint(100 << 3) + b"\x01", None, ""),
    "sends of a wrong wire type": (varint(2 << 3) + b"\x05", None, ""),
    "credits of a wrong wire type": (length_field(7, b"abc"), None, ""),
    "a second hello": (hello(), Reason.MALFORMED_FRAME, "hello comes first and once"),
    "too many envelopes": (length_field(2, b"") * 1_025, Reason.MALFORMED_FRAME, "sends: 1025 in one frame"),
    "too many acks": (length_field(3, b"\x08\x01") * 16_385, Reason.MALFORMED_FRAME, "16385 acks"),
    "too many nacks": (length_field(4, b"\x08\x01") * 16_385, Reason.MALFORMED_FRAME, "16385 acks"),
    "too many credits": (varint(7 << 3) + varint(65_537), Reason.INVALID_FIELD, "credits"),
    "credits beyond 32 bits": (varint(7 << 3) + varint(2**63 + 65_537), Reason.INVALID_FIELD, "credits"),
    "too many emergency credits": (
        varint(8 << 3) + varint(2**32 - 1),
        Reason.INVALID_FIELD,
        "emergency_credits",
    ),
}


@pytest.mark.parametrize("name", CORPUS)
def test_each_frame_of_the_corpus_is_refused_for_its_own_reason(caller: Caller, name: str) -> None:
    raw, reason, words = CORPUS[name]
    ending = caller.converse([hello(), raw])
    assert not ending.complaint()
    assert (ending.error.reason if ending.error else None) is reason
    if ending.error is not None:
        assert words in " ".join([ending.error.message, *(one.field for one in ending.error.violations)])


def first_frame(**fields: Any) -> bytes:
    values: dict[str, Any] = {"versions": [1], "incarnation": 1} | fields
    told = pb.MailboxHello(**values)
    return pb.MailboxRequest(hello=told).SerializeToString()


# First frames; the same columns.
HELLOS: dict[str, tuple[bytes, Reason | None, str]] = {
    "no hello": (
        pb.MailboxRequest(credits=1).SerializeToString(),
        Reason.MALFORMED_FRAME,
        "must hold a hello",
    ),
    "a hello and more": (first_frame() + b"\x38\x01", Reason.MALFORMED_FRAME, "and nothing else"),
    "no bytes": (b"", Reason.MALFORMED_FRAME, "must hold a hello"),
    "no version": (first_frame(versions=[]), Reason.UNSUPPORTED_VERSION, "version 1"),
    "many versions": (first_frame(versions=range(1, 100_000)), Reason.INVALID_FIELD, "hello.versions"),
    "other versions": (first_frame(versions=[2, 3]), Reason.UNSUPPORTED_VERSION, "version 1"),
    "an instance with a space": (first_frame(instance_id="a b"), Reason.INVALID_FIELD, "hello.instance_id"),
    "a long instance": (first_frame(instance_id="a" * 65), Reason.INVALID_FIELD, "hello.instance_id"),
    # Once it reached the store, and ended the broker.
    "an incarnation of 64 bits": (first_frame(incarnation=2**63), Reason.INVALID_FIELD, "hello.incarnation"),
    "the greatest incarnation": (first_frame(instance_id="last", incarnation=2**63 - 1), None, ""),
    "a token of 64 bits": (first_frame(instance_id="token", resume_ack_token=2**64 - 1), None, ""),
}


@pytest.mark.parametrize("name", HELLOS)
def test_each_first_frame_is_answered_for_what_it_is(caller: Caller, name: str) -> None:
    raw, reason, words = HELLOS[name]
    ending = caller.converse([raw])
    assert not ending.complaint()
    assert (ending.error.reason if ending.error else None) is reason
    if ending.error is not None:
        assert words in " ".join([ending.error.message, *(one.field for one in ending.error.violations)])
    # Its commit, if it had one, is over when the next stream is welcomed and answered.
    assert caller.converse([hello(), b""]).code == "OK"


@pytest.mark.parametrize("method", UNARY)
def test_a_unary_request_that_cannot_be_read_says_so(caller: Caller, method: str) -> None:
    ending = caller.ask(method, b"\x0a\x20abc")
    assert not ending.complaint()
    assert ending.error is not None
    assert ending.error.reason is Reason.MALFORMED_FRAME


def test_what_grpc_itself_refuses_ends_the_call_and_nothing_else(caller: Caller) -> None:
    # Larger than any message may be: gRPC ends the call before the broker sees a byte of it.
    assert caller.converse([hello(), bytes(4 * 1024 * 1024 + 1)]).code == "RESOURCE_EXHAUSTED"
    assert caller.ask("Mailboxes", b"").code == "UNIMPLEMENTED"
    # The connection goes on.
    assert caller.converse([hello()]).code == "OK"


def test_a_frame_of_stale_acks_is_answered_one_by_one(caller: Caller) -> None:
    acks = pb.MailboxRequest(acks=[pb.Ack(ack_token=number + 1) for number in range(16_384)])
    ending = caller.converse([hello(), acks.SerializeToString()])
    assert ending.code == "OK"
    refused = [refusal.ack_token for response in ending.responses for refusal in response.refusals]
    assert refused == list(range(1, 16_385))


@given(rng=st.randoms(use_true_random=False), send_only=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_from_the_descriptors(caller: Caller, rng: random.Random, send_only: bool) -> None:
    frames = [hello(send_only=send_only), *(wild_items(rng) for _ in range(3)), hostile_frame(rng)]
    ending = caller.converse(frames)
    assert not ending.complaint()


async def test_bytes_that_are_no_grpc_at_all(
    process: BrokerProcess, caller: Caller, certificates: Certificates
) -> None:
    rng = random.Random(5)
    host, _, port = process.address.rpartition(":")
    secure = ssl.create_default_context(cafile=str(certificates.ca_path))
    secure.load_cert_chain(*certificates.issue("agent/mallory"))
    secure.set_alpn_protocols(["h2"])
    # What opens a connection of HTTP/2, with empty settings.
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    for number in range(90):
        # No TLS; proper TLS and no HTTP/2 in it; HTTP/2 that breaks.
        tls = secure if number % 3 else None
        name = service_dns_name("broker") if tls else None
        _, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name)
        writer.write((preface if number % 3 == 2 else b"") + rng.randbytes(rng.choice((1, 9, 60, 2_000))))
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.transport.abort()
    assert await serves(process.address, certificates)
