"""Declares the compiled page cipher; without a compiler or OpenSSL's headers tdefs installs without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tdefs.format._compiled",
            ["tdefs/format/_compiled.c"],
            libraries=["crypto"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
            optional=True,
        )
    ]
)
