"""Requests to the core that wait for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from services.common.core.errors import ServiceError


class Inquiries:
    """Numbers requests and hands answers to those who wait. Owned by the event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, submit: Callable[[int], None]) -> Any:
        """Return what the core answers to the request that `submit` brings to it under a new number."""
        self._count += 1
        request_id = self._count
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            submit(request_id)
            return await answer
        finally:
            del self._waiting[request_id]

    def answer(self, request_id: int, told: object, error: ServiceError | None = None) -> None:
        """Tell who asked, if it still waits; an error is raised there."""
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(told)
        else:
            waiting.set_exception(error)

    def fail(self, error: ServiceError) -> None:
        """Tell everybody that there is no answer."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
