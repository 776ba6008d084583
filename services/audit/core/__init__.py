"""What the log decides and computes: no clock, no IO, no randomness."""
