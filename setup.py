"""Declares what is compiled: the launchers that are the commands, and the page cipher.

Without OpenSSL's headers tdefs installs without the page cipher. There are no commands without a C compiler.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup

# isort: split
# Setuptools provides it where the standard library has it no more.
from distutils.ccompiler import new_compiler
from distutils.command.build_scripts import build_scripts
from distutils.sysconfig import customize_compiler

_SOURCE = "tdefs/cli/launcher.c"
#: The commands, and the modules that they run. mount(8) runs the second for the type fuse.tdefs, once it is linked
#: into /usr/sbin.
_COMMANDS = {"tdefs": "tdefs", "mount.fuse.tdefs": "tdefs.cli.mount_helper"}


class BuildLaunchers(build_scripts):
    """Compiles a launcher for each command, in place of copying scripts."""

    def run(self) -> None:
        """Link statically: into a program that is linked dynamically LD_PRELOAD gets before its first line."""
        compiler = new_compiler()
        customize_compiler(compiler)
        Path(self.build_dir).mkdir(parents=True, exist_ok=True)
        for command, module in _COMMANDS.items():
            with TemporaryDirectory() as directory:
                objects = compiler.compile(
                    [_SOURCE],
                    output_dir=directory,
                    macros=[("MODULE", f'"{module}"')],
                    extra_preargs=["-O2", "-Wall", "-Wextra"],
                )
                compiler.link_executable(
                    objects, command, output_dir=self.build_dir, extra_preargs=["-static", "-s"]
                )


setup(
    scripts=[_SOURCE],
    cmdclass={"build_scripts": BuildLaunchers},
    ext_modules=[
        Extension(
            "tdefs.format._compiled",
            ["tdefs/format/_compiled.c"],
            libraries=["crypto"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
            optional=True,
        )
    ],
)
