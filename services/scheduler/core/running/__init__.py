"""What runs: attempts, how they end, and what is done about slow, late and interrupted ones."""
