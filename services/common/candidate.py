"""A replica's turns at leading: it campaigns, leads, loses, and campaigns again until it withdraws."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.election import Election, Leadership

_log = logs.get("candidate")
# Pause before the next campaign after a leadership that could not begin, in milliseconds.
RETRY_BASE_MS = 100
RETRY_MAX_MS = 3_000


class Candidate:
    """One replica in one election. Owned by the event loop."""

    def __init__(self, election: Election) -> None:
        self._election = election
        self._withdrawn = False
        # Set while this replica neither leads nor is about to.
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def withdrawn(self) -> bool:
        """Whether this replica shall not lead any more. Who prepares to lead asks after each wait: while
        there is nothing yet that could be told to stop, this is all that says so.
        """
        return self._withdrawn

    async def run(self, value: bytes, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaign with `value` and `lead`, again and again, until withdrawn or cancelled.

        `lead` returns when the leadership is over, and raises ServiceError when it could not begin:
        somebody else may have more luck; so may we, later. What else it raises is a defect and comes out.
        """
        failures = 0
        while not self._withdrawn:
            leadership = await self._election.campaign(value)
            self._idle.clear()
            _log.info("won the election", epoch=leadership.epoch)
            try:
                # Who withdrew in the moment of winning found nothing that could be told to stop.
                if not self._withdrawn:
                    await lead(leadership)
                failures = 0
            except ServiceError as error:
                failures += 1
                _log.error("could not take over", epoch=leadership.epoch, error=error)
            finally:
                with contextlib.suppress(ServiceError):
                    await self._election.resign()
                self._idle.set()
            _log.warning("lost the lead", epoch=leadership.epoch)
            pause_ms = backoff_ms(
                failures, base_ms=RETRY_BASE_MS, max_ms=RETRY_MAX_MS, jitter=random.random()
            )
            await asyncio.sleep(pause_ms / 1_000)

    def withdraw(self) -> None:
        """Do not campaign again. A leadership goes on until its `lead` returns."""
        self._withdrawn = True

    async def wait_idle(self) -> None:
        """Return when this replica does not lead; the election knows by then."""
        await self._idle.wait()
