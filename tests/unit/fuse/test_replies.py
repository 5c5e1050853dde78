"""Whatever goes wrong in a request becomes an errno: no exception ends the mount."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
import trio
from pyfuse3 import FUSEError

from tdefs.data.complaints import Complaints
from tdefs.format.errors import DamagedLength
from tdefs.fuse.replies import Replies, reply


class Failing(Replies):
    """Fails each request with the error it was made with."""

    def __init__(self, error: Exception, *, nameless: bool = False) -> None:
        super().__init__(Complaints())
        self._error = error
        self._nameless = nameless

    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        if self._nameless:
            raise ZeroDivisionError
        return "base/5/16384"

    @reply
    async def write(self, fh: int) -> None:
        raise self._error


def answer(served: Failing) -> int:
    with pytest.raises(FUSEError) as caught:
        trio.run(served.write, 1)
    return caught.value.errno


@pytest.mark.parametrize(
    ("error", "number", "logged"),
    [
        (OSError(errno.ENOENT, "missing"), errno.ENOENT, ""),
        (OSError(errno.ENOSPC, "disk full"), errno.ENOSPC, "write of base/5/16384 failed: disk full"),
        (OSError("no number"), errno.EIO, "write of base/5/16384 failed"),
        (OverflowError(), errno.EFBIG, ""),
        (DamagedLength("the file is cut"), errno.EIO, "base/5/16384: the file is cut (HINT: restore the file"),
        (ZeroDivisionError("a fault of ours"), errno.EIO, "ZeroDivisionError: a fault of ours"),
        (FUSEError(errno.ENOSYS), errno.ENOSYS, ""),
    ],
)
def test_every_exception_becomes_an_errno_and_what_matters_is_logged(
    error: Exception, number: int, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = Failing(error)
    assert answer(served) == number
    assert logged in caplog.text if logged else not caplog.text
    assert served.requests["write"] == 1
    assert served.complaints.counts["write"] == bool(logged)


def test_a_full_disk_is_counted_each_time_and_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    served = Failing(OSError(errno.ENOSPC, "disk full"))
    for _ in range(100):
        answer(served)
    assert served.complaints.counts["write"] == 100
    assert caplog.text.count("disk full") == 1


def test_an_error_in_reporting_an_error_is_an_errno_too(caplog: pytest.LogCaptureFixture) -> None:
    assert answer(Failing(OSError(errno.ENOSPC, "disk full"), nameless=True)) == errno.EIO
    assert "unexpected error while reporting" in caplog.text


def test_a_lack_of_memory_is_enomem() -> None:
    served = Failing(MemoryError())
    assert answer(served) == errno.ENOMEM
    assert served.complaints.counts == {"write": 1}
