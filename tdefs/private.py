"""Files of tdefs's own: those in ``.tdefs``, keystores and what lies beside them, host keys, logs.

The directory is opened once, and each file relative to it. A file is opened only if it is what tdefs makes: a
regular file with one name, of the right owner, to which nobody else may write. Symbolic links are not followed.
FIFOs and devices are not even opened, so nothing waits, and no lock is held meanwhile.

The files may belong to root and to the user of this process. A process of root may also use a directory of
another user, if the daemon runs as that user. Whatever this user puts there, root changes only files of this user.
"""

from __future__ import annotations

import os
import shlex
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EEXIST, EFBIG, EINVAL, EISDIR, ELOOP
from pathlib import Path

from tdefs.durable import sync_directory, write_durably_in
from tdefs.errors import Exit, TdefsError
from tdefs.way import Way, follow, named

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# somebody removes the file and makes it again; if that never ends, it is an error
_TRIES = 16

#: Checks owner and mode of a file instead of the rules here. Its errors are TdefsError.
Judge = Callable[[Path, os.stat_result], None]


class UntrustedError(TdefsError):
    """A file of tdefs's own is not what tdefs makes, or others could have changed it."""

    def __init__(self, path: Path, what: str, hint: str) -> None:
        super().__init__(
            Exit.FILE_UNTRUSTED, f'tdefs does not use "{path}": {what}', detail="see docs/THREATS.md", hint=hint
        )


def reason_of(error: OSError | UntrustedError) -> str:
    """Return the reason of an error of a file of tdefs's own, for a message that names the file already."""
    return error.message if isinstance(error, UntrustedError) else str(error.strerror)


class OwnDirectory:
    """An open directory with files of tdefs's own."""

    def __init__(self, way: Way, keeper: str | None = None) -> None:
        """:param keeper: the file in it whose owner all files here belong to; without it, the directory's owner.

        :raises UntrustedError: others could exchange the directory or write to it.
        """
        self.path = way.path
        self.fd = way.fd
        status = os.fstat(self.fd)
        self._owner = status
        if keeper is not None:
            with named(self.path / keeper):
                self._owner = os.stat(keeper, dir_fd=self.fd, follow_symlinks=False)
        user = os.geteuid()
        self._readers = {0, user, self._owner.st_uid}
        self._writers = set(self._readers)
        if user == 0 and status.st_uid != 0:
            # its owner may have moved files of root here
            self._writers = {status.st_uid, self._owner.st_uid}
            self._readers.add(status.st_uid)
        elif user != 0:
            self._readers = self._writers = {0, user}
            if status.st_uid not in self._readers:
                raise UntrustedError(
                    self.path,
                    f"it belongs to user {status.st_uid}, and tdefs runs as user {user}",
                    "run it as root, or as the user to whom it belongs",
                )
        for one in way.exchangeable:
            if one.user is None or one.user not in {status.st_uid} & self._readers:
                raise UntrustedError(one.place, f"others could exchange it: {one.reason}", one.remedy)
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            mode = stat.S_IMODE(status.st_mode)
            raise UntrustedError(
                self.path,
                f"group or others may write to this directory (mode {mode:04o})",
                f"chmod go-w {shlex.quote(os.fspath(self.path))}",
            )

    def open(self, name: str, flags: int, *, judge: Judge | None = None) -> int:
        """Open a file, or with O_CREAT make one with mode 0600. The caller closes the descriptor.

        :param judge: checks owner and mode of a file that existed already.
        :raises UntrustedError: it is not such a file, or others could have changed it.
        :raises TdefsError: what *judge* raises.
        :raises OSError: such as FileNotFoundError.
        """
        path = self.path / name
        with named(path):
            for _ in range(_TRIES):
                found = self._find(name)
                if found is None:
                    if not flags & os.O_CREAT:
                        return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fd)  # raises the right error
                    with suppress(FileExistsError):
                        return self._create(name, flags)
                    if flags & os.O_EXCL:
                        raise FileExistsError(EEXIST, os.strerror(EEXIST), str(path))
                    continue
                try:
                    if flags & os.O_CREAT and flags & os.O_EXCL:
                        raise FileExistsError(EEXIST, os.strerror(EEXIST), str(path))
                    self._check(path, os.fstat(found), changes=bool(flags & os.O_ACCMODE), judge=judge)
                    return os.open(f"/proc/self/fd/{found}", flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC)
                finally:
                    os.close(found)
        raise UntrustedError(
            path,
            "another process makes and removes it again and again",
            "find out which process uses the directory",
        )

    def read(self, name: str, most: int, *, judge: Judge | None = None) -> bytes:
        """Return a file's content, at most *most* bytes.

        :raises UntrustedError: as :meth:`open`, which also raises TdefsError and OSError.
        """
        with os.fdopen(self.open(name, os.O_RDONLY, judge=judge), "rb") as file:
            return file.read(most)

    def read_whole(self, name: str, most: int) -> bytes:
        """Return a whole file.

        :raises OSError: EFBIG above *most* bytes; and as :meth:`open`, with its other errors.
        """
        with named(self.path / name), os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(EFBIG, os.strerror(EFBIG))
            return file.read(size)

    def write_durably(self, name: str, data: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
        """Write a file as :func:`tdefs.durable.write_durably_in` does. What has the name now is not checked."""
        with named(self.path / name):
            write_durably_in(self.fd, name, data, mode, replace=replace, owner=self._to_give())

    def exists(self, name: str) -> bool:
        """Return whether the name is taken, by anything."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def status(self, name: str) -> os.stat_result:
        """Return the attributes of what has the name.

        :raises OSError: nothing has the name.
        """
        with named(self.path / name):
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def rename(self, name: str, new: str) -> None:
        """Rename within the directory. What had the new name is replaced."""
        os.rename(name, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a name that is not a directory."""
        with named(self.path / name):
            os.unlink(name, dir_fd=self.fd)

    def remove_planted(self, name: str) -> None:
        """Remove what tdefs never makes, so that the file itself can be written. No content is lost.

        A link, a FIFO or the like is removed, and so is one of several names of a file. A directory is renamed.
        """
        with suppress(FileNotFoundError):
            status = self.status(name)
            if stat.S_ISDIR(status.st_mode):
                self.rename(name, f"{name}.planted-{os.urandom(4).hex()}")
            elif not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                self.unlink(name)

    def sync(self) -> None:
        """Make the entries durable."""
        with named(self.path):
            sync_directory(self.fd)

    def give(self, descriptor: int) -> None:
        """Give an open file to the owner of the files here: the daemon must be able to read what root makes."""
        owner = self._to_give()
        if owner is not None:
            os.fchown(descriptor, *owner)

    def bind(self, listener: socket.socket, name: str) -> None:
        """Bind a socket to the name, with mode 0600, in the place of what has the name now.

        :raises OSError: a directory has the name.
        """
        with suppress(FileNotFoundError):
            self.unlink(name)
        # unix(7): the new name gets the mode of the socket, less the umask
        os.fchmod(listener.fileno(), 0o600)
        # through the descriptor, since a socket's address is limited to 107 bytes
        listener.bind(f"/proc/self/fd/{self.fd}/{name}")

    def unbind(self, name: str) -> None:
        """Remove a socket, if there is one and it can be removed."""
        with suppress(OSError):
            if stat.S_ISSOCK(self.status(name).st_mode):
                self.unlink(name)

    @contextmanager
    def socket_address(self, name: str) -> Iterator[str]:
        """Yield an address to connect to, which leads to the very socket that was checked.

        :raises OSError: there is no socket.
        :raises UntrustedError: it is no socket.
        """
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            status = os.fstat(found)
            if not stat.S_ISSOCK(status.st_mode):
                raise UntrustedError(self.path / name, f"it is {kind_of(status)}", "the next mount makes it anew")
            yield f"/proc/self/fd/{found}"
        finally:
            os.close(found)

    def _find(self, name: str) -> int | None:
        """Return an O_PATH descriptor of what has the name; ``None`` if nothing has."""
        try:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None

    def _create(self, name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            self.give(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _to_give(self) -> tuple[int, int] | None:
        is_roots = os.geteuid() == 0
        return (self._owner.st_uid, self._owner.st_gid) if is_roots and self._owner.st_uid else None

    def _check(self, path: Path, status: os.stat_result, *, changes: bool, judge: Judge | None) -> None:
        quoted = shlex.quote(os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(
                path,
                f"it is {kind_of(status)}, and not a regular file",
                "find out who has put it there, and move it away",
            )
        if status.st_nlink > 1:
            raise UntrustedError(
                path,
                f"the file has {status.st_nlink} names (hard links)",
                f"if the other one is a copy that you have made: cp -p {quoted} {quoted}.new && "
                f"mv {quoted}.new {quoted}",
            )
        if judge is not None:
            judge(path, status)
            return
        if status.st_uid not in (self._writers if changes else self._readers):
            raise UntrustedError(
                path,
                f"it belongs to user {status.st_uid}",
                f"if it is right as it is: chown {self._owner.st_uid} {quoted}",
            )
        if status.st_mode & _OTHERS_WRITE:
            raise UntrustedError(
                path,
                f"group or others may write to it (mode {stat.S_IMODE(status.st_mode):04o})",
                f"if it is right as it is: chmod go-w {quoted}",
            )


def kind_of(status: os.stat_result) -> str:
    """Return in words what kind of file it is."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


@contextmanager
def own_directory(path: Path, *, last_link: bool = True, keeper: str | None = None) -> Iterator[OwnDirectory]:
    """Open the directory *path* during a ``with`` block.

    :param last_link: whether it may be a symbolic link, which an administrator has made.
    :param keeper: see :class:`OwnDirectory`.
    :raises UntrustedError: others could exchange the directory or write to it.
    :raises OSError: such as FileNotFoundError, NotADirectoryError.
    """
    with ExitStack() as stack:
        try:
            way = stack.enter_context(follow(path, last_link=last_link))
        except OSError as error:
            if error.errno != ELOOP:
                raise
            raise UntrustedError(
                path, "it is a symbolic link, or there are too many on the way", "move it away"
            ) from None
        yield OwnDirectory(way, keeper)


@contextmanager
def own_place(path: Path, *, keeper: str | None = None) -> Iterator[OwnDirectory]:
    """Open the directory that contains the file *path*, as :func:`own_directory` does."""
    with own_directory(path.parent, keeper=keeper) as directory:
        yield directory


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a file that others maintain, at most *most* bytes. Links are followed.

    :raises OSError: as open(2); EINVAL for what is not a regular file. This never waits for a FIFO or a device.
    """
    # checked before it is opened, since opening alone can have an effect on a device
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(found)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(EINVAL, f"it is {kind_of(status)}, and not a regular file", str(path))
        with named(path):
            descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(min(most, status.st_size))
