"""Keystore, key hierarchy and the secrets that unlock it."""
