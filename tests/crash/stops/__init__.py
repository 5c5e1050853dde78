"""The daemon is stopped, suspended or abused at a bad time."""
