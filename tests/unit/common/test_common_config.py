"""Configuration: sources, types, and errors that say what to write instead."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from services.common.config import ConfigError, describe, knob, load


@dataclass(frozen=True, kw_only=True)
class Settings:
    listen: str = knob(help_text="Where to listen.")
    lease_ttl_ms: int = knob(6_000, "How long a silent session lives.", unit="ms")
    share: float = knob(0.5, "A part.")
    open_doors: bool = knob(False, "A switch.")
    folder: Path | None = knob(None, "Where files go.")
    peers: tuple[str, ...] = knob((), "Addresses.")
    ports: tuple[int, ...] = knob((), "Ports.")

    def __post_init__(self) -> None:
        if self.lease_ttl_ms < 1:
            raise ValueError("lease_ttl_ms must be at least 1")


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_defaults_then_file_then_environment(tmp_path: Path) -> None:
    path = toml(
        tmp_path, 'listen = "file:1"\nshare = 1\nfolder = "data"\npeers = ["a", "b"]\nports = [1, 2]\n'
    )
    environ = {
        "MUSTER_X_LISTEN": "environment:2",
        "MUSTER_X_OPEN_DOORS": "True",
        "MUSTER_X_LEASE_TTL_MS": "7",
        "MUSTER_X_PEERS": "c, d",
        "OTHER": "not ours",
    }
    settings = load(Settings, path, environ, "MUSTER_X_")
    assert settings == Settings(
        listen="environment:2",
        lease_ttl_ms=7,
        share=1.0,
        open_doors=True,
        folder=tmp_path / "data",
        peers=("c", "d"),
        ports=(1, 2),
    )
    assert isinstance(settings.share, float)
    with pytest.raises(FrozenInstanceError):
        settings.listen = "x"  # type: ignore[misc]


def test_absolute_paths_stay_and_empty_means_none(tmp_path: Path) -> None:
    path = toml(tmp_path, 'listen = "x"\nfolder = "/var/lib/muster"\n')
    assert load(Settings, path, {}).folder == Path("/var/lib/muster")
    assert load(Settings, path, {"MUSTER_FOLDER": ""}).folder is None


@pytest.mark.parametrize(
    ("text", "environ", "says"),
    [
        ('listne = "x"', {}, "unknown key 'listne': did you mean 'listen'"),
        ('listen = "x"\nzzz = 1', {}, "unknown key 'zzz'"),
        ('listen = "x"', {"MUSTER_LEASE_TTL": "5"}, "MUSTER_LEASE_TTL: did you mean 'MUSTER_LEASE_TTL_MS'"),
        ("", {}, "missing listen"),
        ("listen = 5", {}, "listen must be text, not 5"),
        ('listen = "x"\nlease_ttl_ms = true', {}, "lease_ttl_ms must be whole number, not True"),
        ('listen = "x"\nlease_ttl_ms = 1.5', {}, "lease_ttl_ms must be whole number"),
        ('listen = "x"\nopen_doors = 1', {}, "open_doors must be true or false"),
        ('listen = "x"\npeers = "a"', {}, "peers must be list of text"),
        ('listen = "x"\npeers = ["a", 5]', {}, r"peers\[1\] must be text"),
        ('listen = "x"', {"MUSTER_LEASE_TTL_MS": "soon"}, "must be a whole number, not 'soon'"),
        ('listen = "x"', {"MUSTER_SHARE": "half"}, "must be a number, not 'half'"),
        ('listen = "x"', {"MUSTER_OPEN_DOORS": "1"}, "must be true or false, not '1'"),
        ('listen = "x"\nlease_ttl_ms = 0', {}, "lease_ttl_ms must be at least 1"),
        ("listen = ", {}, r"settings\.toml"),
    ],
)
def test_errors_say_what_to_write(tmp_path: Path, text: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(Settings, toml(tmp_path, text), environ)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(Settings, tmp_path / "nowhere.toml", {})


def test_without_a_file() -> None:
    assert load(Settings, None, {"MUSTER_LISTEN": "x"}).listen == "x"
    with pytest.raises(ConfigError, match="set 'listen' or MUSTER_LISTEN"):
        load(Settings, None, {})


def test_help_text_has_every_key() -> None:
    text = describe(Settings)
    assert "lease_ttl_ms (whole number, default 6000 ms): How long a silent session lives." in text
    assert "listen (text, required): Where to listen." in text
    assert "folder (path, default None)" in text
    assert "peers (list of text, default ())" in text
