"""The files of a key command: those that it runs and reads, and the directory for its own, beside the keystore.

No other user may be able to change them. tdefs checks the files that the text of the command names.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError, naming
from tdefs.keys.private_files import refuse_exposed
from tdefs.keys.protectors.command_text import DIRECTORY_VARIABLE
from tdefs.private import UntrustedError, kind_of, own_place
from tdefs.trust import check_trusted

_WHAT = "file that the key command uses"


def command_directory(keystore: Path) -> Path:
    """Return the directory for the files of the key command of ``keystore``, whether or not it exists."""
    return keystore.with_name(keystore.name + ".d").absolute()


def ensure_command_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), durably, or check that an existing one is closed to other users.

    :raises TdefsError: KEYSTORE_EXPOSED if it is not closed, by the rules for the keystore itself; FILE_UNTRUSTED;
        OS_ERROR.
    """
    try:
        with own_place(directory) as above:
            with suppress(FileExistsError), naming(directory):
                os.mkdir(directory.name, 0o700, dir_fd=above.fd)
                above.sync()
            status = above.status(directory.name)
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not create the directory "{directory}" for the key command\'s files',
            detail=error.strerror or str(error),
            hint=f"create it for the user who runs tdefs: install -d -m 700 -o USER"
            f" {shlex.quote(os.fspath(directory))}",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(
            directory, f"the key command's files belong there, and it is {kind_of(status)}", "move it away"
        )
    refuse_exposed(directory, status, "key command's directory")


def check_command(shell: str, directory: Path | None) -> None:
    """Check that no other user can change a program or a file that ``shell``, the text for /bin/sh, names.

    That is each word that is the path of something, or a program that is found along PATH, and with ``directory``,
    the directory for %d, also each file that is named in it. tdefs cannot know the words that come into being only
    when the shell runs (variables, substitutions), or inside a program.

    :raises TdefsError: CONFIG_EXPOSED.
    """
    for word in _words(shell):
        text = word
        if directory is not None:
            text = text.replace(f"${{{DIRECTORY_VARIABLE}}}", os.fspath(directory))
        # --file=/etc/x, @/etc/x, <<</etc/x
        candidates = {text, text[text.find("/") :]} if "/" in text else {text}
        for candidate in candidates:
            if "/" not in candidate:
                _check_program(candidate)
            elif os.path.lexists(candidate):
                check_trusted(Path(candidate), _WHAT)


def _check_program(name: str) -> None:
    """Check a program that the shell finds along PATH, and the directories where it looks first."""
    found = []
    for part in os.environ.get("PATH", os.defpath).split(os.pathsep):
        place = Path(part or ".") / name
        found.append(place)
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113 - false if this user may not see it
            break
    else:
        return  # it is no program, or it is built into the shell
    for place in found:
        if os.path.isdir(place.parent):  # noqa: PTH112
            check_trusted(place.parent, f'directory in PATH, where "{name}" of the key command is looked for,')
    check_trusted(found[-1], _WHAT)


def _words(shell: str) -> Iterator[str]:
    """Yield the words of a text for the shell, without quotes and operators."""
    lexer = shlex.shlex(shell, posix=True, punctuation_chars="();<>|&`\n")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            words.append(word)
    except ValueError:
        words += shell.split()
    for word in words:
        # a quoted word may be a text for another shell: sh -c '…'
        yield word
        if any(character.isspace() for character in word):
            yield from word.split()
