"""The record of a volume's session: whether everything was written out when the volume was last mounted.

A user who can write to the backing directory can invent a record, or put an older one back. So the record has a
MAC under the keys of the keystore. It names the volume's entry there, a growing number and a random id. The
keystore's history has the begin and the end of each session. Only :func:`last_session` may make tdefs less strict
because of a record. :func:`read_session` is for people: which process has the volume mounted, and where.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.hierarchy import KEY_NAME
from tdefs.keys.keystore.history import append
from tdefs.keys.wrapping import fits_state_mac, state_mac
from tdefs.private import UntrustedError, own_directory, reason_of
from tdefs.volume.known import BEGIN, END, TAKEN_OVER, KnownVolumes

if TYPE_CHECKING:  # the lock of a volume reads here which process holds it
    from tdefs.volume.description import Volume

SESSION_FILE = "session.json"
#: The beginning of a sentence; a reason of :class:`LastSession` is its end.
UNPROVEN = "the record of the last session is not believed:"

_PURPOSE = b"tdefs v1 session record"
_SIZE = 8192
_MEMBERS = ("pid", "mountpoint", "clean", "plain_files", "policy", "volume", "number", "id", "mac")
_ID_BYTES = 16
_MAX_NUMBER = 2**63 - 1
#: Instead of a policy's digest: several policies were in use since the last clean end.
SEVERAL_POLICIES = "several"


@dataclass(frozen=True, slots=True)
class Session:
    """One mount of the volume; ``clean`` is True once everything was written out at its end.

    ``plain_files``: whether files might be in the clear, so that headers were made durable at once.
    ``policy`` is the digest of the policy, or :data:`SEVERAL_POLICIES`. ``volume`` is the id of the entry in the
    keystore, or empty for a copy that it does not know; ``number`` counts the sessions of that entry, and ``id``
    is 16 random bytes in hexadecimal. ``mac`` is over all of it.
    """

    pid: int
    mountpoint: str
    clean: bool
    plain_files: bool = False
    policy: str = ""
    volume: str = ""
    number: int = 0
    id: str = ""
    mac: bytes = b""

    def authenticated(self, history_key: bytes) -> Session:
        """Return the session with its MAC."""
        return replace(self, mac=state_mac(history_key, _PURPOSE, self._content()))

    def is_authentic(self, history_key: bytes) -> bool:
        """Return whether a tdefs with the volume's keys made this record."""
        return fits_state_mac(history_key, _PURPOSE, self._content(), self.mac)

    def _content(self) -> bytes:
        found = {name: value for name, value in asdict(self).items() if name != "mac"}
        return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


class Ending(Enum):
    """How the last session of a volume ended, as far as that is proven."""

    CLEAN = "clean"
    """Everything was written out, or the volume was never mounted."""
    UNCLEAN = "unclean"
    """Files may exist whose header never reached the disk."""
    UNPROVEN = "unproven"
    """The record is not the last one that tdefs wrote: tdefs is as strict as possible, and nothing is durable."""


@dataclass(frozen=True, slots=True)
class LastSession:
    """How the last session ended; if that is unproven, ``reason`` says why.

    ``plain_files`` and ``policy`` are those of :class:`Session`, for a session that ended uncleanly.
    """

    ending: Ending = Ending.CLEAN
    reason: str = ""
    plain_files: bool = False
    policy: str = ""


# --- the file


def read_session(volume: Volume) -> Session | None:
    """Return what the record says, true or not; ``None`` if it cannot be read."""
    try:
        return parse_session(_read(volume))
    except (OSError, UntrustedError):
        return None


def parse_session(data: bytes) -> Session | None:
    """Return the session in the record *data*; ``None`` for anything else."""
    try:
        members = fields.read_object(fields.read_json(data[:_SIZE]), "session", _MEMBERS)
        mountpoint, volume, id = members["mountpoint"], members["volume"], members["id"]
        policy = members["policy"]
        if not isinstance(mountpoint, str) or not isinstance(id, str) or not isinstance(policy, str):
            return None
        return Session(
            fields.read_int(members["pid"], "pid", 0, _MAX_NUMBER),
            mountpoint,
            fields.read_bool(members["clean"], "clean"),
            fields.read_bool(members["plain_files"], "plain_files"),
            policy,
            fields.read_text(volume, "volume", KEY_NAME) if volume != "" else "",
            fields.read_int(members["number"], "number", 0, _MAX_NUMBER),
            id,
            fields.read_hex(members["mac"], "mac"),
        )
    except MalformedError:
        return None


def write_session(volume: Volume, session: Session) -> None:
    """Write the record durably.

    It is written in place, in a file of constant size, so that a volume can be mounted on a full disk. A torn
    write leaves an invalid record, which does no harm: whenever a record is written, everything before it is on
    the disk.
    """
    _write(volume, as_record(session))


def as_record(session: Session) -> bytes:
    """Return the content of the record's file."""
    found = asdict(session) | {"mac": session.mac.hex()}
    return (json.dumps(found) + "\n").encode().ljust(_SIZE)


def _read(volume: Volume) -> bytes:
    with own_directory(volume.private, last_link=False) as directory:
        return directory.read(SESSION_FILE, _SIZE + 1)


def _write(volume: Volume, record: bytes) -> None:
    with own_directory(volume.private, last_link=False) as directory:
        is_new = not directory.exists(SESSION_FILE)
        fd = directory.open(SESSION_FILE, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, record, 0)
            os.ftruncate(fd, len(record))  # a file that damage has made longer would stay damaged for ever
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            # without its name, even the first session would look as if it had never been
            directory.sync()


# --- what of it is believed


def last_session(volume: Volume, entry: str | None, known: KnownVolumes, history_key: bytes) -> LastSession:
    """Return how the last session of *volume* ended.

    An unclean end is believed only if the history confirms it, since files whose header is zero then count as
    empty. A clean end needs no confirmation, since it is the stricter answer.

    :param entry: the id of the volume's entry in the keystore; ``None`` for a copy that the keystore does not
        know, which may be one of any entry, in the middle of its newest session.
    """
    try:
        data = _read(volume)
    except FileNotFoundError:
        number = 0 if entry is None else known.number(entry)
        return _unproven("it is not there") if number else LastSession(Ending.CLEAN)
    except (OSError, UntrustedError) as error:
        return _unproven(f"it cannot be read: {reason_of(error)}")
    session = parse_session(data)
    if session is None or not session.is_authentic(history_key):
        return _unproven("it is not as tdefs wrote it, or was made without the keys of this volume")
    if entry is not None and session.volume not in ("", entry):
        return _unproven(f"it is that of volume {session.volume}, and this is {entry}")
    number, id, ended = known.newest.get(session.volume, (0, "", False))
    if session.clean and entry is None:
        return LastSession(Ending.CLEAN)
    if session.number < number:
        return _unproven(f"it is that of session {session.number}, and the keystore's history knows {number}")
    if session.clean:
        return LastSession(Ending.CLEAN)
    if known.fault:
        return _unproven(known.fault)
    if session.volume == "":
        return _unproven("it was written while the keystore did not know the volume at its place")
    if (session.number, session.id) != (number, id):
        return _unproven("the keystore's history does not know this session")
    if ended:
        return _unproven("it says that the session did not end, and the keystore's history that it did")
    return LastSession(Ending.UNCLEAN, plain_files=session.plain_files, policy=session.policy)


def _unproven(reason: str) -> LastSession:
    return LastSession(Ending.UNPROVEN, reason)


# --- writing it


class SessionBook:
    """Writes the records of a daemon's session: in the volume, and in the history of the keystore.

    The sessions of a copy that the keystore does not know at its place are recorded only in the copy.
    """

    def __init__(
        self, volume: Volume, entry: str | None, keystore: Path, history_key: bytes, known: KnownVolumes
    ) -> None:
        """:param entry: the id of the volume's entry in the keystore, if it has one."""
        self._volume = volume
        self._entry = entry
        self._keystore = keystore
        self._key = history_key
        self._known = known
        self._session: Session | None = None

    def begin(self, pid: int, mountpoint: str, *, plain_files: bool, policy: str = "") -> str:
        """Write that the volume is in use from now on; return why the history does not have it, "" if it has.

        The history is written first. A crash in between leaves a record that is not the newest one, which is
        harmless before a session has begun.

        :param policy: the digest of the policy that decides about new files from now on.
        :raises OSError: the record cannot be written.
        """
        last = read_session(self._volume)
        # if the history was lost, or could not be written, a number must still not be used twice
        is_own = last is not None and last.volume == self._entry and last.is_authentic(self._key)
        before = last.number if last is not None and is_own else 0
        if last is not None and is_own and not last.clean and last.policy != policy:
            policy = SEVERAL_POLICIES
        number = 1 + max(before, self._known.number(self._entry)) if self._entry is not None else 0
        self._session = Session(
            pid,
            mountpoint,
            clean=False,
            plain_files=plain_files,
            policy=policy,
            volume=self._entry or "",
            number=number,
            id=os.urandom(_ID_BYTES).hex(),
        )
        fault = self._note_in_history(BEGIN)
        self._write()
        return fault

    def end(self) -> str:
        """Write that the session has ended, and everything is on the disk; as :meth:`begin`."""
        if self._session is None:
            raise ValueError("no session was begun")
        self._session = replace(self._session, clean=True)
        fault = self._note_in_history(END)
        self._write()
        return fault

    def change_policy(self, policy: str, *, plain_files: bool) -> None:
        """Write, before it is used, that another policy decides about new files from now on.

        Other records are written while no file is in use. This one is replaced as a whole, so it survives a crash.

        :param policy: the digest of the new one.
        :param plain_files: whether files may be in the clear from now on.
        :raises OSError: the record cannot be written, and is as before.
        :raises UntrustedError: the directory is not tdefs's own; the record is as before.
        """
        if self._session is None:
            raise ValueError("no session was begun")
        before = self._session
        several = policy if before.policy == policy else SEVERAL_POLICIES
        changed = replace(before, policy=several, plain_files=before.plain_files or plain_files)
        if changed == before:
            return
        record = as_record(changed.authenticated(self._key))
        with own_directory(self._volume.private, last_link=False) as directory:
            directory.write_durably(SESSION_FILE, record)
        self._session = changed

    def take_over(self, last: Session) -> str:
        """Let the unfinished session *last*, of a copy, count as the newest one of the volume; as :meth:`begin`.

        Call this if a person with a secret has said that the copy is wanted.
        """
        self._session = replace(
            last,
            volume=self._entry or "",
            number=1 + self._known.number(self._entry or ""),
            id=os.urandom(_ID_BYTES).hex(),
        )
        fault = self._note_in_history(TAKEN_OVER)
        self._write()
        return fault

    def _write(self) -> None:
        if self._session is not None:
            write_session(self._volume, self._session.authenticated(self._key))

    def _note_in_history(self, event: str) -> str:
        if self._entry is None or self._session is None:
            return ""
        what: dict[str, Any] = {
            "volume": self._entry,
            "session": self._session.number,
            "session_id": self._session.id,
        }
        try:
            append(self._keystore, event, what, self._key)
        except (OSError, UntrustedError) as error:
            return f"the keystore's history cannot be written: {reason_of(error)}"
        return ""
