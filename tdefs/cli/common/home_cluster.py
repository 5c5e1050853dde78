"""Finding the cluster that a volume's tablespace or WAL belongs to: the user names it, or its links lead here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.link_places import mountpoints_of, trusted_mounts
from tdefs.cli.common.unlocking import KeystoreAccess, unlock
from tdefs.control import ask_status
from tdefs.doctor.cluster import find_clusters
from tdefs.errors import Exit, NoSecretError, TdefsError
from tdefs.format.errors import FormatError
from tdefs.offline.reader import OfflineReader
from tdefs.pg.control import (
    CONTROL_FILE,
    MOST_CONTROL_BYTES,
    BadControlFile,
    UnknownControlVersion,
    parse_control_file,
)
from tdefs.pg.home import HomeCluster
from tdefs.pg.structure import WAL_FROM_ELSEWHERE
from tdefs.private import read_regular
from tdefs.text import printable
from tdefs.volume.believed import Opened
from tdefs.volume.description import DATA_DIRECTORY, Volume, is_volume, read_volume


def named_cluster(access: KeystoreAccess, volume: Volume, pgdata: Path) -> HomeCluster:
    """Return the cluster that *volume* is a part of: *pgdata* is its data directory, or in a backing directory.

    :param access: of the command line. If the configuration does not say how to unlock the cluster's volume, the
        secret of *volume* is used.
    :raises TdefsError: USAGE if there is no cluster, or more than one; errors of the keystore or the secret.
    """
    place = pgdata.resolve()
    if is_volume(place):
        place /= DATA_DIRECTORY
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
        # the command line names the keystore of the volume that is verified
        return unlock(access.configured(other) or access.of_another_volume(), other)

    mountpoints = mountpoints_of(volume, access.invocation.config)
    home = _Candidate(found[0], found[0], _volume_of(found[0]))
    return _read(home, _wal_directory(home, mountpoints, known_of), known_of)


def linking_clusters(access: KeystoreAccess, volume: Volume) -> Iterator[HomeCluster]:
    """Yield the clusters whose pg_tblspc or pg_wal leads to the place where *volume* is, or was, mounted.

    They are searched on the mounts of other volumes, beside the mount point, and in the backing directories that
    the configuration names. A cluster that cannot be read is a warning. Nobody is asked for a secret.
    """
    config = access.invocation.config

    def known_of(other: Volume) -> Opened:
        configured = access.configured(other)
        if configured is None:
            raise NoSecretError("the configuration does not say how to unlock its volume")
        return unlock(configured, other)

    mountpoints = mountpoints_of(volume, config)
    unmounted = [path.resolve() for path in config.volumes]
    for home in _candidates(volume, unmounted, mountpoints):
        belongs = "to which this volume may belong"
        try:
            if not _leads_to(home, mountpoints, known_of):
                continue
            belongs = "to which this volume belongs"
            yield _read(home, _wal_directory(home, mountpoints, known_of), known_of)
        except (TdefsError, OSError) as error:
            print(
                f'tdefs: warning: the cluster in "{printable(str(home.pgdata))}", {belongs}, '
                f"cannot be asked: {printable(str(error))}\n"
                "HINT:  name its data directory with --pgdata",
                file=sys.stderr,
            )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A data directory: where it is stored, where its files can be read, and its volume, if it has one."""

    stored: Path
    pgdata: Path
    volume: Volume | None = None


def _candidates(volume: Volume, unmounted: list[Path], mountpoints: set[Path]) -> Iterator[_Candidate]:
    """Yield data directories.

    Mounted volumes are read in their backing directories, so a daemon that does not answer does no harm here.
    """
    mounts = [mount for mount in trusted_mounts(volume) if mount.backing != volume.backing]
    for mount in mounts:
        data = mount.backing / DATA_DIRECTORY
        for stored in _clusters(data):
            with suppress(TdefsError, OSError):
                yield _Candidate(stored, mount.mountpoint / stored.relative_to(data), read_volume(mount.backing))
    for backing in unmounted:
        if backing != volume.backing and all(backing != mount.backing for mount in mounts):
            for stored in _clusters(backing / DATA_DIRECTORY):
                with suppress(TdefsError, OSError):
                    yield _Candidate(stored, stored, read_volume(backing))
    for mountpoint in mountpoints:
        on_mount = any(mountpoint.is_relative_to(mount.mountpoint) for mount in mounts)
        if mountpoint.name == "pg_wal" and not on_mount and mountpoint.parent in _clusters(mountpoint.parent):
            yield _Candidate(mountpoint.parent, mountpoint.parent)


def _clusters(place: Path) -> list[Path]:
    with suppress(OSError):
        return find_clusters(place)
    return []


def _leads_to(home: _Candidate, mountpoints: set[Path], known_of: Callable[[Volume], Opened]) -> bool:
    """Return whether a tablespace or the WAL of the cluster lies on one of the mount points.

    :raises TdefsError: its links cannot be read without keys.
    """
    if _wal_directory(home, mountpoints, known_of) is not None:
        return True
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(home.stored / "pg_tblspc")
    targets = [_target(home, f"pg_tblspc/{name}", known_of) for name in names]
    return any(_lies_on(target, home.pgdata, mountpoint) for target in targets for mountpoint in mountpoints)


def _wal_directory(home: _Candidate, mountpoints: set[Path], known_of: Callable[[Volume], Opened]) -> str | None:
    """Return where pg_wal lies below one of the mount points; ``None`` if it does not."""
    target = _target(home, "pg_wal", known_of)
    below = [target.relative_to(one).parts for one in mountpoints if _lies_on(target, home.pgdata, one)]
    return "/".join(below[0]) if below else None


def _lies_on(target: Path, pgdata: Path, mountpoint: Path) -> bool:
    """Return whether a part of the cluster is on a mount of its own, and not on the mount of the whole cluster."""
    return target.is_relative_to(mountpoint) and not pgdata.is_relative_to(mountpoint)


def _target(home: _Candidate, name: str, known_of: Callable[[Volume], Opened]) -> Path:
    """Return where the directory *name* of a cluster lies, by its link, which is read and not followed.

    :raises TdefsError: the link cannot be read without keys.
    """
    place = home.pgdata / name
    with suppress(OSError, FormatError):
        if (home.stored / name).is_symlink():
            place = place.parent / _link_target(home, name, known_of)
    return Path(os.path.normpath(place))


def _link_target(home: _Candidate, name: str, known_of: Callable[[Volume], Opened]) -> Path:
    """Return where a link leads to: from the daemon that serves its volume, or decrypted with the keys."""
    if home.volume is None:
        return (home.stored / name).readlink()
    # reading the link through a daemon that does not answer would wait for ever
    if home.stored != home.pgdata and ask_status(home.volume) is not None:
        return (home.pgdata / name).readlink()
    path = os.fspath((home.stored / name).relative_to(home.volume.data))
    return Path(os.fsdecode(_reader(home.volume, known_of).link_target(path)))


def _reader(volume: Volume, known_of: Callable[[Volume], Opened]) -> OfflineReader:
    known = known_of(volume)
    return OfflineReader(volume, known.unlocked.ring, known.believed)


def _read(home: _Candidate, wal_directory: str | None, known_of: Callable[[Volume], Opened]) -> HomeCluster:
    pgdata = home.pgdata
    try:
        control = parse_control_file(_content(home, known_of))
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


def _volume_of(pgdata: Path) -> Volume | None:
    """Return the volume in whose backing directory *pgdata* lies, if it lies in one."""
    backing = next((place for place in pgdata.parents if is_volume(place)), None)
    return None if backing is None else read_volume(backing)


def _content(home: _Candidate, known_of: Callable[[Volume], Opened]) -> bytes:
    """Return the pg_control of the cluster, decrypted if it is read in a backing directory."""
    if home.volume is None or home.pgdata != home.stored:
        return read_regular(home.pgdata / CONTROL_FILE, MOST_CONTROL_BYTES)
    path = os.fspath((home.stored / CONTROL_FILE).relative_to(home.volume.data))
    with _reader(home.volume, known_of).open(path) as file:
        return bytes(next(file.chunks(), b""))
