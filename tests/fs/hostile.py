"""Surroundings in which a caller wants other things loaded, or written elsewhere, than tdefs wants.

Everything that is loaded or run leaves a mark: an empty file in a directory, with the name of what has left it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_LIBRARY = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void mark(void) { close(open("%s", O_WRONLY | O_CREAT, 0666)); }
unsigned int la_version(unsigned int version) { return version; }
int OSSL_provider_init(const void *a, const void *b, const void **c, void **d) { return 0; }
int gconv_init(void *step) { return 1; }
int gconv(void) { return 1; }
"""
_MODULE = "open({mark!r}, 'w').close()\n"
_PROVIDER = """
openssl_conf = start
[start]
providers = providers
[providers]
default = default_provider
foreign = foreign_provider
[default_provider]
activate = 1
[foreign_provider]
module = {module}
activate = 1
"""
#: Programs that tdefs runs by their names, and that its key command does.
_PROGRAMS = ("cat", "env", "sh", "fusermount3", "fusermount", "mount", "umount", "python3")


class Surroundings:
    """The directory with all that is planted, the marks that it leaves, and the variables that lead to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marks = root / "marks"
        self.modules = root / "modules"
        #: Where a program would write that believes the variables.
        self.elsewhere = root / "elsewhere"
        for directory in (root, self.marks, self.modules, self.elsewhere):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o777)
        self._plant_modules(self.modules)
        self._plant_modules(self.modules / "lib" / "python3.11" / "site-packages")
        preloaded, audited, provider = (self._library(name) for name in ("preloaded", "audited", "provider"))
        libraries = root / "libraries"
        libraries.mkdir()
        for name in ("libcrypto.so.3", "libfuse3.so.3", "libfuse3.so.4", "libpthread.so.0", "gconv.so"):
            self._library(f"of {name}").rename(libraries / name)
        (libraries / "gconv-modules").write_text(
            "module INTERNAL FOREIGN// gconv 1\nmodule FOREIGN// INTERNAL gconv 1\n"
        )
        openssl = root / "openssl.cnf"
        openssl.write_text(_PROVIDER.format(module=provider))
        script = root / "script"
        script.write_text(f": >'{self.marks}/shell script'\n")
        programs = root / "programs"
        programs.mkdir()
        for name in _PROGRAMS:
            (programs / name).write_text(f"#!/bin/sh\n: >'{self.marks}/program {name}'\nexit 1\n")
            (programs / name).chmod(0o755)
        modules, elsewhere, nowhere = str(self.modules), str(self.elsewhere), str(root / "nowhere")
        #: What could change what is loaded, run or believed, and where something is written.
        self.variables = {
            "LD_PRELOAD": str(preloaded),
            "LD_AUDIT": str(audited),
            "LD_LIBRARY_PATH": str(libraries),
            "LD_DEBUG": "all",
            "LD_DEBUG_OUTPUT": f"{elsewhere}/loader",
            "GLIBC_TUNABLES": "glibc.malloc.check=3",
            "MALLOC_PERTURB_": "7",
            "MALLOC_ARENA_MAX": "1",
            "GCONV_PATH": str(libraries),
            "LOCPATH": str(libraries),
            "OPENSSL_CONF": str(openssl),
            "OPENSSL_MODULES": str(libraries),
            "OPENSSL_ENGINES": str(libraries),
            "SSL_CERT_FILE": nowhere,
            "SSL_CERT_DIR": nowhere,
            "SSLKEYLOGFILE": f"{elsewhere}/keys",
            "REQUESTS_CA_BUNDLE": nowhere,
            "PYTHONPATH": modules,
            "PYTHONHOME": modules,
            "PYTHONUSERBASE": modules,
            "PYTHONSTARTUP": str(self.modules / "trio.py"),
            "PYTHONPYCACHEPREFIX": elsewhere,
            "PYTHONWARNINGS": "ignore::trio.Category",
            "PYTHONINSPECT": "1",
            "PYTHONMALLOC": "debug",
            "PYTHONVERBOSE": "1",
            "PYTHONBREAKPOINT": "trio.main",
            "TMPDIR": elsewhere,
            "TEMP": elsewhere,
            "HOME": elsewhere,
            "XDG_RUNTIME_DIR": elsewhere,
            "XDG_CONFIG_HOME": elsewhere,
            "XDG_CACHE_HOME": elsewhere,
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "BASH_ENV": str(script),
            "ENV": str(script),
            "BASH_FUNC_cat%%": f"() {{ : >'{self.marks}/shell function'; }}",
            "IFS": "/",
            "TPM2TOOLS_TCTI": f"device:{nowhere}",
            "TSS2_LOG": "all+trace",
            "SOFTHSM2_CONF": nowhere,
            "AWS_CONFIG_FILE": nowhere,
            "AWS_ENDPOINT_URL": "https://127.0.0.1:1",
            "AWS_CA_BUNDLE": nowhere,
            "VAULT_TOKEN": "s.foreign",
            "HTTPS_PROXY": "http://127.0.0.1:1",
            "https_proxy": "http://127.0.0.1:1",
            "_FUSE_COMMFD": "0",
            # names of files, where the C library and gettext take the name of a language or a zone
            "LC_ALL": f"../../../..{root}/locale",
            "LANGUAGE": f"../../../..{root}/locale",
            "TZ": f":{root}/zone",
        }
        catalog = root / "locale" / "LC_MESSAGES" / "messages.mo"
        catalog.parent.mkdir(parents=True)
        catalog.write_bytes(b"no catalog")

    def environment(self, *names: str) -> dict[str, str]:
        """The caller's own environment, with the variables of these names, or with all of them."""
        chosen = {name: self.variables[name] for name in names} if names else self.variables
        return {**os.environ, **chosen}

    def found_marks(self) -> list[str]:
        """What was loaded or run, and what was written where the variables say."""
        return sorted(os.listdir(self.marks) + os.listdir(self.elsewhere))

    def _plant_modules(self, directory: Path) -> None:
        """What Python imports at its start, what tdefs imports, and a tdefs."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in (
            "sitecustomize",
            "usercustomize",
            "trio",
            "yaml",
            "argparse",
            "tdefs/__init__",
            "tdefs/__main__",
        ):
            path = directory / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(_MODULE.format(mark=str(self.marks / f"module {name.replace('/', '.')}")))
        if directory != self.modules:
            return
        for name in ("trio.py", "yaml.py", "tdefs", "argparse.py"):
            (self.root / name).symlink_to(directory / name)

    def _library(self, name: str) -> Path:
        source, library = self.root / f"{name}.c", self.root / f"{name.replace(' ', '-')}.so"
        source.write_text(_LIBRARY % (self.marks / f"library {name}"))
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
        return library
