"""``tdefs key-source``: the key sources of the configuration, and the wrapping keys on their servers."""
