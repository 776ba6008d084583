"""What Muster does per second, beside systems that do a similar job, on one machine in one run."""
