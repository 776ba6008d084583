"""The agent's three streams and what they stand on. Everything here runs on the link loop."""
