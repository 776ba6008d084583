"""What can be asked of a plane that somebody else started: its state, its end, a certificate."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.common.clock import SystemClock
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.identity import TRUST_DOMAIN, Principal
from services.common.rpc.channel import make_channel
from services.common.tls import TlsIdentity
from services.local.certs import PlaneCertificates
from services.local.events import Emit, PlaneEvent
from services.local.launcher import STOP_GRACE_S
from services.local.layout import ETCD, SERVICES, STAGES, Places
from services.local.lock import holder
from services.local.part import serves

# As long as a plane may take in which every stage, and etcd, needs its whole grace, in seconds.
STOP_S_MAX = STOP_GRACE_S * (len(STAGES) + 1) + 5.0
_STOP_PAUSE_S = 0.05
_ETCD_TIMEOUT_S = 1.0


class ControlError(Exception):
    """There is nothing to control, or it does not obey; the message says what to do."""


def issue(places: Places, principal: Principal, emit: Emit) -> None:
    """Issue a certificate; the plane need not run, but must have been started once."""
    certificates = PlaneCertificates(places.directory, trust_domain=_trust_domain(places))
    certificate, key = certificates.issue(principal)
    facts = {"name": str(principal), "certificate": str(certificate), "key": str(key)}
    emit(PlaneEvent("issued", facts))


def make_certificates(directory: Path, trust_domain: str, etcd_names: tuple[str, ...], emit: Emit) -> None:
    """Make both authorities and what they sign for every service, for a plane that runs elsewhere."""
    PlaneCertificates(directory, trust_domain=trust_domain).prepare(SERVICES, etcd_names)
    emit(PlaneEvent("certified", {"directory": str(directory)}))


async def tell_state(places: Places, emit: Emit) -> bool:
    """Emit the state of each process; return whether all of them serve."""
    processes = _processes(places)
    certificates = PlaneCertificates(places.directory, trust_domain=_trust_domain(places))
    serving = await asyncio.gather(*(_serves(process, certificates, places) for process in processes))
    for process, good in zip(processes, serving, strict=True):
        emit(PlaneEvent("part", {**process, "state": "serving" if good else "not serving"}))
    return all(serving)


def stop(places: Places, emit: Emit) -> None:
    """Stop the plane that runs in the folder and wait until it has ended; fine when there is none."""
    pid = holder(places.lock)
    if pid:
        clock = SystemClock()
        emit(PlaneEvent("asked", {"pid": pid}))
        os.kill(pid, signal.SIGTERM)
        give_up_ms = clock.monotonic_ms() + int(1_000 * STOP_S_MAX)
        while holder(places.lock) == pid:
            if clock.monotonic_ms() > give_up_ms:
                raise ControlError(
                    f"the plane's launcher (pid {pid}) does not end; `kill -9 {pid}` ends all of it"
                )
            time.sleep(_STOP_PAUSE_S)
    emit(PlaneEvent("stopped"))


def _processes(places: Places) -> Sequence[Mapping[str, object]]:
    if holder(places.lock) is None:
        raise ControlError(
            f"no plane runs in {places.directory}; start one: "
            f"python -m services.local up --directory {places.directory}"
        )
    try:
        processes: list[dict[str, object]] = json.loads(places.state.read_text(encoding="utf-8"))["processes"]
    except FileNotFoundError:
        raise ControlError(f"the plane in {places.directory} is just starting or ending; ask again") from None
    return processes


def _trust_domain(places: Places) -> str:
    """Return what the plane was started with; context.json is written at its first start."""
    try:
        domain: str = json.loads(places.context.read_text(encoding="utf-8"))["trust_domain"]
    except FileNotFoundError:
        return TRUST_DOMAIN
    return domain


async def _serves(process: Mapping[str, object], certificates: PlaneCertificates, places: Places) -> bool:
    address = str(process["address"])
    if process["service"] == ETCD:
        async with EtcdClient(
            [address], certificates.etcd_client(), request_timeout_s=_ETCD_TIMEOUT_S
        ) as client:
            try:
                await client.get("/")
            except ServiceError:
                return False
            return True
    tls = TlsIdentity(certificates.ca, *certificates.operator_pair(), _trust_domain(places))
    channel = make_channel(address, tls, str(process["service"]))
    try:
        return await serves(channel)
    finally:
        await channel.close(grace=None)
