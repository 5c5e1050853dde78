"""The key source ``kmip``: a KMIP server keeps a wrapping key, which is fetched over mutual TLS to unlock.

PyKMIP encodes and decodes the messages. Its client is not used: it has fixed TLS versions, does not check the host
name of the server, and reads configuration files of its own.
"""
