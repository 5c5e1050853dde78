"""A disk whose power can be cut: a file system that forgets what nobody has synced."""
