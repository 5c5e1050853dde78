"""Operations that the kernel does itself, or not at all: after the first answer it does not ask again."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FileHandleT, FUSEError, InodeT, ModeT, RequestContext, XAttrNameT

from tdefs.fuse.replies import Replies, reply


class Unsupported(Replies, pyfuse3.Operations):
    """Answers ENOSYS; then the kernel stops asking."""

    @reply
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Leave the answer to the kernel, which checks permissions itself, and does not ask again."""
        raise FUSEError(errno.ENOSYS)

    # There are no extended attributes. ENOSYS makes the kernel stop asking, where ENOTSUP would cost a request
    # for security.capability before each write.

    @reply
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def flush(self, fh: FileHandleT) -> None:
        """Answer once that closing needs no request of its own: every write has been passed on already."""
        raise FUSEError(errno.ENOSYS)
