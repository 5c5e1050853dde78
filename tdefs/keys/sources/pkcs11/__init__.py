"""PKCS#11: a key that never leaves a token (HSM, smart card) encrypts a wrapping key for each protector.

The module of the token is foreign code with threads, locks and sessions of its own. A process that lives for one
operation loads it (:mod:`~tdefs.keys.sources.pkcs11.token`). So a
module that hangs or crashes is an error like others, and a daemon that forks has no module, no session, and no
PIN in its memory.
"""
