"""Pure decisions of the scheduler: state and event in, effects out."""
