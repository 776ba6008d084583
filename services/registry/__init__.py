"""Who is alive and what they can do."""
