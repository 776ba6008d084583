"""Settings that can not be meant are refused, with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.broker.config import BrokerConfig

FILE = Path("file")
BASE: dict[str, Any] = {
    "replica_id": "broker-1",
    "listen": "127.0.0.1:0",
    "ca": FILE,
    "certificate": FILE,
    "key": FILE,
    "etcd_endpoints": ("127.0.0.1:1",),
    "etcd_ca": FILE,
    "etcd_certificate": FILE,
    "etcd_key": FILE,
    "data_directory": FILE,
}


def config(**changes: Any) -> BrokerConfig:
    return BrokerConfig(**BASE | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"store": "postgres"}, "none of sqlite, redis"),
        ({"store": "redis"}, "needs redis_address"),
        ({"store": "redis", "redis_address": "somewhere"}, "neither host:port nor unix:PATH"),
        ({"store": "redis", "redis_address": "localhost:0"}, "neither host:port nor unix:PATH"),
        ({"store": "redis", "redis_address": "10.0.0.7:6379"}, "set redis_ca"),
        ({"store": "redis", "redis_address": "localhost:1", "redis_prefix": "a{b"}, "redis_prefix"),
        ({"store": "redis", "redis_address": "localhost:1", "redis_key": FILE}, "come together"),
        (
            {
                "store": "redis",
                "redis_address": "localhost:1",
                "redis_wait_replicas": 1,
                "redis_wait_ms": 5_000,
            },
            "less than redis_timeout_ms",
        ),
        ({"redis_sync": "never"}, "none of always, server"),
        ({"redis_wait_ms": 0}, "redis_wait_ms must be at least 1"),
        ({"redis_wait_replicas": -1}, "redis_wait_replicas must be at least 0"),
    ],
)
def test_what_can_not_be_meant_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changes)


def test_addresses_of_redis() -> None:
    near = config(store="redis", redis_address="[::1]:6380").redis
    assert (near.host, near.port, near.unix_path) == ("::1", 6380, "")
    assert config(store="redis", redis_address="unix:/run/redis.sock").redis.unix_path == "/run/redis.sock"
    far = config(store="redis", redis_address="redis.internal:6379", redis_ca=FILE).redis
    assert (far.host, far.ca, far.must_sync) == ("redis.internal", FILE, True)
    assert not config(store="redis", redis_address="localhost:1", redis_sync="server").redis.must_sync


def test_the_password_is_read_when_it_is_used_and_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "password"
    settings = config(store="redis", redis_address="localhost:1", redis_password_file=file).redis
    file.write_text("secret\n")
    assert settings.password() == "secret"
    assert "secret" not in repr(settings)
