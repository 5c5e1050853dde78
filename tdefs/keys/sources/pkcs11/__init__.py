"""PKCS#11: a key that never leaves a token (HSM, smart card) encrypts a wrapping key for each protector.

The module of the token, foreign code with threads, locks and sessions of its own, is loaded by a process that
lives for one operation (:mod:`~tdefs.keys.sources.pkcs11.process`, :mod:`~tdefs.keys.sources.pkcs11.token`). So a
module that hangs or crashes is an error like others, and a daemon that forks has neither module nor session, nor
the PIN that was in it.
"""

import pkcs11  # noqa: F401 - if it is missing, that is to be told before a process is started which needs it

from tdefs.keys.sources.pkcs11.source import Pkcs11

__all__ = ["SOURCE"]

SOURCE = Pkcs11
