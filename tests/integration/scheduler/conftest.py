"""A plane of real scheduler replicas for each test that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.conftest import Certificates
from tests.harness.etcd import EtcdHarness
from tests.integration.scheduler.scheduler_plane import Plane

StartPlane = Callable[..., Awaitable[Plane]]


@pytest_asyncio.fixture
async def start_plane(
    certificates: Certificates, etcd: EtcdHarness, etcd_prefix: str, tmp_path: Path
) -> AsyncIterator[StartPlane]:
    """Return `await start_plane("one", "two", **settings)`; what it starts is stopped after the test."""
    planes: list[Plane] = []

    async def start(*names: str, **settings: Any) -> Plane:
        plane = Plane(certificates, etcd, etcd_prefix, tmp_path, **settings)
        planes.append(plane)
        await plane.start(*(names or ("one",)))
        return plane

    yield start
    for plane in planes:
        await plane.stop()
