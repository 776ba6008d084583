"""Implementations of `services.scheduler.store.SchedulerStore`."""
