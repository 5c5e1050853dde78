"""What weakens the promises of a mount: PostgreSQL's settings, where its files lie, the host."""
