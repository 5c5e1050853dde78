"""The mounts of this host: which there are, who uses them, where one may come to lie."""
