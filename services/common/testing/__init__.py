"""Stand-ins that tests of every service share; nothing here runs in production."""
