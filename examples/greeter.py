"""The smallest useful agent. `muster agents enroll greeter`, then `python examples/greeter.py`."""

from agent_client import Agent, Task

agent = Agent("greeter")


@agent.handler("greet")
async def greet(task: Task) -> dict[str, str]:
    """Greet whoever the task names."""
    await task.progress(0.5, "thinking of something kind")
    async with task.lock("front-door") as held:  # held.token fences what you write under the lock
        return {"greeting": f"Hello, {task.payload['name']}!", "token": str(held.token)}


if __name__ == "__main__":
    agent.run()  # reconnects for ever; SIGTERM or Ctrl-C finishes what it holds, then leaves
