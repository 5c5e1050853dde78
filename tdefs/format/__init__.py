"""The on-disk format, version 1: header, lengths and the page cipher; pure, without I/O."""
