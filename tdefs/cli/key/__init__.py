"""``tdefs key``: one module for each group of subcommands."""
