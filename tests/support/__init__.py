"""What tests on a mount and on a real server share: volumes, PostgreSQL servers, and clearing up after both."""
