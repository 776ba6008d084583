"""Mailboxes: at-least-once, ordered, prioritised delivery between agents."""
