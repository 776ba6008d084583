"""A plane of stand-in services for the client's tests; they run on the link loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent_client.loop import link_thread
from tests.conftest import Certificates
from tests.integration.agent_client.fake_plane import FakePlane


@pytest.fixture(scope="session", autouse=True)
def _link() -> None:
    # It lives as long as the process, so it must be there before a test counts the threads.
    link_thread()


@pytest_asyncio.fixture
async def plane(certificates: Certificates, tmp_path: Path) -> AsyncIterator[FakePlane]:
    fake = FakePlane(certificates, tmp_path / "home")
    await fake.start()
    yield fake
    await fake.stop()
