#!/usr/bin/env bash
# Runs a command where much is unlike what programs expect of their surroundings, and tests must not lean on it.
#
#   tests/support/strange.sh COMMAND...      as root; scripts/test.sh --strange runs every check so
#
# Signals are ignored as by nohup and in a shell's background, and SIGCHLD too; standard input is closed; the umask is
# 077, the language Turkish, the time zone one that has skipped a day, TMPDIR has a space, PATH is short, HOME and USER
# are not set, soft limits are low, the priority as well; PostgreSQL's and Python's variables name what is not there;
# there is an /etc/tdefs that only root may enter, with a tdefs.yaml; a tdefs mount and a PostgreSQL server of somebody
# else's are up. Nobody else sees any of it, and all of it is undone at the end.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
if [[ ${1-} != --inside ]]; then
    ((EUID == 0)) || {
        printf 'strange.sh: only root can have an /etc/tdefs, and a mount, that nobody else sees\n' >&2
        exit 2
    }
    bash "$repo/scripts/setup.sh" --dev
    exec unshare --mount --propagation=private bash "${BASH_SOURCE[0]}" --inside "$@"
fi
shift

others=$(mktemp -d /var/tmp/tdefs-strange-XXXXXX)
binaries=/usr/lib/postgresql/15/bin
as_postgres() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); }

clean_up() {
    exec 2>/dev/null # what did not come to be needs no ending
    as_postgres "$binaries/pg_ctl" -s -D "$others/server" -m immediate stop || true
    "$repo/.venv/bin/tdefs" umount "$others/mnt" || umount -l -- "$others/mnt" || true
    umount -l /etc "$others/etc" || true
    rm -rf --one-file-system -- "$others"
}
trap clean_up EXIT

# somebody else's mount, server and configuration
chmod 0755 -- "$others"
mkdir -- "$others/backing" "$others/mnt" "$others/sockets" "$others/a place" "$others/etc"
chown postgres: "$others/sockets"
key='printf %%064d 7'
"$repo/.venv/bin/tdefs" init "$others/backing" --key-command "$key" --keystore "$others/keystore"
"$repo/.venv/bin/tdefs" mount "$others/backing" "$others/mnt" --key-command "$key"
install -d -o postgres -m 700 "$others/server"
as_postgres "$binaries/initdb" -D "$others/server" >/dev/null
as_postgres "$binaries/pg_ctl" -s -w -D "$others/server" -l "$others/sockets/log" \
    -o "-c listen_addresses= -k $others/sockets" start
mount -t tmpfs none "$others/etc"
mkdir -- "$others/etc/upper" "$others/etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$others/etc/upper,workdir=$others/etc/work" none /etc
install -d -m 700 /etc/tdefs
printf 'version: 1\nlog_level: error\n' >/etc/tdefs/tdefs.yaml

export LC_ALL=tr_TR.UTF-8 LANG=tr_TR.UTF-8 TZ=Pacific/Apia TMPDIR="$others/a place" PATH=/usr/bin:/bin
export PGHOST=$others/sockets PGDATABASE=nowhere PGOPTIONS='-c fsync=off' TDEFS_LOG=nothing SUDO_UID=12345
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$others PYTEST_ADDOPTS=--no-such-option
unset HOME USER LOGNAME
ulimit -S -n 256 && ulimit -S -c 0
umask 077
trap '' INT QUIT HUP PIPE USR1 USR2 ALRM TSTP TTIN TTOU
cd -- "$others"
"$repo/.venv/bin/python" -c 'import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])' nice -n 5 "$@" <&-
