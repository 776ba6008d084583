"""Fixtures for every test; `tests/conftest.py` makes them known.

`etcd`           a real etcd shared by the whole run: do not hurt it; keep to `etcd_prefix`
`etcd_prefix`    a key prefix of the test's own, without a slash at the end: use it as `key_prefix`
`etcd_client`    a client of `etcd`, in the test's event loop
`own_etcd`       a real etcd of the test's own, to be killed, paused and restarted
`own_etcd_trio`  the same with three members
`redis`          a real Redis shared by the whole run: do not hurt it; keep to a prefix of your own
`own_redis`      a real Redis of the test's own, to be killed and restarted
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.etcd.client import EtcdClient
from tests.harness.etcd import EtcdHarness, running_etcd
from tests.harness.redis import RedisServer, running_redis


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdHarness]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as harness:
        yield harness


@pytest.fixture
def etcd_prefix() -> str:
    return f"/test-{uuid.uuid4().hex}"


@pytest.fixture
async def etcd_client(etcd: EtcdHarness) -> AsyncIterator[EtcdClient]:
    async with etcd.client() as client:
        yield client


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdHarness]:
    with running_etcd(tmp_path / "etcd") as harness:
        yield harness


@pytest.fixture
def own_etcd_trio(tmp_path: Path) -> Iterator[EtcdHarness]:
    with running_etcd(tmp_path / "etcd", members=3) as harness:
        yield harness


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server
