"""The KMIP key source and its servers: who is trusted, who is refused, who is asked next, and when it ends."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kmip.core.exceptions import ConnectionClosed

from tdefs.errors import Exit, TdefsError
from tests.keysources.certificates import Authority
from tests.keysources.kmip_scene import CONTEXT, SECRET, KmipScene, entry_of, refusal, wraps_and_unwraps
from tests.support.workspace import Workspace

TLS = ssl.TLSVersion
#: Where nobody listens: the port is privileged, and not assigned.
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster(workspace: Workspace) -> Iterator[KmipScene]:
    scene = KmipScene(workspace.directory("kmip"))
    yield scene
    scene.stop_since()


@pytest.fixture
def scene(cluster: KmipScene) -> Iterator[KmipScene]:
    """The cluster; the servers that a test starts are stopped after it."""
    count = cluster.count
    yield cluster
    cluster.stop_since(count)


@pytest.mark.parametrize("version", [TLS.TLSv1_2, TLS.TLSv1_3], ids=["tls1.2", "tls1.3"])
@pytest.mark.parametrize("minimum", [None, "1.2", "1.3"])
def test_tls_1_2_and_1_3_are_spoken_and_no_less_than_the_minimum(
    scene: KmipScene, version: TLS, minimum: str | None
) -> None:
    source = scene.source(scene.server(version=version).address, tls_minimum=minimum)
    if minimum == "1.3" and version is TLS.TLSv1_2:
        error = refusal(source)
        assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
        assert "protocol version" in error.detail
    else:
        wraps_and_unwraps(source)


def test_a_server_of_tls_1_1_is_refused_though_it_would_serve(scene: KmipScene) -> None:
    server = scene.server(version=TLS.TLSv1_1)
    error = refusal(scene.source(server.address))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert "does not speak TLS as is demanded" in error.message

    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    lax.minimum_version = lax.maximum_version = TLS.TLSv1_1
    lax.set_ciphers("ALL:@SECLEVEL=0")
    lax.load_verify_locations(scene.authority.path)
    lax.load_cert_chain(scene.client.certificate, scene.client.key)
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as raw,
        lax.wrap_socket(raw, server_hostname="127.0.0.1") as old,
    ):
        assert old.version() == "TLSv1.1"


def test_a_server_without_tls_is_refused(scene: KmipScene) -> None:
    error = refusal(scene.source(scene.plain_server(b"220 mail.example ESMTP\r\n").address))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert error.detail == "wrong version number"


def test_hosts_are_checked_as_names_and_as_addresses(scene: KmipScene) -> None:
    port = scene.server().port
    for host in ("127.0.0.1", "localhost"):
        wraps_and_unwraps(scene.source(f"{host}:{port}"))
    wraps_and_unwraps(scene.source(scene.server(host="::1").address))


@pytest.mark.parametrize("names", [("kms.example",), ("127.0.0.2",), ()])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_for_another_host_is_refused(scene: KmipScene, names: tuple[str, ...], host: str) -> None:
    # the common name is right; it counted in old times where there are no alternative names
    pair = scene.authority.sign(host, *names)
    error = refusal(scene.source(f"{host}:{scene.server(pair).port}"))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert "mismatch" in error.detail
    assert "subject alternative names" in error.hint


def test_a_certificate_of_another_authority_is_refused(scene: KmipScene, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    error = refusal(scene.source(scene.server().address, ca=str(other.path)))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert error.detail in (
        "unable to get local issuer certificate",
        "self-signed certificate in certificate chain",
    )


def test_an_expired_certificate_is_refused(scene: KmipScene) -> None:
    pair = scene.authority.sign("expired", "127.0.0.1", valid=timedelta(days=-1))
    error = refusal(scene.source(scene.server(pair).address))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert error.detail == "certificate has expired"


@pytest.mark.parametrize("version", [TLS.TLSv1_2, TLS.TLSv1_3], ids=["tls1.2", "tls1.3"])
@pytest.mark.parametrize("fault", ["foreign", "expired"])
def test_a_client_certificate_that_the_server_does_not_take_is_told(
    scene: KmipScene, tmp_path: Path, version: TLS, fault: str
) -> None:
    authority = Authority(tmp_path, "foreign-ca") if fault == "foreign" else scene.authority
    pair = authority.sign("client2", client=True, valid=timedelta(days=-1 if fault == "expired" else 1))
    source = scene.source(
        scene.server(version=version).address, certificate=str(pair.certificate), private_key=str(pair.key)
    )
    for _ in range(3):  # with TLS 1.3 the refusal races with the request
        error = refusal(source)
        assert error.exit_code is Exit.KEY_SERVER_REFUSED
        assert "does not accept the client certificate" in error.message


def test_a_client_whose_certificate_is_for_servers_only_is_refused(scene: KmipScene) -> None:
    pair = scene.authority.sign("no-client", "127.0.0.1")
    changes = {"certificate": str(pair.certificate), "private_key": str(pair.key)}
    error = refusal(scene.source(scene.server().address, **changes))
    assert error.exit_code is Exit.KEY_SERVER_REFUSED


def test_another_client_is_not_shown_the_key(scene: KmipScene) -> None:
    address = scene.server().address
    mine = scene.source(address)
    entry = entry_of(mine.wrap(SECRET, CONTEXT))
    pair = scene.authority.sign("somebody-else", client=True)
    other = scene.source(address, certificate=str(pair.certificate), private_key=str(pair.key))
    with pytest.raises(TdefsError) as caught:
        other.unwrap(entry, CONTEXT)
    assert caught.value.exit_code in (Exit.KEY_SERVER_REFUSED, Exit.WRAPPING_KEY_UNUSABLE)
    mine.forget(entry)


def test_a_private_key_with_a_password_is_used_and_none_is_asked_for(scene: KmipScene, tmp_path: Path) -> None:
    pair = scene.authority.sign("locked", client=True, password=b"open sesame")
    changes = {"certificate": str(pair.certificate), "private_key": str(pair.key)}
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text("open sesame\n")
    server = scene.server().address
    wraps_and_unwraps(scene.source(server, private_key_password_file=str(password), **changes))
    error = refusal(scene.source(server, **changes))
    assert error.exit_code is Exit.KEY_SOURCE_UNAVAILABLE
    password.chmod(0o640)
    error = refusal(scene.source(server, private_key_password_file=str(password), **changes))
    assert error.detail == "group or others have access to it"
    assert error.hint == f"chmod 600 {password}"


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (0o640, Exit.KEY_SOURCE_UNAVAILABLE),
        (0o604, Exit.KEY_SOURCE_UNAVAILABLE),
        (0o622, Exit.CONFIG_EXPOSED),
    ],
)
def test_a_private_key_that_others_can_read_or_write_is_refused(scene: KmipScene, mode: int, code: Exit) -> None:
    pair = scene.authority.sign(f"open-{mode:o}", client=True)
    pair.key.chmod(mode)
    changes = {"certificate": str(pair.certificate), "private_key": str(pair.key)}
    error = refusal(scene.source(scene.server().address, **changes))
    assert error.exit_code is code
    if code is Exit.KEY_SOURCE_UNAVAILABLE:
        assert error.detail == "group or others have access to it"


@pytest.mark.parametrize("field", ["ca", "certificate", "private_key"])
@pytest.mark.parametrize("content", [None, "no PEM"])
def test_files_that_cannot_be_used_are_named(
    scene: KmipScene, tmp_path: Path, field: str, content: str | None
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.touch(0o600)
        path.write_text(content)
    error = refusal(scene.source(NOBODY, **{field: str(path)}))
    assert error.exit_code is Exit.KEY_SOURCE_UNAVAILABLE
    assert content is None or content not in error.render()
    assert str(path) in error.message


def test_the_first_server_that_answers_is_asked_and_the_others_are_told(
    scene: KmipScene, capfd: pytest.CaptureFixture[str]
) -> None:
    up = scene.server().address
    source = scene.source(NOBODY, up)
    wraps_and_unwraps(source)
    # once, though several requests were made
    assert capfd.readouterr().err.splitlines() == [
        f"tdefs: warning: the key server {NOBODY} is not reachable: connection refused; {up} answers"
    ]


def test_a_server_that_hangs_is_left_after_its_time_and_not_asked_first_again(scene: KmipScene) -> None:
    hanging = scene.plain_server()
    source = scene.source(hanging.address, scene.server().address, timeout_seconds="1", patience_seconds="30")
    started = time.monotonic()
    wraps_and_unwraps(source)
    assert 1 <= time.monotonic() - started < 30
    assert hanging.connections == 1


def test_a_server_that_is_not_trusted_is_passed_over(scene: KmipScene, capfd: pytest.CaptureFixture[str]) -> None:
    expired = scene.authority.sign("expired", "127.0.0.1", valid=timedelta(days=-1))
    wraps_and_unwraps(scene.source(scene.server(expired).address, scene.server().address))
    assert "is not trusted: certificate has expired" in capfd.readouterr().err


def test_with_all_servers_down_it_ends_in_time_and_names_each(
    scene: KmipScene, capfd: pytest.CaptureFixture[str]
) -> None:
    hanging = scene.plain_server().address
    started = time.monotonic()
    error = refusal(scene.source(NOBODY, hanging, timeout_seconds="1", patience_seconds="3"))
    assert time.monotonic() - started < 15
    assert error.exit_code is Exit.KEY_SERVER_UNREACHABLE
    assert f"{NOBODY} is not reachable: connection refused" in error.detail
    assert f"{hanging} is not reachable: no answer within 1 s" in error.detail
    said = capfd.readouterr().err
    assert f"tdefs: waiting for the key servers {NOBODY}, {hanging}" in said
    assert "trying again for up to" in said


def test_a_server_that_comes_up_in_time_is_found(scene: KmipScene, capfd: pytest.CaptureFixture[str]) -> None:
    server = scene.server()
    server.stop()
    source = scene.source(server.address, patience_seconds="10")

    def listen_again() -> None:
        time.sleep(0.3)
        server.start()

    waiting = threading.Thread(target=listen_again)
    waiting.start()
    wraps_and_unwraps(source)
    waiting.join()
    assert "trying again" in capfd.readouterr().err


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes.fromhex("42007b01 7fffffff"),
        bytes.fromhex("42007b01 00000000"),
        bytes.fromhex("42007b01 00000008 42007a01 00000000"),
        bytes.fromhex("42007b01 00000010") + b"A" * 16,
    ],
)
def test_a_reply_that_is_no_kmip_is_told_as_such(
    scene: KmipScene, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    monkeypatch.setattr("kmip.services.server.session.KmipSession._handle_message_loop", answer(reply))
    error = refusal(scene.source(scene.server().address))
    assert error.exit_code is Exit.KEY_SERVER_UNTRUSTED
    assert "could not be understood" in error.message


def test_a_server_that_closes_in_the_middle_of_a_reply_is_asked_again(
    scene: KmipScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kmip.services.server.session.KmipSession._handle_message_loop",
        answer(bytes.fromhex("42007b01 00000100 42007a01")),
    )
    error = refusal(scene.source(scene.server().address))
    assert error.exit_code is Exit.KEY_SERVER_UNREACHABLE
    assert error.detail == "it closed the connection"


def answer(reply: bytes) -> Callable[[Any], None]:
    """What a session of the server does that answers each request with ``reply``, and closes."""

    def handle(session: Any) -> None:
        session._receive_request()
        session._send_response(reply)
        raise ConnectionClosed

    return handle


def test_no_tls_session_key_is_written_where_the_environment_says(
    scene: KmipScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    wraps_and_unwraps(scene.source(scene.server().address))
    assert not (tmp_path / "keys").exists()
