"""A backing directory is damaged while nobody has it mounted."""
