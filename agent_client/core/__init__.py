"""The client's decisions: plain synchronous Python without clock, sockets or chance."""
