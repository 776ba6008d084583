"""How an agent is chosen for a task: one file for each policy, all of them by name in `registry`."""
