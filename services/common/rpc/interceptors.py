"""What surrounds every call of every service, in this order: recover, identity and access, deadline,
metrics, log.

One interceptor instead of five: each layer of grpc.aio costs a coroutine per call, and the order is then
the order of the lines in `_run`.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from services.common.clock import Clock, SystemClock
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.identity import TRUST_DOMAIN, Principal, principal_from_context
from services.common.logs import Log
from services.common.metrics import Metrics
from services.common.outbox import Outbox
from services.common.rpc.status import TRAILER, grpc_code, to_status

# A unary call without a deadline of its own, or with a longer one, ends after this.
UNARY_MS_MAX = 60_000
# What any identity of this plane may call.
ANYONE = frozenset({"agent", "service", "operator"})

# A probe must hear NOT_SERVING from a draining replica, not an error.
HEALTH_PREFIX = "grpc.health.v1.Health/"

Body = Callable[[Any, Any], Awaitable[Any]]


@dataclass(eq=False, slots=True)
class LiveCall:
    """A call that runs now. Owned by the event loop."""

    method: str
    principal: Principal
    cause_id: str
    handler: asyncio.Task[Any]
    streaming: bool
    # A duplex puts its own gentle ending here; without one the handler is cancelled.
    ender: Callable[[ServiceError], None] | None = None
    ended_with: ServiceError | None = None

    def end(self, error: ServiceError) -> None:
        """End the call with `error`, at the latest when its outgoing buffer is flushed."""
        if self.ender is not None:
            self.ender(error)
        else:
            self.cut(error)

    def cut(self, error: ServiceError) -> None:
        """End the call with `error` now."""
        self.ended_with = self.ended_with or error
        self.handler.cancel()


# The call that the present handler serves: its principal and cause id need not be worked out again.
current_call: ContextVar[LiveCall] = ContextVar("current_call")


class CallMetrics:
    """Calls by method and code, their latency, and how many run."""

    def __init__(self, metrics: Metrics) -> None:
        self.ended = metrics.counter("rpc_calls", "Calls that ended.", ("method", "code"))
        self.seconds = metrics.histogram(
            "rpc_latency_seconds", "From a call's start to its status; a stream counts whole.", ("method",)
        )
        self.in_flight = metrics.gauge("rpc_in_flight", "Calls that run now.", ("method",))


class MethodMeter:
    """One method's metrics, its labels looked up once."""

    def __init__(self, metrics: CallMetrics, method: str) -> None:
        self.method = method
        self.in_flight = metrics.in_flight.labels(method)
        self.seconds = metrics.seconds.labels(method)
        self._ended = metrics.ended
        self._by_code: dict[str, Counter] = {}

    def ended(self, code: str) -> None:
        """Count one call that ended with `code`, the name of a gRPC status."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._ended.labels(self.method, code)
        counter.inc()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps each method's handler once and keeps the wrapped one."""

    def __init__(
        self,
        access: Mapping[str, frozenset[str]],
        metrics: Metrics,
        log: Log,
        *,
        trust_domain: str = TRUST_DOMAIN,
        outbox: Outbox | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.live: set[LiveCall] = set()
        self.draining = False
        self._idle = asyncio.Event()
        self._access = access
        self._metrics = CallMetrics(metrics)
        self._log = log
        self._trust_domain = trust_domain
        self._outbox = outbox
        self._clock = clock or SystemClock()
        self._wrapped: dict[str, Any] = {}

    async def wait_idle(self) -> None:
        """Return when `draining` is set and no handler runs any more."""
        if self.live:
            await self._idle.wait()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the handler that grpc shall run; None (UNIMPLEMENTED) for a method that nobody serves."""
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(method.lstrip("/"), handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        coders = {
            "request_deserializer": _guarded(handler.request_deserializer, raises=handler.request_streaming),
            "response_serializer": _as_written(handler.response_serializer),
        }
        if handler.request_streaming and handler.response_streaming:
            body = self._around(method, _as_writer(handler.stream_stream), streaming=True)
            return grpc.stream_stream_rpc_method_handler(body, **coders)
        if handler.response_streaming:
            body = self._around(method, _as_writer(handler.unary_stream), streaming=True)
            return grpc.unary_stream_rpc_method_handler(body, **coders)
        if handler.request_streaming:
            body = self._around(method, handler.stream_unary, streaming=True)
            return grpc.stream_unary_rpc_method_handler(body, **coders)
        body = self._around(method, handler.unary_unary, streaming=False)
        return grpc.unary_unary_rpc_method_handler(body, **coders)

    def _around(self, method: str, body: Body, *, streaming: bool) -> Body:
        meter = MethodMeter(self._metrics, method)

        async def call(request: Any, context: Any) -> Any:
            return await self._run(meter, body, request, context, streaming=streaming)

        return call

    async def _run(
        self, meter: MethodMeter, body: Body, request: Any, context: Any, *, streaming: bool
    ) -> Any:
        method, now = meter.method, asyncio.get_running_loop().time
        start = now()
        meter.in_flight.inc()
        cause_id = f"rpc-{secrets.token_hex(8)}"
        code, error = "OK", None
        try:
            if streaming:
                # gRPC takes the headers of a call once. Sent with the first message, as it would do by
                # itself, they leave a handler that is cancelled in that write unable to send its status.
                await context.send_initial_metadata(())
            principal = await self._admit(method, context, cause_id)
            handler = asyncio.current_task()
            assert handler is not None  # noqa: S101  # grpc.aio runs each call in a task of its own
            call = LiveCall(method, principal, cause_id, handler, streaming)
            current_call.set(call)
            self.live.add(call)
            try:
                if isinstance(request, _Unreadable):
                    raise request.error
                response = await self._bounded(call, body, request, context)
                if streaming:
                    # To the handler a vanished peer looks first like one that has sent all it had; gRPC's
                    # cancellation is one turn of the loop behind.
                    await asyncio.sleep(0)
                return response
            finally:
                self.live.discard(call)
                if self.draining and not self.live:
                    self._idle.set()
        except ServiceError as raised:
            error, code = raised, raised.row.code
        except asyncio.CancelledError:
            # The peer went away, or its deadline passed; grpc.aio has told it already.
            code = "DEADLINE_EXCEEDED" if _expired(context) else "CANCELLED"
            raise
        except grpc.aio.AbortError:
            # A library's servicer (health, reflection) ended the call itself.
            code = _set_code(context)
            raise
        except Exception as unexpected:  # noqa: BLE001  # the edge: nothing internal may leave the process
            self._log.error("a call failed unexpectedly", cause_id=cause_id, method=method, error=unexpected)
            error, code = _internal(cause_id), "INTERNAL"
        finally:
            meter.in_flight.dec()
            meter.ended(code)
            meter.seconds.observe(now() - start)
            self._log.debug("call ended", cause_id=cause_id, method=method, code=code, why=error)
        await abort(context, error)
        return None

    async def _admit(self, method: str, context: Any, cause_id: str) -> Principal:
        """Return who calls, or raise; what is refused here is recorded, since no servicer sees it."""
        principal = None
        try:
            principal = principal_from_context(context, self._trust_domain)
            allowed = self._access.get(method, frozenset())
            if principal.kind not in allowed and str(principal) not in allowed:
                raise ServiceError(
                    Reason.ACCESS_DENIED,
                    f"{principal} may not call {method}: ask the operator for an identity that may",
                    metadata={"identity": str(principal), "method": method},
                )
            if self.draining and not method.startswith(HEALTH_PREFIX):
                raise shutting_down()
        except ServiceError as error:
            if self._outbox is not None and error.reason is not Reason.SHUTTING_DOWN:
                draft = EntryDraft(
                    self._clock.now(),
                    actor=str(principal or "unknown"),
                    operation="access.refuse",
                    subject=f"method/{method}",
                    outcome=Outcome.REFUSED,
                    reason=error.reason,
                    cause_id=cause_id,
                    attributes={"peer": str(context.peer())},
                )
                await self._outbox.record([draft])
            raise
        return principal

    async def _bounded(self, call: LiveCall, body: Body, request: Any, context: Any) -> Any:
        try:
            if call.streaming:
                return await body(request, context)
            return await self._within_limit(call, body, request, context)
        except asyncio.CancelledError:
            if call.ended_with is None:
                raise
            # We cancelled it ourselves to end it with this error; the peer is still there to hear it.
            call.handler.uncancel()
            raise call.ended_with from None

    async def _within_limit(self, call: LiveCall, body: Body, request: Any, context: Any) -> Any:
        limit = asyncio.timeout(UNARY_MS_MAX / 1000)
        try:
            async with limit:
                return await body(request, context)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ServiceError(
                Reason.CALL_TIMED_OUT, f"{call.method} took over {UNARY_MS_MAX} ms: ask for the state it left"
            ) from error


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a unary request whose bytes are no message."""

    error: ServiceError


def _as_written(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Return a serializer that lets a frame pass which its handler put together itself, as bytes."""
    if serialize is None:
        return None
    return lambda frame: frame if type(frame) is bytes else serialize(frame)


def _guarded(deserialize: Callable[[bytes], Any] | None, *, raises: bool) -> Callable[[bytes], Any] | None:
    """Return a deserializer that answers hostile bytes with a typed error instead of grpc's INTERNAL.

    A stream's frames are read inside the handler, which may raise; a unary request is read before it.
    """
    if deserialize is None:
        return None

    def guarded(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            bad = ServiceError(Reason.MALFORMED_FRAME, "the bytes are not the message that this method takes")
            if raises:
                raise bad from error
            return _Unreadable(bad)

    return guarded


def _as_writer(handler: Callable[..., Any]) -> Body:
    """Return an async generator handler as one that writes to the context; others stay what they are."""
    if not inspect.isasyncgenfunction(handler):
        return handler

    async def write_all(request: Any, context: Any) -> None:
        async with aclosing(handler(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


async def abort(context: Any, error: ServiceError) -> None:
    """End the call with the error's rich status; does not return."""
    status = to_status(error)
    await context.abort(grpc_code(error), status.message, ((TRAILER, status.SerializeToString()),))


def shutting_down() -> ServiceError:
    """Return the error with which a draining service answers."""
    return ServiceError(
        Reason.SHUTTING_DOWN, "this replica is leaving: connect to another one", retry_after_ms=1_000
    )


def _internal(cause_id: str) -> ServiceError:
    return ServiceError(
        Reason.INTERNAL,
        f"a defect of the service; report cause id {cause_id}, its log has the story",
        metadata={"cause_id": cause_id},
    )


def _expired(context: Any) -> bool:
    left = context.time_remaining()
    return left is not None and left <= 0


def _set_code(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")
