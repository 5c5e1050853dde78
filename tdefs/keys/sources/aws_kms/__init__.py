"""AWS KMS: a key that never leaves the service encrypts a wrapping key for each protector."""
