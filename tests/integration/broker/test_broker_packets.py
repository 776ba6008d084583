"""Single packets that are lost, late, doubled and out of order inside a live link: nobody above it sees it.

The whole test runs once more in a network namespace of its own, where it may make a device.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_load import SteadyReceiver, SteadySender, check_course
from tests.integration.broker.broker_lossy_link import FAR, NEAR, LossyLink, Weather
from tests.integration.broker.broker_process import BrokerProcess

IN_A_NAMESPACE = ["unshare", "--map-root-user", "--net"]
INSIDE = "MUSTER_TEST_INSIDE_NAMESPACE"
ENVELOPES = 10_000
WEATHERS = {
    "2 % lost": Weather(),
    "10 % lost": Weather(loss=0.1, late=0.1),
    "out of order": Weather(loss=0.0, doubled=0.05, late=0.3),
}


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WEATHERS)
async def test_packets_are_lost_in_a_live_link(
    name: str,
    tmp_path: Path,
    certificates: Certificates,
    free_port: Callable[[], int],
    eventually: Eventually,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if os.environ.get(INSIDE) == name:
        story = await _in_this_weather(name, tmp_path, certificates, free_port(), eventually)
    else:
        story = await asyncio.to_thread(_once_more_inside, name)
    with capsys.disabled():
        print(story, flush=True)


def _once_more_inside(name: str) -> str:
    """Run this test in a network namespace; return what it printed there."""
    if not Path("/dev/net/tun").exists() or subprocess.run([*IN_A_NAMESPACE, "true"], check=False).returncode:
        pytest.skip("this system lets nobody make a network of one's own")
    test = f"{__file__}::test_packets_are_lost_in_a_live_link[{name}]"
    options = ["-m", "nightly", "-q", "--timeout=900", "-o", "faulthandler_timeout=0"]
    done = subprocess.run(
        [*IN_A_NAMESPACE, sys.executable, "-m", "pytest", test, *options],
        env=os.environ | {INSIDE: name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:]
    return next(line for line in done.stdout.splitlines() if line.startswith(name))


async def _in_this_weather(
    name: str, folder: Path, certificates: Certificates, port: int, eventually: Eventually
) -> str:
    link = LossyLink(WEATHERS[name], seed=7)
    broker = BrokerProcess(certificates, folder / "broker", port, listen=f"{NEAR}:{port}")
    broker.start()
    sender = SteadySender(f"{FAR}:{port}", certificates.tls("agent/alpha"))
    receiver = SteadyReceiver(f"{FAR}:{port}", certificates.tls("agent/beta"))
    running = [asyncio.create_task(receiver.run())]
    try:
        await eventually(lambda: receiver.opened, timeout=60)
        running.append(asyncio.create_task(sender.run()))
        await eventually(lambda: len(receiver.effects) > ENVELOPES, timeout=800)
        sender.stop()
        await asyncio.wait_for(running[1], 60)
        await eventually(lambda: len(receiver.effects) >= len(sender.sequences), timeout=60)
        receiver.stop()
        await asyncio.wait_for(running[0], 60)
        check_course(sender, receiver)
        # It was one link all the time: TCP and the broker lived with it.
        assert (sender.opened, receiver.opened, receiver.repeats) == (1, 1, 0)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        broker.kill()
        link.close()
    return (
        f"{name}: {len(receiver.effects)} envelopes; of {link.passed + link.lost} packets {link.lost} lost,"
        f" {link.late} late, {link.doubled} doubled"
    )
