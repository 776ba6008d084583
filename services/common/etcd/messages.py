"""Our values to and from etcd's protobuf messages (the generated code comes with `aetcd`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aetcd import rpc

from services.common.etcd.ops import (
    Answer,
    Compare,
    Delete,
    Done,
    Get,
    KeyEvent,
    KeyValue,
    Operation,
    Put,
    Rows,
    decode_key,
    encode_key,
    prefix_end,
)
from services.common.protobuf import tag, varint

_TARGETS: dict[str, tuple[int, str]] = {
    "version": (rpc.Compare.VERSION, "version"),
    "create": (rpc.Compare.CREATE, "create_revision"),
    "mod": (rpc.Compare.MOD, "mod_revision"),
    "value": (rpc.Compare.VALUE, "value"),
    "lease": (rpc.Compare.LEASE, "lease"),
}
_RELATIONS: dict[str, int] = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    "<": rpc.Compare.LESS,
    ">": rpc.Compare.GREATER,
}
_ORDERS: dict[str, tuple[int, int]] = {
    "key": (rpc.RangeRequest.NONE, rpc.RangeRequest.KEY),
    "oldest": (rpc.RangeRequest.ASCEND, rpc.RangeRequest.CREATE),
    "newest": (rpc.RangeRequest.DESCEND, rpc.RangeRequest.CREATE),
}


_DONE = Done()


def _tag(message: Any, field: str) -> bytes:
    return tag(message.DESCRIPTOR.fields_by_name[field].number)


_COMPARE, _SUCCESS, _FAILURE = (_tag(rpc.TxnRequest, name) for name in ("compare", "success", "failure"))
_REQUEST_PUT = _tag(rpc.RequestOp, "request_put")
_REQUEST_DELETE = _tag(rpc.RequestOp, "request_delete_range")
_KEY, _VALUE = _tag(rpc.PutRequest, "key"), _tag(rpc.PutRequest, "value")
_DELETED_KEY = _tag(rpc.DeleteRangeRequest, "key")


def range_of(key: str, *, prefix: bool) -> tuple[bytes, bytes]:
    """Return (key, range end) in etcd's terms; the end is empty for a single key."""
    start = encode_key(key)
    if not prefix:
        return start, b""
    return start or b"\0", prefix_end(start)


def compare_message(compare: Compare) -> Any:
    """Return the message of one condition."""
    target, field = _TARGETS[compare.target]
    return rpc.Compare(
        result=_RELATIONS[compare.relation],
        target=target,
        key=encode_key(compare.key),
        **{field: compare.operand},
    )


def put_message(put: Put) -> Any:
    """Return the message of a write."""
    return rpc.PutRequest(key=encode_key(put.key), value=put.value, lease=put.lease_id)


def delete_message(delete: Delete) -> Any:
    """Return the message of a deletion."""
    key, end = range_of(delete.key, prefix=delete.prefix)
    return rpc.DeleteRangeRequest(key=key, range_end=end)


def get_message(get: Get, revision: int = 0) -> Any:
    """Return the message of a read as of `revision`, 0 for the newest."""
    key, end = range_of(get.key, prefix=get.prefix)
    order, target = _ORDERS[get.order]
    return rpc.RangeRequest(
        key=key,
        range_end=end,
        limit=get.limit,
        revision=revision,
        sort_order=order,
        sort_target=target,
        max_create_revision=get.create_revision_max,
    )


def operation_message(operation: Operation) -> Any:
    """Return the message of one operation of a transaction."""
    match operation:
        case Put():
            return rpc.RequestOp(request_put=put_message(operation))
        case Delete():
            return rpc.RequestOp(request_delete_range=delete_message(operation))
        case Get():
            return rpc.RequestOp(request_range=get_message(operation))


def encode_txn(
    compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]
) -> bytes:
    """Return a TxnRequest on the wire.

    Put together by hand: a hundred puts as messages of messages cost a leader more than all that it decides
    about them.
    """
    parts: list[bytes] = []
    for compare in compares:
        encoded: bytes = compare_message(compare).SerializeToString()
        parts += (_COMPARE, varint(len(encoded)), encoded)
    for branch, operations in ((_SUCCESS, success), (_FAILURE, failure)):
        for operation in operations:
            encoded = _encode_operation(operation)
            parts += (branch, varint(len(encoded)), encoded)
    return b"".join(parts)


def _encode_operation(operation: Operation) -> bytes:
    if isinstance(operation, Put) and not operation.lease_id:
        key, value = encode_key(operation.key), operation.value
        content = _KEY + varint(len(key)) + key + _VALUE + varint(len(value)) + value
        return _REQUEST_PUT + varint(len(content)) + content
    if isinstance(operation, Delete) and not operation.prefix:
        key = encode_key(operation.key)
        content = _DELETED_KEY + varint(len(key)) + key
        return _REQUEST_DELETE + varint(len(content)) + content
    encoded: bytes = operation_message(operation).SerializeToString()
    return encoded


def answers(operations: Sequence[Operation], response: Any) -> tuple[Answer, ...]:
    """Return the answers to `operations`, the branch that ran; only what answers a `Get` is looked at."""
    if Get not in {type(operation) for operation in operations}:
        return (_DONE,) * len(operations)
    revision = response.header.revision
    return tuple(
        rows(message.response_range, revision) if isinstance(operation, Get) else _DONE
        for operation, message in zip(operations, response.responses, strict=True)
    )


def key_value(message: Any) -> KeyValue:
    """Return one stored key."""
    return KeyValue(
        key=decode_key(message.key),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        version=message.version,
        lease_id=message.lease,
    )


def rows(message: Any, revision: int) -> Rows:
    """Return the rows of a read made at `revision`."""
    return Rows(revision, tuple(key_value(kv) for kv in message.kvs), message.more)


def key_event(message: Any) -> KeyEvent:
    """Return one change."""
    return KeyEvent(key_value(message.kv), deleted=message.type == rpc.Event.DELETE)
