"""``tdefs protector``: the protectors of a keystore, and how they follow a new master key."""
