"""AWS KMS: a key that never leaves the service encrypts a wrapping key for each protector."""

from tdefs.keys.sources.aws_kms.source import AwsKms

__all__ = ["SOURCE"]

SOURCE = AwsKms
