"""The policy model and the path classifier; pure, without I/O."""
