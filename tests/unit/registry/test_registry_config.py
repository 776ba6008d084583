"""Settings that do not fit together are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.common.config import ConfigError, load
from services.registry.config import RegistryConfig
from services.registry.core.model import Limits

NEEDED: dict[str, Any] = {
    "replica_id": "registry-0",
    "listen": "127.0.0.1:0",
    "ca": Path("ca"),
    "certificate": Path("crt"),
    "key": Path("key"),
    "etcd_endpoints": ("127.0.0.1:2379",),
    "etcd_ca": Path("ca"),
    "etcd_certificate": Path("crt"),
    "etcd_key": Path("key"),
    "data_directory": Path("data"),
}


def test_the_defaults_fit_together_and_are_those_of_the_core() -> None:
    assert RegistryConfig(**NEEDED).limits == Limits()


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"suspect_after_ms": 3_999}, "suspect_after_ms"),
        ({"suspect_after_ms": 10_000}, "suspect_after_ms"),
        ({"instances_live_max": 85}, "instances_live_max"),
        ({"instances_live_max": 0}, "instances_live_max"),
        ({"heartbeats_per_second_max": 0}, "heartbeats_per_second_max"),
        ({"presence_ttl_s": 0}, "presence_ttl_s"),
        ({"key_prefix": "muster/"}, "key_prefix"),
    ],
)
def test_what_does_not_fit_is_named(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RegistryConfig(**(NEEDED | knobs))


def test_an_unknown_setting_names_its_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text("lease_ttl = 5\n")
    with pytest.raises(ConfigError, match="lease_ttl_ms"):
        load(RegistryConfig, file, {}, "MUSTER_REGISTRY_")
