"""Targets: the policy and the configuration."""

from __future__ import annotations

import re
from pathlib import Path

from tdefs.config import Config, parse_config
from tdefs.errors import Exit, TdefsError
from tdefs.policy.model import Policy
from tdefs.policy.parse import parse_policy
from tdefs.policy.paths import Kind, classify
from tests.fuzz.contract import Target, expect, refusal

_CONF = Path(__file__).resolve().parents[3] / "conf"
_SOURCE = "file.yaml"
_LINE = re.compile(rf"{re.escape(_SOURCE)}:[0-9]+: .+|\.\.\. and [0-9]+ more errors")
_PATHS = ("base/5/16385", "base/5/16400.1", "base/5/1259", "pg_wal/000000010000000000000001", "PG_VERSION", "x")
#: A value that stands for a secret in the wrong place.
CANARY = b"hunter2hunter2"
_CANARY_AS_A_VALUE = re.compile(
    rb"\n +(mountpoint|passphrase_file|keystore|policy|log_file|host_key_directory|password): " + CANARY + rb"\n"
)


def _policy(data: bytes) -> str:
    try:
        policy = parse_policy(data, _SOURCE)
    except TdefsError as error:
        return _refusal(error, Exit.POLICY_INVALID)
    _check_policy(policy)
    return "accepted"


def _check_policy(policy: Policy) -> None:
    for path in _PATHS:
        decision = policy.decide(classify(path), path)
        expect(decision.encrypted or decision.key_name is None, "a plain file has a data key")
    for warning in policy.warnings:
        warning.encode()
    stray = "base/5/.16385.Ab1Xyz"
    if not policy.decide(classify(stray), stray).encrypted:
        expect(not policy.encrypts_relfilenodes_of(5), "a relation on its way may be plain")


def _refusal(error: TdefsError, code: Exit) -> str:
    lines = error.message.splitlines()
    expect(bool(lines) and all(_LINE.fullmatch(line) for line in lines), "an error has no line number")
    return refusal(error, code)


def _config(data: bytes) -> str:
    try:
        config = parse_config(data, Path(_SOURCE))
    except TdefsError as error:
        if CANARY in error.render().encode():
            expect(_CANARY_AS_A_VALUE.search(data) is None or data.count(CANARY) > 1, "a value is repeated")
        return _refusal(error, Exit.CONFIG_INVALID)
    _check_config(config)
    return "accepted"


def _check_config(config: Config) -> None:
    config.for_backing(Path("/nowhere"))
    for volume in config.volumes.values():
        for path in (
            *(volume.mountpoint, volume.passphrase_file, volume.keystore, volume.policy, volume.log_file),
            volume.host_key_directory,
        ):
            if path is not None:
                path.exists()  # a system call takes it


def _policy_seeds() -> list[bytes]:
    return [
        (_CONF / "policy.yaml").read_bytes(),
        b"version: 1\ndefault: plain\n",
        b"version: 1\nrelations:\n- database: 5\n  relfilenodes: [16385, 16390-16400, 16395-16500]\n"
        b"  key: dk_1\n"
        b"databases:\n- {database: 5, key: plain}\nkinds:\n  wal: plain\n  relation: dk_2\n"
        b"unlisted_relations: dk_2\n",
        b"a: &a [*a]\n",
        b'"\\U0010ffff": "\\ud800"\n',
    ]


def _config_seeds() -> list[bytes]:
    return [
        (_CONF / "tdefs.yaml").read_bytes(),
        b"version: 1\nlog_level: debug\nvolumes:\n  /srv/a:\n    mountpoint: /mnt\n    key_command: cat key\n"
        b"    keystore: /k\n    options: [allow_other, ro]\n    log_file: /log\n    policy: /p\n",
        b"version: 1\nvolumes:\n  /srv/a:\n    password: " + CANARY + b"\n    mountpoint: [\n",
        b"version: 1\nvolumes:\n  /srv/a:\n    mountpoint: " + CANARY + b"\n    x: 1\n",
        b'version: 1\nvolumes: {"/a\\0\\ud800": {}}\n',
    ]


_YAML = (
    b"&a",
    b"*a",
    b"!!str",
    b"---\n",
    b"...\n",
    b"%YAML 1.2\n",
    b"<<: ",
    b"? ",
    b"|\n",
    b">-\n",
    b"- ",
    b": ",
    b"{",
    b"[",
)
_ESCAPES = (b'"\\0"', b'"\\ud800"', b'"\\UFFFFFFFF"', b'"\\x1b"', b"\xef\xbb\xbf", b"\xe2\x80\xa8")
_POLICY_WORDS = (
    *tuple(
        f"{word}: ".encode()
        for word in (
            *("version", "default", "unlisted_relations", "relations", "databases", "kinds", "database", "key"),
            *("relfilenodes", *Kind),
        )
    ),
    b"plain",
    b"dk_1",
    b"4294967295",
    b"1-4294967296",
    b"9" * 50,
)
_CONFIG_WORDS = (
    *tuple(
        f"{word}: ".encode()
        for word in (
            *(
                "version",
                "log_level",
                "volumes",
                "mountpoint",
                "passphrase_file",
                "key_command",
                "keystore",
                "policy",
            ),
            *("options", "log_file", "host_key_directory", "passphrase_credential", "password", "secret"),
        )
    ),
    b"/srv",
    b"debug",
    b"allow_other",
    CANARY,
)

TARGETS = (
    Target("policy", _policy, _policy_seeds, 2048, _YAML + _ESCAPES + _POLICY_WORDS),
    Target("config", _config, _config_seeds, 2048, _YAML + _ESCAPES + _CONFIG_WORDS),
)
