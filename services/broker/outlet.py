"""Where the driver brings what a stream is to be told."""

from __future__ import annotations

from typing import Protocol

from services.broker.core import effects as fx
from services.common.core.errors import ServiceError


class Outlet(Protocol):
    """Where a stream's effects go."""

    def carry(self, effect: fx.StreamEffect) -> None:
        """Say it to the peer as soon as the stream is free."""
        ...

    def end(self, error: ServiceError | None) -> None:
        """End the stream, well when there is no error."""
        ...
