"""Faults in pairs: a call fails and did not happen, or it fails and did happen all the same.

    broken = Faults()
    store = broken.around(MemoryStore())
    broken.fail_before("commit")      # the next commit raises and nothing is persisted
    broken.fail_after("commit")       # the one after it raises although it is persisted

A caller that is right under both, after a reload, is right about indefinite errors.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from services.common.core.errors import Reason, ServiceError

T = TypeVar("T")


def indefinite() -> ServiceError:
    """Return the error of a store of which nobody knows whether it did what it was asked."""
    return ServiceError(Reason.STORE_UNAVAILABLE, "injected: whether the change is there is unknown")


@dataclass(frozen=True, slots=True)
class _Fault:
    persists: bool
    error: Callable[[], Exception]


class Faults:
    """Plans faults by method name; each is used up by one call, in the order in which they were planned."""

    def __init__(self) -> None:
        self._planned: dict[str, deque[_Fault]] = {}
        self._held: dict[str, asyncio.Event] = {}
        # Calls by method name, faulty ones included.
        self.calls: dict[str, int] = {}

    def fail_before(self, method: str, times: int = 1, error: Callable[[], Exception] = indefinite) -> None:
        """Let the next `times` calls fail without doing anything."""
        self._plan(method, times, _Fault(persists=False, error=error))

    def fail_after(self, method: str, times: int = 1, error: Callable[[], Exception] = indefinite) -> None:
        """Let the next `times` calls do their work and fail all the same."""
        self._plan(method, times, _Fault(persists=True, error=error))

    def hold(self, method: str) -> asyncio.Event:
        """Let async calls of `method` wait, before doing anything, until the returned event is set."""
        return self._held.setdefault(method, asyncio.Event())

    def around(self, target: T) -> T:
        """Return `target` with the planned faults; everything else goes straight through."""
        return cast(T, _Faulty(self, target))

    def _plan(self, method: str, times: int, fault: _Fault) -> None:
        self._planned.setdefault(method, deque()).extend([fault] * times)

    def _take(self, method: str) -> _Fault | None:
        self.calls[method] = self.calls.get(method, 0) + 1
        planned = self._planned.get(method)
        return planned.popleft() if planned else None

    async def _call_async(self, method: str, attribute: Callable[..., Any], *args: Any, **named: Any) -> Any:
        fault = self._take(method)
        if (held := self._held.get(method)) is not None:
            await held.wait()
        if fault is not None and not fault.persists:
            raise fault.error()
        result = await attribute(*args, **named)
        if fault is not None:
            raise fault.error()
        return result

    def _call(self, method: str, attribute: Callable[..., Any], *args: Any, **named: Any) -> Any:
        fault = self._take(method)
        if fault is not None and not fault.persists:
            raise fault.error()
        result = attribute(*args, **named)
        if fault is not None:
            raise fault.error()
        return result


class _Faulty:
    """Stands in front of the target; private, so that `around` can say that it is a `T`."""

    def __init__(self, faults: Faults, target: object) -> None:
        self._faults, self._target = faults, target

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute
        call = self._faults._call_async if _is_awaited(attribute) else self._faults._call
        return lambda *args, **named: call(name, attribute, *args, **named)


def _is_awaited(method: Callable[..., Any]) -> bool:
    """Return whether what `method` returns is awaited: a coroutine, or a future by its annotation."""
    # Annotations are texts here, and a store may have the loop's future in hand already.
    returned = str(getattr(method, "__annotations__", {}).get("return", ""))
    return inspect.iscoroutinefunction(method) or returned.startswith(("asyncio.Future", "Awaitable"))
