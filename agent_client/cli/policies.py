"""`muster policy`: how the scheduling policy of collaborations that name none is chosen."""

from __future__ import annotations

import argparse

from muster.scheduler.v1 import policy_pb2

from agent_client.cli.output import OK, PATIENCE_S, Output
from agent_client.cli.words import Commands, command, group
from agent_client.client import Client
from agent_client.plain import to_plain

SHOW_HELP = """\
With scheduling_policy = "ADAPTIVE" in the scheduler's configuration, a collaboration that names no policy
gets the one that served best under such a load. REWARD is the earliest end that could be predicted over the
time that was taken, 1 at best; 95 % is where its mean lies. TRIALS are collaborations that ended under it,
UNDER WAY those that have not. A policy that is shut is clearly worse than the default and not tried again
before a reset.
"""
_ACTIONS = {
    "freeze": (policy_pb2.POLICY_ACTION_FREEZE, "use what is preferred, try nothing, learn nothing"),
    "unfreeze": (policy_pb2.POLICY_ACTION_UNFREEZE, "try and learn again"),
    "reset": (policy_pb2.POLICY_ACTION_RESET, "forget what was learned: the default is used again at first"),
}


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    policy = group(commands, common, "policy", "how agents are chosen when a collaboration does not say")
    command(
        policy, common, "show", _show, "show the policies, what came of each, and which is used", SHOW_HELP
    )
    for name, (_, text) in _ACTIONS.items():
        made = command(policy, common, name, _change, text)
        made.add_argument("--reason", default="", help="for people and the audit log")
        made.set_defaults(action=name)


async def _show(options: argparse.Namespace, output: Output) -> int:
    del options
    async with Client(patience=PATIENCE_S) as client:
        policy = await client.insight.policy()
    if output.as_json:
        output.json(to_plain(policy))
    elif not policy.enabled:
        output.line("policies do not adapt here: scheduling_policy is not ADAPTIVE")
    else:
        _tell(policy, output)
    return OK


async def _change(options: argparse.Namespace, output: Output) -> int:
    action, _ = _ACTIONS[options.action]
    async with Client(patience=PATIENCE_S) as client:
        policy = await client.insight.change_policy(action, options.reason)
    output.item(to_plain(policy), "frozen" if policy.frozen else "trying and learning")
    return OK


def _tell(policy: policy_pb2.AdaptivePolicy, output: Output) -> None:
    how = "frozen: nothing is tried" if policy.frozen else "trying and learning"
    output.line(f"default {policy.default_policy}; {how}")
    rows = [
        (
            load.load,
            arm.policy,
            f"{arm.mean:.3f}" if arm.trials else "-",
            f"{arm.low:.3f} to {arm.high:.3f}" if arm.trials else "-",
            arm.trials,
            arm.pending,
            "shut" if arm.shut else "preferred" if arm.policy == load.preferred_policy else "",
        )
        for load in policy.loads
        for arm in load.arms
    ]
    output.table(
        ("LOAD", "POLICY", "REWARD", "95 %", "TRIALS", "UNDER WAY", ""), rows, (), "no policy is known"
    )
    for load in policy.loads:
        if load.explored_share:
            output.line(f"{load.load}: {load.explored_share:.0%} of the latest choices tried another one")
