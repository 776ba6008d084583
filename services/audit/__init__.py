"""The audit service: an append-only record of what happened, which anyone with the key can verify."""
