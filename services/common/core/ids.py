"""The identifiers that travel between services, and what makes one valid."""

from __future__ import annotations

import re
from typing import NewType

AgentId = NewType("AgentId", str)
InstanceId = NewType("InstanceId", str)
CollaborationId = NewType("CollaborationId", str)
TaskId = NewType("TaskId", str)
MessageId = NewType("MessageId", str)
RequestId = NewType("RequestId", str)
ResourceName = NewType("ResourceName", str)
Skill = NewType("Skill", str)

AGENT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
NAME_64 = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
RESOURCE = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
SKILL = re.compile(r"[a-z0-9._-]{1,64}\Z")
