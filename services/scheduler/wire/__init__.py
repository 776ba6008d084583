"""Between the protos of `muster.scheduler.v1` and the model, both ways."""
