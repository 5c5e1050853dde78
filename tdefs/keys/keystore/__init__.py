"""The keystore: its entries, its file, what a change does, how it is saved, its history, and its copy."""
