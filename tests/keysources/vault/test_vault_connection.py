"""Whom the Vault key sources trust, as whom they ask, and what they say when that fails; on a real server."""

from __future__ import annotations

import http.server
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hvac
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.sources.base import make_key_source
from tdefs.keys.wrapping import WrapContext
from tests.keysources.vault.certificates import Authority
from tests.keysources.vault.described import SECRET, Described
from tests.keysources.vault.server import OpenBao
from tests.support.processes import wait_until

WRONG_ID = "00000000-0000-0000-0000-000000000000"


@contextmanager
def hanging(server: OpenBao) -> Iterator[None]:
    server.hang()
    try:
        yield
    finally:
        server.go_on()


def live_tokens(server: OpenBao) -> int:
    return len(server.admin.auth.token.list_accessors()["data"]["keys"])


# --- TLS


def test_a_server_of_another_authority_is_not_trusted(either: Described) -> None:
    entry = either.wrap()
    either.fields["ca"] = str(Authority(either.directory, "others").certificate)
    error = either.refusal(entry, Exit.KEY_SERVER_UNTRUSTED)
    assert "unable to get local issuer" in error.detail


def test_a_server_of_another_name_is_not_trusted(either: Described) -> None:
    entry = either.wrap()
    either.fields["address"] = either.server.other_name
    assert "127.0.0.1" in either.refusal(entry, Exit.KEY_SERVER_UNTRUSTED).detail


def test_a_server_that_wants_a_certificate_gets_it(either: Described) -> None:
    entry = either.wrap()
    either.fields["address"] = either.server.mutual
    with pytest.raises(TdefsError) as caught:
        either.unwrap(entry)
    # Whether its alert arrives before its end of the connection is a matter of luck.
    assert caught.value.exit_code in (Exit.KEY_SERVER_UNTRUSTED, Exit.KEY_SERVER_UNREACHABLE)
    assert "client certificate" in caught.value.detail
    client = either.server.client
    either.fields |= {"certificate": str(client.certificate), "private_key": str(client.private_key)}
    assert either.unwrap(entry) == SECRET
    roles = {certificate.path: certificate.role for certificate in either.source().certificates()}
    assert set(roles) == {either.server.authority.certificate, client.certificate}


def test_no_tls_at_the_port_is_not_trusted(transit: Described) -> None:
    entry = transit.wrap()
    transit.fields["address"] = transit.server.plain.replace("http:", "https:")
    assert transit.refusal(entry, Exit.KEY_SERVER_UNTRUSTED)


def test_plain_http_is_for_this_host_alone(transit: Described) -> None:
    entry = transit.wrap()
    transit.fields |= {"address": transit.server.plain, "ca": None}
    assert transit.unwrap(entry) == SECRET
    for address in ("http://vault.example.com:8200", "http://10.0.0.1", "http://127.0.0.1.example.com"):
        transit.fields["address"] = address
        assert "must begin with https" in transit.refusal(entry, Exit.CONFIG_INVALID).message


def test_files_that_are_not_fit_are_refused(transit: Described) -> None:
    entry = transit.wrap()
    private_key = load_pem_private_key(transit.server.client.private_key.read_bytes(), None)
    password = BestAvailableEncryption(b"password")
    encrypted = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password).decode()
    other = Authority(transit.directory, "others").sign("other")
    client = transit.server.client
    empty = transit.credential("empty", "")
    readable = Path(transit.credential("readable", transit.token))
    readable.chmod(0o640)
    fifo = transit.directory / "fifo"
    os.mkfifo(fifo, 0o600)
    cases: list[tuple[dict[str, object], str]] = [
        ({"ca": "/nonexistent/ca.pem"}, "No such file"),
        ({"ca": empty}, "no certificate"),
        ({"private_key": empty}, "no private key"),
        ({"private_key": transit.credential("encrypted", encrypted)}, "encrypted with a password"),
        ({"private_key": str(other.private_key)}, "not that of the certificate"),
        ({"token_file": "/nonexistent/token"}, "No such file"),
        ({"token_file": empty}, "it is empty"),
        ({"token_file": str(transit.directory)}, "Is a directory"),
        ({"token_file": str(fifo)}, "not a regular file"),
        ({"token_file": transit.credential("two", "a b")}, "more than one word"),
        ({"token_file": transit.credential("broken", "a\r\nX-Vault-Token: b")}, "more than one word"),
        ({"token_file": str(readable)}, "group or others"),
    ]
    base = dict(transit.fields)
    both = {"certificate": str(client.certificate), "private_key": str(client.private_key)}
    for fields, detail in cases:
        transit.fields = base | (both if "private_key" in fields else {}) | fields
        error = transit.refusal(entry, Exit.KEY_SOURCE_UNAVAILABLE)
        assert detail in error.detail, error.render()
    assert f"chmod 600 {readable}" in error.hint


# --- who asks


def test_the_token_file_is_read_each_time(either: Described) -> None:
    source = either.source()
    either.credential("token", "s.wrong")
    with pytest.raises(TdefsError) as caught:
        source.wrap(SECRET, WrapContext(b"v" * 16, "protector key", "mk_1", 0, "pr_1"))
    assert either.checked(caught.value, Exit.KEY_SERVER_REFUSED)
    either.credential("token", either.token)
    source.wrap(SECRET, WrapContext(b"v" * 16, "protector key", "mk_1", 0, "pr_1"))


def test_an_expired_token_is_refused(transit: Described) -> None:
    entry = transit.wrap()
    token = transit.server.token(transit.policy, ttl="1s")

    def has_expired() -> bool:
        try:
            transit.server.admin.auth.token.lookup(token)
        except hvac.exceptions.VaultError:
            return True
        return False

    assert wait_until(has_expired, 20)
    transit.credential("token", token)
    assert "has expired" in transit.refusal(entry, Exit.KEY_SERVER_REFUSED).detail


def test_a_token_without_the_right_is_refused_with_what_it_lacks(either: Described) -> None:
    entry = either.wrap()
    either.credential("token", either.server.token("default"))
    assert either.name in either.refusal(entry, Exit.KEY_SERVER_REFUSED).detail


def test_an_approle_logs_in_and_leaves_no_token_behind(either: Described) -> None:
    either.with_role(*either.server.role(either.policy))
    before = live_tokens(either.server)
    entry = either.wrap()
    assert either.unwrap(entry) == SECRET
    assert live_tokens(either.server) == before


def test_a_role_id_may_be_in_a_file(transit: Described) -> None:
    role_id, secret_id = transit.server.role(transit.policy)
    transit.with_role(role_id, secret_id)
    path = Path(transit.credential("role-id", role_id))
    path.chmod(0o644)
    transit.fields |= {"role_id": None, "role_id_file": str(path)}
    assert transit.unwrap(transit.wrap()) == SECRET


def test_a_login_that_is_wrong_is_refused(either: Described) -> None:
    entry = either.wrap()
    role_id, secret_id = either.server.role(either.policy)
    other = either.server.role("default")
    for one in ((WRONG_ID, secret_id), (role_id, WRONG_ID), (other[0], secret_id)):
        either.with_role(*one)
        error = either.refusal(entry, Exit.KEY_SERVER_REFUSED)
        assert "refuses the login" in error.message
        assert secret_id not in error.render()
    either.with_role(*other)
    assert "denies permission" in either.refusal(entry, Exit.KEY_SERVER_REFUSED).message
    either.with_role(role_id, secret_id)
    either.fields["auth_path"] = "elsewhere"
    assert "auth/elsewhere" in either.refusal(entry, Exit.KEY_SERVER_REFUSED).detail


def test_a_secret_id_that_has_expired_or_is_used_up_is_refused(transit: Described) -> None:
    entry = transit.wrap()
    transit.with_role(*transit.server.role(transit.policy, secret_id_num_uses=1))
    assert transit.unwrap(entry) == SECRET
    assert "used up" in transit.refusal(entry, Exit.KEY_SERVER_REFUSED).detail


# --- namespaces


def test_a_namespace_is_a_place_of_its_own(bao: OpenBao, either: Described) -> None:
    entry = either.wrap()
    either.fields["namespace"] = "team"
    with pytest.raises(TdefsError) as caught:
        either.wrap()
    # the token is not the namespace's
    assert either.checked(caught.value, Exit.KEY_SERVER_REFUSED)
    policy = bao.policy(either.kind.removeprefix("vault-"), either.name, bao.team)
    either.credential("token", bao.token(policy, client=bao.team))
    if either.kind == "vault-transit":
        bao.team.secrets.transit.create_key(either.name)
    inside = either.wrap()
    assert either.unwrap(inside) == SECRET
    assert inside.params["namespace"] == "team"
    either.fields["namespace"] = None
    either.credential("token", either.token)
    assert either.unwrap(entry) == SECRET


def test_a_namespace_or_mount_that_is_not_there_is_refused(either: Described) -> None:
    base = dict(either.fields)
    for fields in ({"namespace": "nowhere"}, {"mount": "nowhere"}):
        either.fields = base | fields
        # who is allowed anything is told what is missing, anybody else that it is forbidden
        for token in (either.token, either.server.admin.token):
            either.credential("token", token)
            with pytest.raises(TdefsError) as caught:
                either.wrap()
            assert either.checked(caught.value, Exit.KEY_SERVER_REFUSED)
    assert "no such mount or namespace" in caught.value.detail


# --- servers that do not serve


def test_a_server_that_is_down_is_asked_again_until_patience_ends(
    transit: Described, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = transit.wrap()
    transit.fields |= {"address": "https://127.0.0.1:9", "patience_seconds": 1}
    begin = time.monotonic()
    assert transit.refusal(entry, Exit.KEY_SERVER_UNREACHABLE).detail == "connection refused"
    assert time.monotonic() - begin < 10
    said = capfd.readouterr().err
    assert "the key server https://127.0.0.1:9 does not answer: connection refused; trying again" in said


def test_a_host_that_is_not_known_is_unreachable(transit: Described) -> None:
    entry = transit.wrap()
    transit.fields["address"] = "https://vault.invalid:8200"
    assert transit.refusal(entry, Exit.KEY_SERVER_UNREACHABLE).detail == "the name of its host is unknown"


def test_a_server_that_hangs_is_given_up_after_the_time_out(transit: Described) -> None:
    entry = transit.wrap()
    transit.with_role(*transit.server.role(transit.policy))
    transit.fields["timeout_seconds"] = 1
    begin = time.monotonic()
    with hanging(transit.server):
        error = transit.refusal(entry, Exit.KEY_SERVER_UNREACHABLE)
    assert error.detail == "no answer within 1 s"
    assert time.monotonic() - begin < 8


def test_a_server_that_hangs_after_the_login_is_waited_for_once(
    transit: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = transit.wrap()
    transit.with_role(*transit.server.role(transit.policy))
    transit.fields["timeout_seconds"] = 1
    take = hvac.adapters.JSONAdapter.get_login_token

    def hang(*arguments: object) -> str:
        transit.server.hang()
        return str(take(*arguments))

    given_back: list[object] = []
    monkeypatch.setattr(hvac.adapters.JSONAdapter, "get_login_token", hang)
    monkeypatch.setattr(hvac.api.auth_methods.Token, "revoke_self", given_back.append)
    try:
        assert transit.refusal(entry, Exit.KEY_SERVER_UNREACHABLE)
    finally:
        transit.server.go_on()
    assert given_back == []


def test_a_sealed_server_is_said_to_be_sealed_and_serves_once_it_is_unsealed(
    transit: Described, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = transit.wrap()
    transit.server.seal()
    unsealing = threading.Timer(0.7, transit.server.unseal)
    try:
        assert transit.refusal(entry, Exit.KEY_SERVER_UNREACHABLE).detail == "it is sealed"
        unsealing.start()
        transit.fields["patience_seconds"] = 20
        assert transit.unwrap(entry) == SECRET
    finally:
        unsealing.cancel()
        if unsealing.ident is not None:
            unsealing.join()
        transit.server.unseal()
    assert "does not answer: it is sealed; trying again" in capfd.readouterr().err


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server on this host that gives everybody the same answer; the tokens that it was shown."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers.get("X-Vault-Token", ""))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test's output is not the place."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_no_redirect_is_followed(either: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = either.wrap()
    monkeypatch.setenv("VAULT_TOKEN", "s.misleading")
    with (
        answering(200, {"Content-Type": "application/json"}, b'{"data": {}}') as (elsewhere, asked_elsewhere),
        answering(307, {"Location": f"{elsewhere}/v1/x"}, b"") as (address, asked),
    ):
        either.fields |= {"address": address, "ca": None}
        assert "redirect" in either.refusal(entry, Exit.KEY_SERVER_REFUSED).detail
        either.with_role(WRONG_ID, WRONG_ID)
        assert "redirect" in either.refusal(entry, Exit.KEY_SERVER_REFUSED).detail
    # a login shows no token, also none of the environment
    assert asked == [either.token, ""]
    assert asked_elsewhere == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>", Exit.KEY_SERVER_REFUSED),
        (200, b"[]", Exit.KEY_SERVER_REFUSED),
        (200, b'{"data": {"plaintext": "AAAA", "data": {}}}', None),
        (404, b"<html>", Exit.KEY_SERVER_REFUSED),
        (404, b'{"errors": []}', None),
        (429, b'{"errors": ["limit"]}', Exit.KEY_SERVER_UNREACHABLE),
        (500, b'{"errors": ["local node not active"]}', Exit.KEY_SERVER_UNREACHABLE),
        (502, b"<html>", Exit.KEY_SERVER_UNREACHABLE),
        (503, b'{"errors": []}', Exit.KEY_SERVER_UNREACHABLE),
        (418, b"", Exit.KEY_SERVER_REFUSED),
    ],
)
def test_whatever_answers_there_is_a_clear_error(
    either: Described, status: int, body: bytes, expected: Exit | None
) -> None:
    entry = either.wrap()
    with answering(status, {"Content-Type": "application/json"}, body) as (address, _):
        either.fields |= {"address": address, "ca": None}
        with pytest.raises(TdefsError) as caught:
            either.unwrap(entry)
    usual = (Exit.KEY_SERVER_REFUSED, Exit.WRAPPING_KEY_UNUSABLE)
    assert caught.value.exit_code in ((expected,) if expected else usual), caught.value.render()


# --- secrets


def test_the_library_logs_no_secret_and_no_error_carries_one(
    transit: Described, caplog: pytest.LogCaptureFixture
) -> None:
    role_id, secret_id = transit.server.role(transit.policy)
    tokens: list[str] = []
    transit.with_role(role_id, secret_id)
    login = hvac.adapters.JSONAdapter.get_login_token

    def remembered(self: hvac.adapters.JSONAdapter, response: dict[str, dict[str, str]]) -> str:
        tokens.append(response["auth"]["client_token"])
        return str(login(self, response))

    # AWS's library has this one logger silenced, where it was loaded before
    caplog.set_level(logging.DEBUG, "urllib3")
    with caplog.at_level(logging.DEBUG), pytest.MonkeyPatch.context() as patch:
        patch.setattr(hvac.adapters.JSONAdapter, "get_login_token", remembered)
        transit.unwrap(transit.wrap())
        transit.credential("secret-id", WRONG_ID)
        with suppress(TdefsError):
            transit.wrap()
    assert "/v1/transit/decrypt/" in caplog.text, "the library has logged nothing that could be searched"
    assert len(tokens) == 2
    for secret in (secret_id, role_id, WRONG_ID, *tokens):
        assert secret not in caplog.text


# --- the configuration


@pytest.mark.parametrize(
    ("fields", "line", "message"),
    [
        ({"address": "vault.example.com"}, "address", "must be like https://"),
        ({"address": "https://user:hunter2@vault:8200"}, "address", "must be like https://"),
        ({"address": "https://vault:82000"}, "address", "must be like https://"),
        ({"address": "https://vault:8200?hunter2"}, "address", "must be like https://"),
        ({"address": "ftp://127.0.0.1"}, "address", "must be like https://"),
        ({"ca": None}, "", "belongs to an address"),
        ({"address": "http://localhost:8200"}, "ca", "belongs to an address"),
        ({"certificate": "/etc/c.pem"}, "certificate", "need each other"),
        ({"auth": "ldap"}, "auth", "one of token, approle"),
        ({"auth": "approle", "token_file": None}, "", "one of role_id and role_id_file"),
        ({"token_file": None}, "", '"token_file" is missing'),
        ({"namespace": "a//b"}, "namespace", "separated by /"),
        ({"mount": "../sys"}, "mount", "separated by /"),
        ({"key_name": "a/b"}, "key_name", "letters, digits"),
        ({"key_name": ".."}, "key_name", "letters, digits"),
        ({"context": "ü"}, "context", "printable ASCII"),
        ({"timeout_seconds": 0}, "timeout_seconds", "a number from 1 to 300"),
        ({"secret_id_file": "/x"}, "secret_id_file", "unknown field"),
    ],
)
def test_fields_that_make_no_sense_are_refused_by_line_and_not_quoted(
    transit: Described, fields: dict[str, object], line: str, message: str
) -> None:
    transit.fields |= fields
    settings = load_config(transit.write()).key_source("bao")
    with pytest.raises(TdefsError) as caught:
        make_key_source(settings, TerminalDialogue())
    error = transit.checked(caught.value, Exit.CONFIG_INVALID)
    assert message in error.message
    assert error.message.startswith(f"{transit.config}:{settings.lines.get(line, settings.line)}:")
    assert "hunter2" not in error.render()
