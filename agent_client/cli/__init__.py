"""The `muster` command: one file per group of subcommands; it speaks only gRPC."""
