"""The command `steermoe`: one module for each subcommand."""
