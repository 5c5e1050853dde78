"""Vault and OpenBao: keys of the transit engine, and keys that the KV engine keeps."""
