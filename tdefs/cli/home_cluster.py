"""Finding the cluster that a volume's tablespace or WAL belongs to: named by the user, or by who links to it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tdefs.cli.unlock import add_keystore_arguments, unlock, use_configured_secret
from tdefs.config import Config, load_config
from tdefs.doctor.cluster import find_clusters
from tdefs.errors import Exit, TdefsError
from tdefs.format.errors import FormatError
from tdefs.fs.believed import Opened
from tdefs.fs.mounts import tdefs_mounts
from tdefs.fs.offline import OfflineReader
from tdefs.keys.secrets import is_secret_given
from tdefs.pg.control import CONTROL_FILE, BadControlFile, UnknownControlVersion, parse_control_file
from tdefs.pg.home import HomeCluster
from tdefs.pg.structure import WAL_FROM_ELSEWHERE
from tdefs.session_record import read_session
from tdefs.text import printable
from tdefs.volume import PRIVATE_DIRECTORY, Volume, read_volume


def named_cluster(args: argparse.Namespace, volume: Volume, pgdata: Path) -> HomeCluster:
    """Return the cluster that *volume* is a part of: *pgdata* is its data directory, or in a backing directory.

    :param args: those of the command line; where the configuration does not say how to unlock that volume, the
        same secret as for the other one does.
    :raises TdefsError: USAGE if there is no cluster, or more than one; what is wrong with the volume's keystore or
        secret.
    """
    place = pgdata.resolve()
    found = _clusters(place)
    found = [place] if place in found else found
    if len(found) != 1:
        raise TdefsError(
            Exit.USAGE,
            f'there is {"no cluster" if not found else "more than one cluster"} in "{printable(str(pgdata))}"',
            detail=", ".join(printable(str(one)) for one in found),
            hint="name a data directory, which has global/pg_control, or the backing directory of its volume",
        )

    def known_of(other: Volume) -> Opened:
        configured = _configured(args, other)
        # the keystore that the command line names is that of the volume that is verified
        return unlock(configured or argparse.Namespace(**{**vars(args), "keystore": None}), other)

    mountpoints = _mountpoints(volume, load_config(args.config))
    return _read(found[0], _wal_directory(found[0], found[0], mountpoints), known_of)


def linking_clusters(args: argparse.Namespace, volume: Volume) -> Iterator[HomeCluster]:
    """Yield the clusters that can be found whose pg_tblspc or pg_wal leads to where *volume* is, or was, mounted.

    Looked for on the mounts of other volumes, beside the mount point, and in the backing directories that the
    configuration names. One that cannot be read is a warning. Nobody is asked for a secret.
    """
    config = load_config(args.config)

    def known_of(other: Volume) -> Opened:
        configured = _configured(args, other)
        if configured is None:
            raise TdefsError(Exit.NO_SECRET, "the configuration does not say how to unlock its volume")
        return unlock(configured, other)

    mountpoints = _mountpoints(volume, config)
    unmounted = [path.resolve() for path in config.volumes]
    for stored, pgdata in _candidates(volume, unmounted, mountpoints):
        if not _leads_to(stored, pgdata, mountpoints):
            continue
        try:
            yield _read(pgdata, _wal_directory(stored, pgdata, mountpoints), known_of)
        except (TdefsError, OSError) as error:
            print(
                f'tdefs: warning: the cluster in "{printable(str(pgdata))}", to which this volume belongs, '
                f"cannot be asked: {printable(str(error))}\n"
                "HINT:  name its data directory with --pgdata",
                file=sys.stderr,
            )


def _mountpoints(volume: Volume, config: Config) -> set[Path]:
    """Return where *volume* is mounted, was mounted last, or is to be mounted."""
    configured = config.for_backing(volume.backing).mountpoint
    found = {configured.resolve()} if configured is not None else set()
    found |= {mount.mountpoint for mount in tdefs_mounts() if mount.backing == volume.backing}
    with suppress(TdefsError, OSError):
        session = read_session(volume)
        if session is not None:
            found.add(Path(session.mountpoint))
    return found


def _candidates(volume: Volume, unmounted: list[Path], mountpoints: set[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield data directories: where each is stored, and where its files can be read.

    What is mounted is looked at in its backing directory: a daemon that does not answer must not matter here.
    """
    mounts = [mount for mount in tdefs_mounts() if mount.backing != volume.backing]
    for mount in mounts:
        for pgdata in _clusters(mount.backing):
            yield pgdata, mount.mountpoint / pgdata.relative_to(mount.backing)
    for backing in unmounted:
        if backing != volume.backing and all(backing != mount.backing for mount in mounts):
            yield from ((pgdata, pgdata) for pgdata in _clusters(backing))
    for mountpoint in mountpoints:
        on_mount = any(mountpoint.is_relative_to(mount.mountpoint) for mount in mounts)
        if mountpoint.name == "pg_wal" and not on_mount and mountpoint.parent in _clusters(mountpoint.parent):
            yield mountpoint.parent, mountpoint.parent


def _clusters(place: Path) -> list[Path]:
    with suppress(OSError):
        return find_clusters(place)
    return []


def _leads_to(stored: Path, pgdata: Path, mountpoints: set[Path]) -> bool:
    """Tell whether a tablespace or the WAL of the cluster lies on one of the mount points."""
    if _wal_directory(stored, pgdata, mountpoints) is not None:
        return True
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(stored / "pg_tblspc")
    targets = [_target(stored, pgdata, f"pg_tblspc/{name}") for name in names]
    return any(_lies_on(target, pgdata, mountpoint) for target in targets for mountpoint in mountpoints)


def _wal_directory(stored: Path, pgdata: Path, mountpoints: set[Path]) -> str | None:
    """Return where pg_wal lies below one of the mount points; ``None`` if it does not."""
    target = _target(stored, pgdata, "pg_wal")
    below = [target.relative_to(one).parts for one in mountpoints if _lies_on(target, pgdata, one)]
    return "/".join(below[0]) if below else None


def _lies_on(target: Path, pgdata: Path, mountpoint: Path) -> bool:
    """Tell whether a part of the cluster is on a mount that the rest is not on: not a mount around all of it."""
    return target.is_relative_to(mountpoint) and not pgdata.is_relative_to(mountpoint)


def _target(stored: Path, pgdata: Path, name: str) -> Path:
    """Return where the directory *name* of a cluster lies: as its link says, which nobody follows here."""
    place = pgdata / name
    with suppress(OSError):
        place = place.parent / (stored / name).readlink()
    return Path(os.path.normpath(place))


def _configured(args: argparse.Namespace, volume: Volume) -> argparse.Namespace | None:
    """Return arguments with the secret that the configuration has for *volume*; ``None`` if it has none."""
    parser = argparse.ArgumentParser()
    add_keystore_arguments(parser)
    configured = parser.parse_args([], argparse.Namespace(run=args.run))
    configured.config = args.config
    use_configured_secret(configured, load_config(args.config).for_backing(volume.backing))
    return configured if is_secret_given(configured) else None


def _read(pgdata: Path, wal_directory: str | None, known_of: Callable[[Volume], Opened]) -> HomeCluster:
    try:
        control = parse_control_file(_content(pgdata, known_of))
    except (BadControlFile, UnknownControlVersion, FormatError) as error:
        raise TdefsError(
            Exit.USAGE,
            f'"{printable(str(pgdata / CONTROL_FILE))}" cannot be used: {error}',
            hint="verify the cluster's own volume first",
        ) from None
    wal = pgdata / "pg_wal"
    return HomeCluster(
        os.fspath(pgdata),
        control,
        wal_is_elsewhere=wal_directory is not None or wal.is_symlink() or wal.is_mount(),
        wal_directory=wal_directory,
        wal_is_incomplete=any((pgdata / name).exists() for name in WAL_FROM_ELSEWHERE),
    )


def _content(pgdata: Path, known_of: Callable[[Volume], Opened]) -> bytes:
    """Return the pg_control of the cluster, decrypted if it lies in a backing directory."""
    backing = next(
        (place for place in (pgdata, *pgdata.parents) if os.access(place / PRIVATE_DIRECTORY, os.F_OK)), None
    )
    if backing is None:
        return (pgdata / CONTROL_FILE).read_bytes()
    volume = read_volume(backing)
    path = os.fspath((pgdata / CONTROL_FILE).relative_to(backing))
    known = known_of(volume)
    with OfflineReader(volume, known.unlocked.ring, known.believed).open(path) as file:
        return bytes(next(file.chunks(), b""))
