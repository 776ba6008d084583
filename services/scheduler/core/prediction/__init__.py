"""What the plane has learned: how long work takes, how often it succeeds, and how sure that is."""
