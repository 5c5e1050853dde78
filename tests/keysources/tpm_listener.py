"""Somebody who listens on the wires between processor and TPM."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class TpmListener:
    """Passes on what goes to and from the TPM at the sockets ``tpm`` and ``tpm.ctrl``, and keeps all of it."""

    def __init__(self, tpm: Path, place: Path) -> None:
        self.heard = bytearray()
        self.tcti = f"swtpm:path={place}"
        self._ends = [(place, tpm), (Path(f"{place}.ctrl"), Path(f"{tpm}.ctrl"))]
        self._listening: list[socket.socket] = []

    def __enter__(self) -> Self:
        for here, there in self._ends:
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(here))
            server.listen()
            self._listening.append(server)
            threading.Thread(target=self._serve, args=(server, there), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._listening:
            server.close()

    def _serve(self, server: socket.socket, there: Path) -> None:
        with suppress(OSError):
            while True:
                caller, _ = server.accept()
                tpm = socket.socket(socket.AF_UNIX)
                tpm.connect(str(there))
                back = threading.Thread(target=self._pass_on, args=(tpm, caller), daemon=True)
                back.start()
                self._pass_on(caller, tpm)
                back.join()
                caller.close()
                tpm.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
