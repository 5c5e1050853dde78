"""AWS KMS in this process: moto's server, which can be told to answer otherwise, by HTTP or HTTPS."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from types_boto3_kms import KMSClient
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

REGION = "eu-central-1"
SESSION_TOKEN = "session-token-of-the-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "secret-access-key-of-the-test",
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
}
#: Nothing of this host's own takes part.
ENVIRONMENT = {
    **CREDENTIALS,
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}

Answer = tuple[int, dict[str, Any]]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Keep requests out of the test's output."""


class KmsStandIn:
    """A server on 127.0.0.1; to be stopped."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        """``tls`` is a certificate and its key."""
        #: Answers that come instead of moto's, the next first.
        self.answers: list[Answer] = []
        self.delay_seconds = 0.0
        #: What was asked: the operation's name and the request.
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, ssl_context=context, request_handler=_Quiet
        )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """End it; connections are refused afterwards."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def admin(self, region: str = REGION) -> KMSClient:
        """Return a client of one who may do all, to make keys."""
        client: KMSClient = self._client("kms", region)
        return client

    def check_identities(self, check: bool) -> None:
        """Have moto refuse who is none of its IAM users, or lacks a right; else anybody may do all."""
        allowed = b"0" if check else b"inf"
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", allowed, plain)  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            assert answer.status == 200

    def user(self, *actions: str) -> dict[str, str]:
        """Return the variables with credentials of a new IAM user, who may do these actions."""
        iam = self._client("iam", REGION)
        iam.create_user(UserName="host")
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="host", PolicyName="policy", PolicyDocument=policy)
        made = iam.create_access_key(UserName="host")["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}

    def refuse(self, code: str, message: str = "no", status: int = 400) -> None:
        """Answer the next request with an error, in the form of KMS."""
        self.answers.append((status, {"__type": code, "message": message}))

    def _client(self, service: Any, region: str) -> Any:
        session = boto3.Session(aws_access_key_id="admin", aws_secret_access_key="admin")
        return session.client(service, region_name=region, endpoint_url=self.url)

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if operation in ("Encrypt", "Decrypt"):
            content = request.get_data()
            environ["wsgi.input"] = io.BytesIO(content)
            self.requests.append((operation, json.loads(content)))
            # taken before the delay: by its end the test may be another one
            answers = [self.answers.pop(0)] if self.answers else []
            time.sleep(self.delay_seconds)
            for status, body in answers:
                response = Response(json.dumps(body), status, content_type="application/x-amz-json-1.1")
                return response(environ, start_response)
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer


def make_certificate(directory: Path, name: str, address: str) -> tuple[Path, Path]:
    """Write a certificate for an IP address that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / f"{name}.pem", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files
