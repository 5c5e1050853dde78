"""Names and inodes: which there are, where each lies in the backing directory, and what opens them."""
