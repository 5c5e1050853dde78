"""Finding weaknesses of a mount: PostgreSQL's settings, the places of its files, the host."""
