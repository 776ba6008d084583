"""The words that envelopes and tasks use, as the protos spell them without their prefixes."""

from __future__ import annotations

from enum import StrEnum


class MessageType(StrEnum):
    """What an envelope is about (消息类型)."""

    TASK_REQUEST = "TASK_REQUEST"
    TASK_RESPONSE = "TASK_RESPONSE"
    STATUS_UPDATE = "STATUS_UPDATE"
    COLLABORATION_REQUEST = "COLLABORATION_REQUEST"
    COLLABORATION_RESPONSE = "COLLABORATION_RESPONSE"
    RESOURCE_REQUEST = "RESOURCE_REQUEST"
    RESOURCE_RESPONSE = "RESOURCE_RESPONSE"
    CONFLICT_NOTIFICATION = "CONFLICT_NOTIFICATION"
    HEARTBEAT = "HEARTBEAT"
    EMERGENCY = "EMERGENCY"

    @classmethod
    def _missing_(cls, value: object) -> MessageType | None:
        return cls.__members__.get(str(value).upper().replace("-", "_"))


class Priority(StrEnum):
    """How urgent something is; for an envelope also its lane."""

    EMERGENCY = "EMERGENCY"
    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"

    @classmethod
    def _missing_(cls, value: object) -> Priority | None:
        return cls.__members__.get(str(value).upper())


# What a reply to a request of this type is, unless the replier says otherwise.
REPLY_TYPES = {
    MessageType.TASK_REQUEST: MessageType.TASK_RESPONSE,
    MessageType.COLLABORATION_REQUEST: MessageType.COLLABORATION_RESPONSE,
    MessageType.RESOURCE_REQUEST: MessageType.RESOURCE_RESPONSE,
}
