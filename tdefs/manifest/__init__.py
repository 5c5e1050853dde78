"""The list of all files in a volume at rest, under a MAC; later the volume is compared with it."""
