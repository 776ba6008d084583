"""Implementations of `services.broker.store.MailboxStore`."""
