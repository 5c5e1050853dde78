"""The next mount of a volume: its policy, the data keys that the policy names, its keystore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tdefs.config import VolumeConfig
from tdefs.daemon.status import DaemonStatus
from tdefs.doctor.findings import Finding, advice, risk
from tdefs.errors import TdefsError
from tdefs.keys.keystore.entries import REVOKED, Statements
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.description import Volume

_NO_START = "the next mount fails, and with it the start of the server"


def next_policy(volume: Volume, may: Statements, settings: VolumeConfig) -> tuple[Policy | None, list[Finding]]:
    """Return the policy that the next mount will use, ``None`` if it cannot, and what is wrong with its file.

    :param may: what the volume may do, as the keystore says, unverified.
    :param settings: what the configuration says about the volume.
    """
    file = policy_file(may, settings)
    if file is None:
        return Policy.everything(), []
    findings = list(_rights(file, "the policy"))
    try:
        policy = load_policy(file)
    except TdefsError as error:
        hint = error.hint or f"mend it: tdefs policy check {file}"
        return None, [risk(f"{_NO_START}: {error.message}", hint), *findings]
    if policy.digest() not in (may.policy_digest, Policy.everything().digest()):
        findings.append(
            risk(
                f"{_NO_START}: the policy {file} is not the one that was accepted",
                f"if the change is wanted: tdefs policy accept --volume {volume.backing} --policy {file}",
            )
        )
    findings += [
        risk(warning, "encrypt these files too, unless you have decided otherwise: docs/POLICY.md")
        for warning in policy.warnings
    ]
    return policy, findings


def policy_file(may: Statements, settings: VolumeConfig) -> Path | None:
    """Return the file of the policy that the next mount will use by itself."""
    return settings.policy or (Path(may.policy) if may.policy else None)


def examine_next_mount(
    volume: Volume,
    may: Statements,
    settings: VolumeConfig,
    policy: Policy | None,
    daemon: DaemonStatus | None,
) -> Iterator[Finding]:
    """Yield what will stop the next mount, or make it different from this one.

    :param policy: the result of :func:`next_policy`.
    :param daemon: the status of the daemon, if it answers.
    """
    keystore = settings.keystore or volume.keystore
    if _is_missing(keystore):
        yield risk(
            f"{_NO_START}: there is no keystore {keystore}",
            "restore it from a copy before the volume is unmounted: without it nobody can read the volume",
        )
    yield from _secret_file(volume, settings)
    if policy is None or daemon is None:
        return
    file = policy_file(may, settings)
    yield from _keys(policy, daemon, file)
    if daemon.policy_digest != policy.digest():
        if daemon.policy == str(file):
            what = f"the policy {file} was changed after the mount had begun, which goes on with the old one"
        else:
            used = f"the policy {daemon.policy}" if daemon.policy else "no policy"
            what = f"the mount uses {used}, and the next one will use {file or 'none'}"
        yield advice(
            what, "have the mount use it with 'tdefs policy reload', or name the right one in the configuration"
        )


def _keys(policy: Policy, daemon: DaemonStatus, file: Path | None) -> Iterator[Finding]:
    by_round = sorted(daemon.data_keys, key=lambda key: key.round)
    newest = {key.name: key.state for key in by_round}
    for name in sorted(policy.key_names()):
        if name not in newest:
            yield risk(
                f"{_NO_START}: the policy {file} uses the data key {name}, which the keystore does not hold",
                "use one of the keystore's data keys in the policy: tdefs key list shows them",
            )
        elif newest[name] == REVOKED:
            yield risk(
                f"{_NO_START}: the policy {file} uses the data key {name}, which is revoked",
                f"tdefs key rotate {name}, or use another data key in the policy",
            )


def _secret_file(volume: Volume, settings: VolumeConfig) -> Iterator[Finding]:
    file = settings.passphrase_file
    if file is None:
        return
    if _is_missing(file):
        yield risk(f"{_NO_START}: there is no passphrase file {file}", "put it there, or change the configuration")
    elif volume.backing in file.resolve().parents:
        yield risk(
            f"the passphrase file {file} lies in the backing directory: a copy of it has both",
            "keep it elsewhere",
        )


def _is_missing(file: Path) -> bool:
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # this user may not look
    return False


def _rights(file: Path, role: str) -> Iterator[Finding]:
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # reading it reports this
    if mode & 0o022:
        yield risk(
            f"{role} {file} can be changed by others than its owner: they can have new files written in the clear",
            f"chmod go-w {file}",
        )
