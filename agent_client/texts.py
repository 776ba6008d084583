"""Texts that a caller hands over are looked at before a request is made of them.

Half a character (a lone surrogate) is a text of Python's and none of UTF-8: it is refused with the name of
the argument, as any other bad field is, and not by the encoder somewhere below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from agent_client.core.fields import is_text
from agent_client.errors import bad_field

C = TypeVar("C")


def refuses_half_characters(kind: type[C]) -> type[C]:
    """Make the public methods of a class raise InvalidRequestError for a text that UTF-8 does not have."""
    for name, method in [*vars(kind).items()]:
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kind, name, _looked_at(method))
    return kind


def _looked_at(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    def look(args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not _has_half([*args[1:], *named.values()]):
            return
        for name, value in signature.bind(*args, **named).arguments.items():
            if _has_half([value]):
                raise bad_field(name, f"must be a text that can be written as UTF-8, not {value!r:.80}")

    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def later(*args: Any, **named: Any) -> Any:
            look(args, named)
            return await method(*args, **named)

        return later

    @wraps(method)
    def now(*args: Any, **named: Any) -> Any:
        look(args, named)
        return method(*args, **named)

    return now


def _has_half(values: list[Any]) -> bool:
    return any(isinstance(value, str) and not is_text(value) for value in values)
