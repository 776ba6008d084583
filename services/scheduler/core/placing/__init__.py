"""Which ready task goes to which agent: the index, whose turn it is, the plan, and its application."""
