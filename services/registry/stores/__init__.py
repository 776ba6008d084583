"""Implementations of the protocols in `services.registry.store`."""
