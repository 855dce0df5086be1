"""The commands of `steermoe`, a file each with its function `main`; rows of `steermoe.serving.cli.COMMANDS`."""
