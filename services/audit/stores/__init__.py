"""Where the log is kept: `memory` for simulation, `files` for real."""
