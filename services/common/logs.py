"""Structured logs: one JSON object per line on stderr, each with the cause that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_ROOT = "muster"
# A value longer than this is cut: a log line is no place for a payload.
VALUE_CHARACTERS_MAX = 4_096


class Log:
    """Writes lines; get one with `get`.

    Field values are strings, numbers, booleans or None. Never pass a payload, a key or a token.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def debug(self, message: str, *, cause_id: str = "", **fields: object) -> None:
        """Say what helps to find a defect."""
        self._write(logging.DEBUG, message, cause_id, fields)

    def info(self, message: str, *, cause_id: str = "", **fields: object) -> None:
        """Say what an operator wants to know afterwards."""
        self._write(logging.INFO, message, cause_id, fields)

    def warning(self, message: str, *, cause_id: str = "", **fields: object) -> None:
        """Say what is degraded and heals by itself."""
        self._write(logging.WARNING, message, cause_id, fields)

    def error(
        self, message: str, *, cause_id: str = "", error: BaseException | None = None, **fields: object
    ) -> None:
        """Say what needs a person; `error` adds its traceback as the story."""
        self._write(logging.ERROR, message, cause_id, fields, error)

    def _write(
        self,
        level: int,
        message: str,
        cause_id: str,
        fields: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"muster": (cause_id, fields, error)})


class JsonFormatter(logging.Formatter):
    """Formats our lines, and those of libraries, as JSON objects."""

    def __init__(self, service: str, replica_id: str) -> None:
        super().__init__()
        self._service, self._replica_id = service, replica_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        cause_id, fields, error = getattr(record, "muster", ("", {}, None))
        if error is None and record.exc_info:
            error = record.exc_info[1]
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "replica": self._replica_id,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if cause_id:
            line["cause_id"] = cause_id
        if fields:
            line["fields"] = {key: _plain(value) for key, value in fields.items()}
        if error is not None:
            line["story"] = "".join(traceback.format_exception(error))
        return json.dumps(line, ensure_ascii=False)


def configure(service: str, replica_id: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (default stderr) as JSON; replaces what was set before.

    Raises ValueError when `level` is none of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service, replica_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak only when something is wrong; our own level is chosen.
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level)


def get(name: str) -> Log:
    """Return the log of one part, for example "scheduler.driver"."""
    return Log(name)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "…"
