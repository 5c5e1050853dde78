"""tdefs: an encrypting FUSE file system over a PostgreSQL data directory."""

__version__ = "0.1.0"
