"""Single calls and one-way streams to the services, with the retries that are safe."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from agent_client.core.retry import BackoffPolicy, may_repeat
from agent_client.errors import (
    CallTimeoutError,
    LimitError,
    MusterError,
    UnavailableError,
    from_rpc_error,
    to_fault,
)
from agent_client.streams.discovery import Discovery
from agent_client.tls import Dialer

# Seconds that one try of a call may take.
TRY_TIMEOUT_S = 10.0
# Seconds that other calls on a link that broke for one call may still take.
CLOSE_GRACE_S = 5.0

# A stub's method, given the channel: `lambda channel: SchedulerServiceStub(channel).ListLocks`.
Method = Callable[[grpc.aio.Channel], Any]

_PASSING = (UnavailableError, CallTimeoutError, LimitError)


class Connection:
    """Channels to the services as one identity. Everything here runs on the link loop.

    All calls made through it are idempotent: reads, and writes that carry a request_id or name a final
    state. So a call whose fate is unknown may be sent again.
    """

    def __init__(self, dialer: Dialer, patience_s: float) -> None:
        self._dialer, self._patience_s = dialer, patience_s
        self._discovery = Discovery(dialer)
        self._policy = BackoffPolicy()
        # service -> (address, channel)
        self._channels: dict[str, tuple[str, grpc.aio.Channel]] = {}
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close every channel."""
        channels, self._channels = self._channels, {}
        for _, channel in channels.values():
            await channel.close(None)
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._discovery.close()

    async def call(self, service: str, method: Method, request: Any) -> Any:
        """Call a method until it answers, at most `patience_s` seconds. Raises MusterError."""
        deadline = time.monotonic() + self._patience_s
        failures, hint = 0, ""
        while True:
            try:
                channel = await self._channel(service, hint)
                left_s = max(0.1, min(TRY_TIMEOUT_S, deadline - time.monotonic()))
                return await method(channel)(request, timeout=left_s)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
            except MusterError as error:
                failure = error
            failures += 1
            hint = await self._after(service, failure, failures, deadline)

    async def stream(self, service: str, method: Method, request: Any) -> AsyncGenerator[Any, None]:
        """Yield the frames of a one-way stream. Its end is an error too: MusterError says why."""
        channel = await self._channel(service, "")
        call = method(channel)(request)
        try:
            async for frame in call:
                yield frame
            raise UnavailableError(f"the {service} ended the stream", definite=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we were cancelled but the call, because its channel was given up.
            raise UnavailableError(f"the link to the {service} was closed", definite=True) from None
        finally:
            call.cancel()

    async def follow(
        self, service: str, method: Method, request: Callable[[], Any]
    ) -> AsyncGenerator[Any, None]:
        """Yield the frames of a one-way stream for ever, opening it anew with `request()` when it breaks.

        Raises MusterError when that is of no use, or when the service stays away for `patience_s`.
        """
        failures, deadline = 0, time.monotonic() + self._patience_s
        while True:
            try:
                async with contextlib.aclosing(self.stream(service, method, request())) as frames:
                    async for frame in frames:
                        failures, deadline = 0, time.monotonic() + self._patience_s
                        yield frame
            except MusterError as error:
                # A stream that lived for long may have been silent all the time: patience begins at its end.
                deadline = deadline if failures else time.monotonic() + self._patience_s
                failures += 1
                await self._after(service, error, failures, deadline)

    async def _after(self, service: str, failure: MusterError, failures: int, deadline: float) -> str:
        """Wait as long as is fitting after `failure`; return the address to go to next, "" to look it up."""
        fault = to_fault(failure)
        if not isinstance(failure, _PASSING) or not may_repeat(fault, idempotent=True):
            raise failure
        delay_s = self._policy.delay_ms(failures, random.random()) / 1000
        delay_s = max(delay_s, failure.retry_after or 0)
        if time.monotonic() + delay_s > deadline:
            raise failure
        if isinstance(failure, UnavailableError):
            self._forget(service)
        if fault.coordinator and failures == 1:
            return fault.coordinator
        await asyncio.sleep(delay_s)
        return ""

    async def _channel(self, service: str, hint: str) -> grpc.aio.Channel:
        async with self._opening:
            if service in self._channels and not hint:
                return self._channels[service][1]
            address = hint or await self._address(service)
            self._forget(service)
            channel = await self._dialer.open(service, address)
            self._channels[service] = address, channel
            return channel

    async def _address(self, service: str) -> str:
        if service == "registry":
            return self._discovery.next_registry()
        if service == "scheduler":
            return await self._discovery.coordinator()
        return await self._discovery.address(service)

    def _forget(self, service: str) -> None:
        known = self._channels.pop(service, None)
        if known is not None:
            # In the background and with a grace: other calls may still be under way on it.
            closing = asyncio.create_task(known[1].close(CLOSE_GRACE_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
