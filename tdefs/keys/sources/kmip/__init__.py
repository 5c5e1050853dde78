"""The key source ``kmip``: a wrapping key that a KMIP server keeps, fetched over mutual TLS to unlock.

PyKMIP encodes and decodes the messages. Its client is not used: that takes fixed TLS versions, does not check
the server's host name, and reads configuration files of its own.
"""

from tdefs.keys.sources.kmip.source import KmipSource

SOURCE = KmipSource

__all__ = ["SOURCE", "KmipSource"]
