"""The client of Muster: write an agent, submit a collaboration, check the log."""
