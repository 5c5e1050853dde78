"""Power cuts, on a disk that forgets what nobody has synced."""
