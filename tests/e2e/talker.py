"""An agent that answers, and asks when it is asked to; one process is one instance.

    python -m tests.e2e.talker NAME SKILL

A COLLABORATION_REQUEST is answered with who got it and what it said. A TASK_REQUEST `{"ask": ADDRESS, "text":
TEXT}` has it ask that address, and is answered with who asked and what came back. A STATUS_UPDATE is passed
on to the agent that sent it, with who got it.
"""

from __future__ import annotations

import sys
from typing import Any

from agent_client import Agent, Delivery

# Seconds for a reply; on a busy machine while a broker is replaced.
PATIENCE_S = 30.0


def main() -> int:
    name, skill = sys.argv[1:]
    agent = Agent(name, [skill])
    me = f"{name}#{agent.instance}"

    @agent.on_message("collaboration_request")
    async def answer(delivery: Delivery) -> dict[str, Any]:
        return {"by": me, "text": delivery.payload}

    @agent.on_message("task_request")
    async def ask(delivery: Delivery) -> dict[str, Any]:
        wanted = delivery.payload
        reply = await agent.request(wanted["ask"], wanted["text"], timeout=PATIENCE_S)
        return {"by": me, "reply": reply}

    @agent.on_message("status_update")
    async def pass_on(delivery: Delivery) -> None:
        await agent.send(delivery.sender, {"by": me, "text": delivery.payload}, type="heartbeat")

    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
