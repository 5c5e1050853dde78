"""What is known about PostgreSQL itself."""
