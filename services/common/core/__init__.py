"""Pure building blocks that every core may import: no clock, no IO, no randomness."""
