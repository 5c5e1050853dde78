"""ext4's own encryption, in the kernel: AES-256-XTS, on a loop image on the same disk.

Its keys are set with the ioctls of linux/fscrypt.h, as fscryptctl does; nothing is installed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from pathlib import Path

from benchmarks.systems.base import System, Unavailable, Variant
from tests.support.mounts import detach, is_mounted

VARIANTS = (Variant("AES-256-XTS, on a loop image"),)
_IMAGE_BYTES = 24 << 30  # sparse

# linux/fscrypt.h
_ADD_ENCRYPTION_KEY = 0xC0506617  # _IOWR('f', 23, struct fscrypt_add_key_arg), 80 bytes
_SET_ENCRYPTION_POLICY = 0x800C6613  # _IOR('f', 19, struct fscrypt_policy_v1)
_KEY_SPEC_IDENTIFIER = 2
_KEY_BYTES = 64
_POLICY_V2 = 2
_MODE_AES_256_XTS, _MODE_AES_256_CTS = 1, 4
_PAD_NAMES_32 = 3


class Fscrypt(System):
    """A loop device has no daemon; the kernel's own threads do the work, and are not counted."""

    @property
    def storage(self) -> Path:
        return self._mountpoint / "storage"

    @property
    def _mountpoint(self) -> Path:
        return self.root / "mnt"

    def prepare(self) -> None:
        if "ext4" not in Path("/proc/filesystems").read_text():
            raise Unavailable("the kernel has no ext4")
        image = self._image
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        self._mountpoint.mkdir()
        self.run("mkfs.ext4", "-q", "-F", "-O", "encrypt", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        self.run("mount", self._attach(), self._mountpoint)
        self._encrypt_storage()
        self.give_to_server()

    def discard(self) -> None:
        if is_mounted(self._mountpoint):
            detach(self._mountpoint)
        if self._image.exists():
            # asked for instead of remembered: Ctrl-C may have come before there was anything to remember
            for device in self.run("losetup", "-n", "-O", "NAME", "-j", self._image).split():
                self.run("losetup", "-d", device)

    @property
    def _image(self) -> Path:
        return self.root / "image"

    def _attach(self) -> str:
        try:
            # without it, every page would be cached twice
            return self.run("losetup", "--direct-io=on", "-f", "--show", self._image).strip()
        except Unavailable:
            return self.run("losetup", "-f", "--show", self._image).strip()

    def _encrypt_storage(self) -> None:
        key = secrets.token_bytes(_KEY_BYTES)
        request = bytearray(struct.pack("=II32sII8I", _KEY_SPEC_IDENTIFIER, 0, b"", len(key), 0, *[0] * 8) + key)
        try:
            _ioctl(self._mountpoint, _ADD_ENCRYPTION_KEY, request)
            identifier = bytes(request[8:24])
            policy = struct.pack(
                "=4B4s16s", _POLICY_V2, _MODE_AES_256_XTS, _MODE_AES_256_CTS, _PAD_NAMES_32, b"", identifier
            )
            self.storage.mkdir()
            _ioctl(self.storage, _SET_ENCRYPTION_POLICY, bytearray(policy))
        except OSError as error:
            raise Unavailable(f"this kernel refuses to encrypt ext4: {error}") from error


def _ioctl(directory: Path, request: int, argument: bytearray) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, request, argument, True)
    finally:
        os.close(descriptor)
