"""The mounted file system: inodes, open files, FUSE operations, the session loop."""
