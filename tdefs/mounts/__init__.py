"""The mounts of this host: the list of them, the processes that use them, and where a mount may lie."""
