"""What a file at a path must be bound to: its relation, its name, or the class of files that it belongs to."""

from __future__ import annotations

import os
from functools import lru_cache

from tdefs.format.errors import IdentityMismatch
from tdefs.format.header import Binding, FileClass, Header, Identity, named, of_class
from tdefs.policy.paths import Kind, classify

_FORKS = ("main", "fsm", "vm", "init")

#: Files that PostgreSQL finds by their names, and seldom or never renames: each is bound to its own.
_NAMED_KINDS = frozenset(
    (
        Kind.CONTROL,
        Kind.SLRU,
        Kind.CONFIGURATION,
        Kind.VERSION,
        Kind.RELATION_MAP,
        Kind.TWO_PHASE,
        Kind.LOCK,
        Kind.SIGNAL,
    )
)
#: All others: PostgreSQL renames them to names of the same class, some of them all the time.
_CLASSES = {
    Kind.WAL: FileClass.WAL,
    Kind.RELCACHE: FileClass.RELATION_CACHE,
    Kind.TEMP: FileClass.TEMPORARY,
    Kind.REPLICATION: FileClass.REPLICATION,
    Kind.STATISTICS: FileClass.STATISTICS,
    Kind.LOG: FileClass.LOG,
    Kind.BACKUP: FileClass.BACKUP,
    Kind.STRAY: FileClass.DATABASE,
    Kind.OTHER: FileClass.OTHER,
}


@lru_cache(maxsize=8192)
def identity_at(path: str) -> Identity:
    """Return what a file at *path*, relative to the mount point, must be bound to."""
    role = classify(path)
    relation = role.relation
    if relation is not None:
        return Identity(
            Binding.RELATION,
            relation.database,
            relation.relfilenode,
            _FORKS.index(relation.fork),
            relation.segment,
        )
    return named(os.fsencode(path)) if role.kind in _NAMED_KINDS else of_class(_CLASSES[role.kind])


def check_identity(header: Header, identity: Identity) -> None:
    """Check that an encrypted file lies where it belongs.

    :raises IdentityMismatch: it was put in another file's place.
    """
    if not header.accepts(identity):
        bound = " or ".join(str(one) for one in header.identities)
        raise IdentityMismatch(f"the header belongs to {bound}, but lies in the place of {identity}")
