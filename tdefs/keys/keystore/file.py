"""The keystore file: creating it, loading it without a secret, and unlocking the keys in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tdefs.errors import Exit, KeystoreMissingError, NoSecretError, TdefsError
from tdefs.keys.dialogue import Warn
from tdefs.keys.failures import UnusableError
from tdefs.keys.hierarchy import KeyRing, MasterKey
from tdefs.keys.keystore.checking import check_costs
from tdefs.keys.keystore.entries import Document, Place, ProtectorEntry, Statements
from tdefs.keys.keystore.text import MAX_BYTES, parse, serialise
from tdefs.keys.keystore.wrapped_keys import new_document, open_keys, open_master_key
from tdefs.keys.private_files import refuse_exposed
from tdefs.keys.protectors.base import NotMineError, Protector, WrongSecretError
from tdefs.private import own_place
from tdefs.yamlfile import let_read

FIRST_DATA_KEY = "dk_1"

log = logging.getLogger(__name__)


def log_warning(message: str, *, detail: str = "", hint: str = "") -> None:
    """Log a warning, where no program around shows it."""
    log.warning("%s (%s; HINT: %s)", message, detail, hint)


@dataclass(frozen=True)
class Unlocked:
    """A keystore document with its current master key and its data keys.

    ``protector_id`` is the id of the protector that opened it.
    """

    document: Document
    master: MasterKey
    protector_id: str
    ring: KeyRing


@dataclass(frozen=True)
class Keystore:
    """A keystore that was read and found undamaged, still locked. In ``document`` each secret is wrapped."""

    path: Path
    document: Document

    def __post_init__(self) -> None:
        """Refuse what would take long to unlock, before anything is tried.

        :raises TdefsError: KEYSTORE_DAMAGED.
        """
        check_costs(self.document)

    @property
    def volume_id(self) -> bytes:
        """The 16-byte id of the volume whose keys these are."""
        return self.document.volume_id

    def kinds(self) -> list[str]:
        """Return the kinds of protectors that the keystore has, sorted, each once."""
        return sorted({entry.kind for entry in self.document.protectors})

    def check_volume(self, volume_id: bytes) -> None:
        """Check that the keys are those of the volume *volume_id*.

        :raises TdefsError: KEYSTORE_FOREIGN.
        """
        if volume_id != self.volume_id:
            raise TdefsError(
                Exit.KEYSTORE_FOREIGN,
                f'the keystore "{self.path}" belongs to another volume',
                detail=f"the keystore is for volume {self.volume_id.hex()}, this is volume {volume_id.hex()}",
                hint="name this volume's own keystore with --keystore",
            )

    def unlock(self, protector: Protector) -> KeyRing:
        """Return the data keys, unlocked with *protector*.

        :raises TdefsError: as :meth:`open`.
        """
        return self.open(protector).ring

    def open(self, protector: Protector) -> Unlocked:
        """Unlock with *protector*.

        :raises TdefsError: NO_SECRET if the keystore has no protector of this kind (before the secret is asked
            for), WRONG_SECRET or WRAPPING_KEY_UNUSABLE if it opens none of them, KEYSTORE_DAMAGED if the keystore
            was altered by somebody without the master key, and what fetching the secret raises.
        """
        if protector.kind not in self.kinds():
            raise NoSecretError(
                f"{protector.words} does not open the keystore, which has no protector of kind {protector.kind}",
                detail=f'the keystore "{self.path}" has protectors of kind: {", ".join(self.kinds())}',
                hint="use --passphrase-file, --passphrase-fd or the prompt for a passphrase, --key-command for a"
                " command, --key-source for a key source, --recovery-code-file for a recovery code; one"
                " of kind this-host opens without any of these, on its own host",
            )
        masters, by = self._master_keys(protector)
        current = masters[self.document.current_master_key().name]
        return Unlocked(self.document, current, by, open_keys(self.document, masters))

    def _master_keys(self, protector: Protector) -> tuple[dict[str, MasterKey], str]:
        """Return by name every master key that *protector* opens, and which entry opened the current one."""
        opened: dict[str, MasterKey] = {}
        by = ""
        refusal: TdefsError | None = None
        current = self.document.current_master_key().name
        for entry in self.document.protectors:
            if entry.master_key in opened:
                continue
            try:
                opened[entry.master_key] = open_master_key(self.document, entry, protector)
            except NotMineError:
                continue
            except (WrongSecretError, UnusableError) as error:
                # A key server may have revoked the key of one protector, and have that of the next.
                refusal = refusal or error
                continue
            if entry.master_key == current:
                by = entry.id
        if current not in opened:
            raise refusal or WrongSecretError(
                f"none of the keystore's protectors of kind {protector.kind} was made by {protector.words}",
                detail="they are of another host, or of another key or place than the configuration names",
            )
        return opened, by


def create_keystore(
    path: Path,
    volume_id: bytes,
    protector: Protector,
    *,
    data_key_names: Sequence[str] = (FIRST_DATA_KEY,),
    place: Place | None = None,
    statements: Statements | None = None,
    warn: Warn = log_warning,
) -> KeyRing:
    """Create the keystore of a new volume, which is at *place*, at *path* (mode 0600); return its data keys.

    It gets a master key, round 1 of each of *data_key_names*, the first of which becomes the default, and one
    protector. What is returned was unlocked from the very bytes that are written. So a protector that cannot
    unwrap what it has wrapped is found now, and not at the first mount. When this returns, the file is durable.

    :param statements: what the volume may do; without them the strictest.
    :param warn: is called for what the protector made elsewhere and cannot remove after an error.
    :raises TdefsError: VOLUME_EXISTS if there is something at *path*, which is left as it is; OS_ERROR; and what
        the protector raises. What the protector made elsewhere is removed then.
    """
    if os.path.lexists(path):
        raise _exists(path)
    document = new_document(volume_id, protector, data_key_names, place, statements)
    try:
        return write_new_keystore(path, document, protector)
    except BaseException:
        remove_what_is_not_saved(path, protector, document.protectors, warn)
        raise


def remove_what_is_not_saved(
    path: Path, protector: Protector, entries: Iterable[ProtectorEntry], warn: Warn
) -> None:
    """Remove what *protector* made elsewhere for *entries* that the keystore at *path* does not have.

    This raises nothing: *warn* is called for what is left behind.
    """
    saved: set[bytes] | None
    try:
        saved = {entry.wrapped for entry in load_keystore(path).document.protectors}
    except KeystoreMissingError:
        saved = set()
    except TdefsError:
        # the directory may be what failed, so nothing but its absence is certain
        saved = None
    for entry in entries:
        made = protector.made(entry)
        if made is None:
            continue
        if saved is None:
            made.warn_left("the keystore cannot be read, and may need it", warn)
        elif entry.wrapped not in saved:
            made.remove(partial(protector.forget, entry), warn)


def write_new_keystore(path: Path, document: Document, protector: Protector) -> KeyRing:
    """Write the keystore with *document*, which *protector* opens, where there is none; return its data keys.

    :raises TdefsError: as :func:`create_keystore`.
    """
    data = serialise(document)
    ring = Keystore(path, parse(data)).unlock(protector)
    try:
        with own_place(path) as directory:
            directory.write_durably(path.name, data, replace=False)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _os_error("create", path, error) from error
    return ring


def load_keystore(path: Path) -> Keystore:
    """Read the keystore at *path*; no secret is needed.

    :raises TdefsError: KEYSTORE_MISSING; KEYSTORE_EXPOSED if group or others have any permission, or, unless this
        process is root's, the owner is neither root nor its user; FILE_UNTRUSTED; KEYSTORE_DAMAGED; OS_ERROR.
    """
    try:
        with own_place(path) as directory:
            data = directory.read(
                path.name, MAX_BYTES + 1, judge=lambda _, status: refuse_exposed(path, status, "keystore")
            )
    except (FileNotFoundError, NotADirectoryError):
        raise KeystoreMissingError(
            f'there is no keystore "{path}"', hint="name the keystore with --keystore, or restore it from a backup"
        ) from None
    except OSError as error:
        raise _os_error("read", path, error) from error
    return Keystore(path, parse(data))


def _exists(path: Path) -> TdefsError:
    return TdefsError(
        Exit.VOLUME_EXISTS,
        f'there is a file at "{path}" already, and a keystore is never overwritten',
        hint="choose another place with --keystore, or move the file away if nothing needs its keys",
    )


def _os_error(action: str, path: Path, error: OSError) -> TdefsError:
    return TdefsError(
        Exit.OS_ERROR,
        f'could not {action} the keystore "{path}"',
        detail=error.strerror or str(error),
        hint=let_read(path, error) if action == "read" else "",
    )
