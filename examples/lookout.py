"""A lookout publishes what it sees, a dispatcher hears it. `muster agents enroll lookout dispatcher`, then
`python examples/lookout.py dispatcher` and, once or often, `python examples/lookout.py lookout`.
"""

import asyncio
import sys

from agent_client import Agent, Delivery

lookout, dispatcher = Agent("lookout", ["watch"]), Agent("dispatcher", ["dispatch"])
closed: list[str] = []


@dispatcher.on_topic("roads.*")
async def hear(delivery: Delivery) -> None:
    """Keep the list of closed roads; what was published while we were away comes too, in order."""
    road = delivery.payload["road"]
    if delivery.topic == "roads.closed":
        closed.append(road)
    elif road in closed:
        closed.remove(road)
    print("closed now:", ", ".join(closed) or "none")


@dispatcher.on_message("collaboration_request")
async def answer(delivery: Delivery) -> list[str]:
    """Tell whoever asks."""
    print(f"{delivery.sender} asks: {delivery.payload}")
    return closed


async def look() -> list[str]:
    """Publish, then ask any agent that can dispatch."""
    for topic, road in (("roads.closed", "r7"), ("roads.closed", "r8"), ("roads.open", "r7")):
        receipt = await lookout.publish(topic, {"road": road})
        print(f"{topic} {road}: for {receipt.receiver_count}")
    roads: list[str] = await lookout.request("skill/dispatch", "which roads are closed?", timeout=10)
    return roads


async def main() -> None:
    """Join as the lookout, look once, leave."""
    async with lookout:
        await lookout.wait_ready()
        print(await look())


if __name__ == "__main__":
    if sys.argv[1:] == ["dispatcher"]:
        dispatcher.run()
    else:
        asyncio.run(main())
