"""The measuring stick: PostgreSQL on plain disk, tdefs and other encrypting file systems, in one run."""
