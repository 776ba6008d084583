"""Configuration: a frozen dataclass filled from TOML and the environment; an unknown key is an error.

Every field says what it is for in its metadata:

    listen: str = knob("127.0.0.1:7401", "Where to listen, host:port; port 0 takes a free one.")
    lease_ttl_ms: int = knob(6_000, "How long a silent session stays alive.", unit="ms")
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")
T = TypeVar("T")

_MISSING: Any = dataclasses.MISSING


class ConfigError(Exception):
    """The configuration can not be used; the message names the key, its source and what to write instead."""


def knob(default: T = _MISSING, help_text: str = "", *, unit: str = "") -> T:
    """Return a dataclass field with its explanation; without a default the key must be given."""
    metadata = {"help": help_text, "unit": unit}
    made: T = dataclasses.field(default=default, metadata=metadata)
    return made


def load(
    config_class: type[C], toml_path: Path | None, environ: Mapping[str, str], prefix: str = "MUSTER_"
) -> C:
    """Return `config_class` filled from defaults, then the file, then `<prefix><FIELD>` of the environment.

    Types: str, int, float, bool, Path, tuple[str, ...] (in the environment separated by commas) and any of
    them `| None`. Relative paths in the file are relative to the file's folder. Raises `ConfigError`.
    """
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, raw in _read(toml_path).items():
        if key not in fields:
            raise ConfigError(f"{toml_path}: unknown key {key!r}{_nearest(key, fields)}")
        base = toml_path.parent if toml_path is not None else None
        values[key] = _typed(raw, hints[key], f"{toml_path}: {key}", base)
    for name, text in environ.items():
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix).lower()
        if key not in fields:
            raise ConfigError(f"environment: unknown variable {name}{_nearest(key, fields, prefix)}")
        values[key] = _typed(_parsed(text, hints[key], name), hints[key], f"environment: {name}", None)
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        where = f" in {toml_path}" if toml_path else ""
        raise ConfigError(
            f"missing {', '.join(missing)}: set {missing[0]!r}{where} or {prefix}{missing[0].upper()}"
        )
    try:
        return config_class(**values)
    except ValueError as error:
        # A dataclass checks what concerns several fields in __post_init__.
        raise ConfigError(f"{toml_path or 'environment'}: {error}") from error


def describe(config_class: type[Any]) -> str:
    """Return one line per key: name, type, default, unit, meaning; for `--help` and the docs."""
    hints = typing.get_type_hints(config_class)
    lines = []
    for field in dataclasses.fields(config_class):
        default = "required" if not _has_default(field) else f"default {field.default!r}"
        unit = f" {field.metadata['unit']}" if field.metadata.get("unit") else ""
        meaning = field.metadata.get("help", "")
        lines.append(f"{field.name} ({_type_name(hints[field.name])}, {default}{unit}): {meaning}")
    return "\n".join(lines)


def _read(toml_path: Path | None) -> dict[str, object]:
    if toml_path is None:
        return {}
    try:
        with toml_path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{toml_path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{toml_path}: {error}") from error


def _nearest(key: str, fields: Mapping[str, object], prefix: str = "") -> str:
    close = difflib.get_close_matches(key, list(fields), n=1, cutoff=0.5)
    if not close:
        return ""
    return f": did you mean {(prefix + close[0].upper()) if prefix else close[0]!r}?"


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not _MISSING or field.default_factory is not _MISSING


def _alternatives(hint: object) -> tuple[object, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _parsed(text: str, hint: object, name: str) -> object:
    """Return the environment's text as the TOML value that it stands for."""
    wanted = _alternatives(hint)
    if type(None) in wanted and text == "":
        return None
    if any(typing.get_origin(one) is tuple for one in wanted):
        return [part.strip() for part in text.split(",") if part.strip()]
    for one in wanted:
        if one is bool:
            if text.lower() not in ("true", "false"):
                raise ConfigError(f"environment: {name} must be true or false, not {text!r}")
            return text.lower() == "true"
        if one in (int, float):
            try:
                return int(text) if one is int else float(text)
            except ValueError as error:
                raise ConfigError(f"environment: {name} must be a {_type_name(one)}, not {text!r}") from error
    return text


def _typed(value: object, hint: object, where: str, base: Path | None) -> object:
    for one in _alternatives(hint):
        if typing.get_origin(one) is tuple and isinstance(value, list):
            item = typing.get_args(one)[0]
            return tuple(_typed(part, item, f"{where}[{index}]", base) for index, part in enumerate(value))
        if one is Path and isinstance(value, str):
            path = Path(value)
            return base / path if base is not None and not path.is_absolute() else path
        # bool is an int to Python, and a whole number is a fine float to a reader.
        if type(value) is one or (one is float and type(value) is int):
            return float(value) if isinstance(value, int) and one is float else value
    raise ConfigError(f"{where} must be {_type_name(hint)}, not {value!r}")


def _type_name(hint: object) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    parts = [
        "list of " + _type_name(typing.get_args(one)[0])
        if typing.get_origin(one) is tuple
        else names.get(one, getattr(one, "__name__", str(one)))  # type: ignore[call-overload]
        for one in _alternatives(hint)
        if one is not type(None)
    ]
    return " or ".join(parts)
