"""Suites that others wrote, run on a mount: PostgreSQL's own tests, and exercisers of file systems."""
