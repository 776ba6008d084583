"""The services of Muster, each a process of its own; none imports another."""
