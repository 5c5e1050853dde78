"""PyKMIP's server as its authors start it: its own program, sockets and cipher list, TLS 1.2 only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keysources.kmip_scene import KmipScene, wraps_and_unwraps
from tests.support.processes import wait_until
from tests.support.workspace import Workspace

PROGRAM = Path(sys.executable).parent / "pykmip-server"

CONFIGURATION = """[server]
hostname=127.0.0.1
port={port}
certificate_path={pair.certificate}
key_path={pair.key}
ca_path={ca}
auth_suite=TLS1.2
policy_path={directory}
database_path={directory}/stock.sqlite
enable_tls_client_auth=True
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def scene(workspace: Workspace) -> KmipScene:
    return KmipScene(workspace.directory("pykmip"))


@pytest.fixture
def port(scene: KmipScene) -> Iterator[int]:
    """The port of the server."""
    directory, port = scene.directory, free_port()
    configuration = directory / "server.conf"
    configuration.write_text(
        CONFIGURATION.format(port=port, pair=scene.server_pair, ca=scene.authority.path, directory=directory)
    )
    command: list[str | Path] = [PROGRAM, "-f", configuration, "-l", directory / "server.log"]
    with (directory / "output").open("wb") as output:
        # it starts processes of its own, which end with its group
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory, start_new_session=True)
    try:
        assert wait_until(lambda: answers(port), 20), (directory / "output").read_text()
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def test_the_stock_server_serves_the_key_source(scene: KmipScene, port: int) -> None:
    source = scene.source(f"127.0.0.1:{port}")
    wraps_and_unwraps(source)
    uid = source.create_key("stock")
    source.activate_key(uid)
    assert [(key.name, key.state) for key in source.list_keys()] == [("stock", "active")]
