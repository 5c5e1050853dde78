"""Protectors: the ways to unlock a master key, one module for each kind."""
