"""Decides which agent gets which task, and who holds which resource."""
