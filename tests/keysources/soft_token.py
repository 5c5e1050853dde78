"""Tokens of SoftHSM in a directory, and PKCS#11 modules that misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
LABEL = "tdefs token"
#: Long enough that it is found in a process's memory by itself alone.
PIN = "pin-648219-of-the-test"
_SO_PIN = "12345678"


class SoftToken:
    """A directory of tokens; the programs that use it must have :attr:`environment`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokens = root / "tokens"
        self._configuration = root / "softhsm2.conf"
        self.environment = {"SOFTHSM2_CONF": str(self._configuration)}
        root.mkdir(mode=0o700, exist_ok=True)
        self.tokens.mkdir(mode=0o700, exist_ok=True)
        self.configure("objectstore.backend = file")

    def configure(self, line: str) -> None:
        """Write the configuration, with a line more than it needs."""
        self._configuration.write_text(f"directories.tokendir = {self.tokens}\nlog.level = ERROR\n{line}\n")

    def copy(self, root: Path) -> SoftToken:
        """Make the same tokens, with all that is in them, in another directory."""
        copied = SoftToken(root)
        shutil.copytree(self.tokens, copied.tokens, dirs_exist_ok=True)
        return copied

    def add(self, label: str = LABEL) -> None:
        """Make a token with nothing in it."""
        words = ["--init-token", "--free", "--label", label, "--so-pin", _SO_PIN, "--pin", PIN]
        self._run("softhsm2-util", *words)

    def tool(self, *words: str, label: str = LABEL) -> None:
        """Do something with OpenSC's tool, logged in."""
        place = ["--module", str(MODULE), "--token-label", label, "--login", "--pin", PIN]
        self._run("pkcs11-tool", *place, *words)

    def _run(self, *words: str) -> None:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def compiled_module(directory: Path, name: str, body: str) -> Path:
    """Return a module whose first function does what the C code says."""
    source = directory / f"{name}.c"
    source.write_text(
        "#include <stdlib.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        f"unsigned long C_GetFunctionList(void **list) {{ {body} return 6; }}\n"
    )
    library = directory / f"{name}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library
