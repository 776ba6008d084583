"""Locks: who holds which resource and who is next, and what tasks, agents and the store do with that."""
