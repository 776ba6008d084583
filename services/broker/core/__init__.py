"""Pure decisions of the broker: no clock, no IO, no randomness."""
