"""``tdefs doctor``: finding weaknesses of a mount before a crash or an auditor does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_json, print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume, mount_at
from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.cli.common.unlocking import add_config
from tdefs.cli.status import living_volume
from tdefs.config import Config
from tdefs.control import ask_status
from tdefs.doctor.backing import BackingDirectory
from tdefs.doctor.beside import examine_surroundings
from tdefs.doctor.certificates import examine_certificates
from tdefs.doctor.cluster import examine_cluster, find_clusters
from tdefs.doctor.findings import Finding, Level, risk
from tdefs.doctor.host import examine_host
from tdefs.doctor.keepers import examine_keepers
from tdefs.doctor.policy import examine_next_mount, next_policy
from tdefs.doctor.registration import examine_registration
from tdefs.doctor.tampering import examine_tampering
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import Statements
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.sources.base import make_key_source
from tdefs.mounts.known import mounts_of
from tdefs.private import UntrustedError
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.registry import statements_of

_THIS_MOUNT = "this mount, as far as this host shows; docs/THREATS.md has what cannot be seen from it"
_UNSEEN = "The settings of single roles and databases cannot be seen here: psql's \\drds lists them."


def register(subparsers: Subcommands) -> None:
    """Add the command ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="look for what weakens a mount: settings, files in the clear, the host",
        description="Examines a mount and the PostgreSQL cluster on it, changes nothing, and reports what "
        "weakens them: settings that lose commits, WAL or tablespaces in the clear, copies of the "
        "cluster in the clear near the mount point and the backing directory, links and plain "
        "files in the backing directory, a policy that leaves files in the clear or stops the "
        "next mount, keys that may get into swap, certificates of key sources that expire. Run it "
        "as the user who mounted. Without a volume it examines the key sources alone, for example "
        "when a certificate has expired and nothing mounts.",
    )
    add_volume(parser, help="default: none, the key sources alone are examined")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config(parser)
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice
    json: bool


def _run(invocation: Invocation, options: _Options) -> int:
    place = options.volume.named
    findings, clusters = ([], None) if place is None else _mount(place, invocation)
    findings += _key_sources(invocation.config)
    findings.sort(key=lambda finding: list(Level).index(finding.level))
    if options.json:
        print_json([{"level": one.level.value, "what": one.what, "hint": one.hint} for one in findings])
    else:
        _print(findings, clusters)
    return Exit.DOCTOR_FOUND_RISKS if any(one.level is Level.RISK for one in findings) else Exit.OK


def _mount(place: Path, invocation: Invocation) -> tuple[list[Finding], list[Path] | None]:
    """Return the findings about a mount, and its clusters; ``None`` if these could not be examined."""
    mount = mount_at(place)
    try:
        volume = living_volume(mount)
    except UntrustedError as error:
        # what others may have put there is not read, so this is all that can be said
        return [risk(f"{error.message}; nothing else of this mount was examined", error.hint)], None
    daemon = ask_status(volume)
    findings = [*examine_host(volume, mount.mountpoint, daemon), *examine_registration(volume, daemon)]
    findings += examine_tampering(daemon)
    clusters = find_clusters(mount.mountpoint)
    if daemon is not None:
        findings += examine_keepers(daemon.pid, clusters)
    users = {0, os.geteuid(), *([] if mount.user is None else [mount.user])}
    mountpoints = [each.mountpoint for each in mounts_of(users)]
    for pgdata in clusters:
        findings += examine_cluster(pgdata, mountpoints)
    settings = invocation.config.for_backing(mount.backing)
    may = _statements(volume, Path(daemon.keystore) if daemon else settings.keystore or volume.keystore)
    policy, of_policy = next_policy(volume, may, settings)
    findings += of_policy
    findings += examine_next_mount(volume, may, settings, policy, daemon)
    findings += BackingDirectory(volume, may, mount.mountpoint, mountpoints).examine(policy)
    findings += examine_surroundings(mount.mountpoint, mount.backing, clusters)
    return findings, clusters


def _statements(volume: Volume, keystore: Path) -> Statements:
    """Return what the keystore says that the volume may do, unverified, if this user may read it."""
    try:
        return statements_of(load_keystore(keystore).document, volume)
    except (TdefsError, OSError):
        return Statements(plain_files=True)


def _key_sources(config: Config) -> Iterator[Finding]:
    """Yield the findings about all key sources of the configuration, since this host relies on them."""
    for name, settings in config.key_sources.items():
        try:
            source = make_key_source(settings, TerminalDialogue())
        except TdefsError as error:
            yield risk(f'key source "{name}" cannot be used: {error.message}', error.hint or "see docs/KMS.md")
        else:
            yield from examine_certificates(name, source, datetime.now(UTC))


def _print(findings: list[Finding], clusters: list[Path] | None) -> None:
    """Print for people; ``clusters`` is None if no mount was examined."""
    for finding in findings:
        print_line(f"{finding.level.value.upper()}: {printable(finding.what)}")
        print_line(f"HINT:  {printable(finding.hint)}")
    if all(finding.level is Level.NOTE for finding in findings):
        print_line(f"nothing weakens {'the key sources' if clusters is None else _THIS_MOUNT}")
    for pgdata in clusters or ():
        print_line(
            f"the settings were read from the files of {printable(str(pgdata))}, as the next start reads them. "
            + _UNSEEN
        )
    if clusters == []:
        print_line("there is no cluster on this mount: no settings were examined")
