"""What can be wrong with a stored file, with one class for each kind."""

from __future__ import annotations

from errno import EIO, EKEYREVOKED, ENOKEY


class FormatError(Exception):
    """A stored file cannot be presented; the text says what is wrong with it, never what is in it."""

    hint = "restore the file from a backup; 'tdefs verify' lists every damaged file of a volume"
    #: The error that a program gets when it opens the file.
    errno = EIO


class DamagedHeader(FormatError):
    """The header is not as tdefs wrote it."""


class MissingHeader(FormatError):
    """The header page is all zero: it never reached the disk, or it was wiped."""

    hint = (
        "restore the file from a backup; if it was stored in the clear, accept a policy that leaves it so with "
        "'tdefs policy accept'; one that PostgreSQL makes anew from its WAL can be removed on the mount"
    )


class UnsupportedFormat(FormatError):
    """An intact header of a format version, cipher suite or page size that this tdefs does not know."""

    hint = "a newer tdefs wrote this file: read it with that version"


class OldFormat(FormatError):
    """An intact header of a format version that this tdefs does not read any more."""

    hint = "read the volume with the tdefs that made it, and copy its files into a new volume"


class LowSuite(FormatError):
    """An intact header of a cipher suite that is lower than the volume's lowest."""

    hint = "the file was made before the volume's lowest suite was raised, or put there: restore it from a backup"


class ForeignFile(FormatError):
    """An intact header of another volume, or a file that is not one of this volume's at all."""

    hint = "the file was copied into the backing directory from elsewhere; put this volume's own file back"


class WrongKey(FormatError):
    """An intact header made with another key of the same name and round, or forged without the key."""

    hint = "mount with the keystore that was in use when the file was written"


class UnknownDataKey(FormatError):
    """An intact header that names a data key or round that the keystore does not hold."""

    hint = "mount with the keystore that was in use when the file was written"


class DestroyedKey(FormatError):
    """An intact header that names a round of a data key that was destroyed: nobody can read the file any more."""

    hint = "remove the file, or restore file and keystore from backups of before the key was destroyed"
    errno = ENOKEY


class RevokedKey(FormatError):
    """A new file needs a data key, and every round of it is revoked."""

    hint = "make a new round with 'tdefs key rotate', or name another data key in the policy"
    errno = EKEYREVOKED


class IdentityMismatch(FormatError):
    """The header belongs to another file: the ciphertext was put in this one's place."""

    hint = "the file was moved, copied or exchanged in the backing directory, outside of tdefs; put it back"


class SharedFileId(FormatError):
    """Another file of the volume has the same file id, and with it the same key: one is a copy of the other."""

    hint = "one of them was copied in the backing directory, outside of tdefs: remove the one that is the copy"


class DamagedLength(FormatError):
    """No file of this format can have the stored length."""


class ForeignLink(FormatError):
    """A symbolic link that tdefs did not make for this volume."""

    hint = (
        "somebody has made it in the backing directory: see who can write there, remove it, and make the link "
        "anew through the mount"
    )


class DamagedLink(FormatError):
    """A symbolic link that begins like one of tdefs, but has another form."""

    hint = "remove the link, and make it anew through the mount"


class MisplacedLink(FormatError):
    """A symbolic link that tdefs made for another place of the volume."""

    hint = (
        "somebody has moved or copied it in the backing directory: see who can write there, remove it, and make "
        "the link anew through the mount"
    )


class PlantedNode(FormatError):
    """A FIFO, socket or device in the backing directory, where tdefs makes none."""

    hint = "somebody has put it into the backing directory: see who can write there, and remove it"
