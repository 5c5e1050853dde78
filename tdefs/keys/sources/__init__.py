"""Key sources that the configuration describes, one module each; see :mod:`tdefs.keys.key_source`."""
