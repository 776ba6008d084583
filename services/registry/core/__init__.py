"""The registry's decisions, pure: no clock, no IO, no randomness."""
