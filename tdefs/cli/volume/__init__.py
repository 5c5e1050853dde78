"""``tdefs volume``: the volumes that a keystore knows."""
