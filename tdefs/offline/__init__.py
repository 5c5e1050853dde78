"""The same files without a mount: reading, listing, verifying, recovering."""
