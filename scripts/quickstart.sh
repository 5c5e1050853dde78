#!/usr/bin/env bash
# PostgreSQL on an encrypted mount, from nothing, with every step checked.
#
#   scripts/quickstart.sh [DIR]          start, or start again   (DIR: /var/tmp/tdefs-quickstart)
#   scripts/quickstart.sh --stop [DIR]   stop the server and unmount; the files stay
#
# Run it as root: then tdefs runs as root and PostgreSQL as the user postgres. Or run it as a user: then both run
# as that user, and sudo is used only to install packages that are missing. It asks nothing without a terminal.
#
#   DIR/backing       the backing directory: what lies on the disk, ciphertext
#   DIR/mount         the mount point
#   DIR/mount/pgdata  PGDATA
#   DIR/passphrase    unlocks the keystore; made at random
#   DIR/keystore      the wrapped keys
#   DIR/run           the server's socket and process id
#   DIR/log           the logs of tdefs and of PostgreSQL
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
tdefs=$repo/.venv/bin/tdefs

say() { printf '%s\n' "$*"; }
ok() { printf '[ok] %s\n' "$*"; }

die() {
    printf '[failed] %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '%s\n' "$line" >&2; done
    exit 1
}

usage() { sed -n '2,17s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; }

log_tail() {
    local log
    for log in "$dir"/log/*.log; do
        [[ ! -s $log ]] || printf -- '--- the end of %s\n%s\n' "$log" "$(tail -n 15 -- "$log")"
    done
}

# Runs a command that is quiet when it succeeds, and shows what it said when it fails: step WHAT COMMAND...
# It writes to a file: a daemon that it starts may keep a pipe open, and the reader of the pipe would wait.
step() {
    local what=$1
    shift
    "$@" &>"$step_output" </dev/null || die "$what: exit code $?" "$(<"$step_output")" "$(log_tail)"
}

# --- the place, and which user runs what ------------------------------------------------------------------------------

set_places() {
    # Absolute, and without symbolic links, as the kernel will name the mount.
    dir=$(realpath -m -- "$1")
    case $dir in
        *[\"\$\`\\]* | *[[:cntrl:]]*)
            die "the directory's name has a character that pg_ctl passes to a shell: $dir" \
                "HINT: choose a name without quotation marks, dollar signs, backticks and backslashes"
            ;;
        /) die "the directory cannot be /" ;;
    esac
    backing=$dir/backing
    mount=$dir/mount
    pgdata=$mount/pgdata
    stored=$backing/data/pgdata
    passphrase=$dir/passphrase
    keystore=$dir/keystore
    run=$dir/run
    socket_link=$run/socket
    tdefs_log=$dir/log/tdefs.log
    server_log=$dir/log/postgresql.log
    pid_file=$run/postmaster.pid
}

set_server_account() {
    if ((EUID == 0)); then
        server_user=postgres
    else
        server_user=$(id -un)
    fi
}

# Runs a command as the server's user, in a directory that every user may read, and without the caller's PGHOST,
# PGOPTIONS and the like.
as_server() {
    local -a run_as=(env)
    if ((EUID == 0)); then run_as=(runuser -u "$server_user" -- env); fi
    (cd / && exec "${run_as[@]}" -i PATH=/usr/bin:/bin HOME=/ LC_ALL=C "$@")
}

check_owner() {
    [[ -e $dir ]] || return 0
    local owner
    owner=$(stat -c %U -- "$dir")
    [[ $owner == "$(id -un)" ]] || die "$dir belongs to $owner, not to $(id -un)" \
        "HINT: run this as $owner, or choose another directory: scripts/quickstart.sh DIR"
}

find_server() {
    local candidate version
    if [[ -n ${1-} ]]; then
        pgbin=/usr/lib/postgresql/$1/bin
        [[ -x $pgbin/postgres ]] || die "the cluster is PostgreSQL $1, and $pgbin has no server" \
            "HINT: apt-get install postgresql-$1"
        return
    fi
    pgbin=
    while read -r version; do
        candidate=/usr/lib/postgresql/$version/bin
        if [[ -x $candidate/postgres && -x $candidate/initdb ]]; then pgbin=$candidate; fi
    done < <(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -V)
    [[ -n $pgbin ]] || die "there is no PostgreSQL server in /usr/lib/postgresql" "HINT: apt-get install postgresql"
}

# --- the mount -------------------------------------------------------------------------------------------------

# A mount whose daemon has died still stands in this list; only the list can be read without asking the daemon.
mount_is_listed() {
    local point
    while read -r _ _ _ _ point _; do
        [[ $(printf '%b' "$point") != "$mount" ]] || return 0 # it has \040 for a space
    done </proc/self/mountinfo
    return 1
}

mount_serves() { mount_is_listed && mountpoint -q -- "$mount" && "$tdefs" status "$mount" &>/dev/null; }

make_layout() {
    umask 022
    step "create $dir" mkdir -p -- "$dir"
    check_owner
    as_server test -x "$dir" || {
        rmdir -- "$dir" 2>/dev/null || true
        die "the user $server_user cannot reach $dir" \
            "HINT: choose a directory that every user may pass through, such as /var/tmp/tdefs-quickstart"
    }
    if [[ ! -d $backing ]]; then
        [[ -z $(find "$dir" -mindepth 1 -print -quit) ]] || die "$dir is not empty, and not this script's" \
            "HINT: choose a new directory"
        step "create $backing" mkdir -m 0700 -- "$backing"
    fi
    step "create the directories in $dir" mkdir -p -- "$dir/log" "$run"
    mount_is_listed || step "create $mount" mkdir -p -m 0700 -- "$mount"
    # The server opens these by itself; the rest is not its business.
    [[ -e $server_log ]] || : >"$server_log"
    chmod 0600 -- "$server_log"
    if ((EUID == 0)); then chown -- "$server_user:" "$run" "$server_log"; fi
    as_server test -w "$run" || die "the user $server_user cannot write to $run"
    if [[ ! -s $passphrase ]]; then
        (umask 077 && od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n' >"$passphrase")
    fi
    [[ $(stat -c %a -- "$passphrase") == 600 ]] || die "others may read $passphrase" "HINT: chmod 0600 it"
    ok "the files are in $dir; a random passphrase is in $passphrase (mode 0600)"
}

make_volume() {
    if [[ -d $backing/.tdefs ]]; then
        [[ -s $keystore ]] || die "the volume in $backing has no keystore $keystore any more" \
            "HINT: without it nothing can be read; to start anew, delete $dir"
        ok "the volume in $backing is there already"
        return
    fi
    step "create the volume" "$tdefs" init "$backing" --passphrase-file "$passphrase" --keystore "$keystore"
    [[ -d $backing/.tdefs && -s $keystore ]] || die "tdefs init succeeded, but the volume or $keystore is missing"
    ok "created a volume in $backing and its keystore $keystore"
}

mount_volume() {
    if mount_serves; then
        ok "the volume is mounted at $mount already"
        return
    fi
    # A server that lost its data directory cannot go on, and would hold the dead mount.
    stop_stray_server
    if mount_is_listed; then say "     the process that served $mount is gone; mounting again"; fi
    # As root this lets the other users in, which the server is one of.
    step "mount the volume" "$tdefs" mount "$backing" "$mount" --passphrase-file "$passphrase" --log-file "$tdefs_log"
    mount_serves || die "tdefs mount succeeded, but $mount is not served" "$(<"$step_output")" "$(log_tail)"
    if ((EUID == 0)); then
        chown -- "$server_user:" "$mount"
        [[ $(stat -c %U -- "$mount") == "$server_user" ]] || die "the owner of $mount could not be changed"
    fi
    ok "mounted it at $mount"
}

# --- the server ------------------------------------------------------------------------------------------------

server_runs() { as_server "$pgbin/pg_ctl" status -D "$pgdata" &>/dev/null && ! lock_is_of_a_zombie; }

# A server that has ended, but not for its parent: to pg_ctl and to a new server it seems to run.
lock_is_of_a_zombie() {
    local pid stat
    { read -r pid <"$pgdata/postmaster.pid" && read -r stat <"/proc/$pid/stat"; } 2>/dev/null || return 1
    [[ ${stat##*) } == Z* ]]
}

forget_zombie() {
    local try
    for ((try = 0; try < 50; try++)); do
        lock_is_of_a_zombie || return 0
        sleep 0.2
    done
    say "     the last server has ended, but its parent process does not notice; removing its lock file"
    rm -f -- "$pgdata/postmaster.pid"
}

# The process id of the postmaster of this PGDATA, from outside PGDATA: it is needed when the mount is dead.
stray_postmaster() {
    local pid
    [[ -r $pid_file ]] || return 1
    read -r pid <"$pid_file" || return 1
    [[ $pid =~ ^[0-9]+$ && $(stat -c %U "/proc/$pid" 2>/dev/null) == "$server_user" ]] || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "$pgdata" || return 1
    printf '%s\n' "$pid"
}

stop_stray_server() {
    local pid try
    pid=$(stray_postmaster) || return 0
    say "     a server is left over from a mount that is gone; stopping it (process $pid)"
    kill -QUIT "$pid" 2>/dev/null || true
    for ((try = 0; try < 100; try++)); do
        stray_postmaster >/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    sleep 0.5
    ! stray_postmaster >/dev/null || die "the server (process $pid) could not be stopped"
}

# A Unix socket's path has at most 107 bytes, and "/.s.PGSQL.65535" takes 15 of them; psql -h takes a comma for the
# end of a host's name.
make_socket_directory() {
    local LC_ALL=C
    if ((${#run} <= 92)) && [[ $run != *,* ]]; then
        socket=$run
        return
    fi
    if [[ -L $socket_link ]]; then
        socket=$(readlink -- "$socket_link")
        if [[ -d $socket && $(stat -c %U -- "$socket") == "$server_user" ]]; then return; fi
    fi
    socket=$(as_server mktemp -d /tmp/tdefs-quickstart.XXXXXX)
    as_server chmod 0755 "$socket"
    as_server ln -sfn -- "$socket" "$socket_link"
    say "     $run is too long for a Unix socket, or has a comma; the socket is in $socket"
}

free_port() {
    "$repo/.venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

conf_quote() { printf "'%s'" "${1//\'/\'\'}"; }

make_cluster() {
    local include="include 'quickstart.conf'"
    if [[ -s $pgdata/PG_VERSION ]] && grep -qxF -e "$include" -- "$pgdata/postgresql.conf" 2>/dev/null; then
        find_server "$(<"$pgdata/PG_VERSION")"
        ok "a PostgreSQL $(<"$pgdata/PG_VERSION") cluster is there already"
        return
    fi
    find_server
    if [[ -d $pgdata && -n $(find "$pgdata" -mindepth 1 -print -quit) ]]; then
        say "     an earlier initdb was interrupted; removing what it left"
        find "$pgdata" -mindepth 1 -delete
    fi
    step "initdb" as_server "$pgbin/initdb" -D "$pgdata" --data-checksums --no-locale --encoding=UTF8 \
        --auth-local=peer --auth-host=scram-sha-256
    # The include line comes last: it says that initdb has finished.
    as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<<"$include"
    grep -qxF -e "$include" -- "$pgdata/postgresql.conf" || die "what was written to postgresql.conf reads differently"
    ok "initdb made a PostgreSQL $(<"$pgdata/PG_VERSION") cluster with checksums, as the user $server_user"
}

# Written before every start: the directory may have been moved.
configure_server() {
    port=$(free_port)
    make_socket_directory
    rm -f -- "$socket"/.s.PGSQL.* # of a server that was killed
    # unix_socket_directories is a list, whose elements may stand in double quotes
    as_server tee "$pgdata/quickstart.conf" >/dev/null <<CONF
port = $port
listen_addresses = ''
unix_socket_directories = $(conf_quote "\"$socket\"")
external_pid_file = $(conf_quote "$pid_file")
CONF
}

start_server() {
    if server_runs; then
        # The lock file's fourth line is the port, the fifth the first socket directory.
        port=$(sed -n 4p -- "$pgdata/postmaster.pid")
        socket=$(sed -n 5p -- "$pgdata/postmaster.pid")
        ok "PostgreSQL is running already"
    else
        forget_zombie
        configure_server
        step "start PostgreSQL" as_server "$pgbin/pg_ctl" start -w -t 60 -D "$pgdata" -l "$server_log"
        server_runs || die "pg_ctl start succeeded, but no server runs" "$(log_tail)"
        ok "started PostgreSQL as the user $server_user, port $port, socket in $socket"
    fi
    [[ $(sql 'SELECT 1') == 1 ]] || die "the server does not answer" "$(log_tail)"
    [[ $(sql 'SHOW data_directory') == "$pgdata" ]] || die "another server answers at $socket, port $port"
    [[ $(sql 'SHOW data_checksums') == on ]] || die "the cluster has no checksums"
    ok "it answers: PostgreSQL $(sql 'SHOW server_version'), data_directory $pgdata"
}

# SQL goes in through a pipe, so that no list of processes shows it.
sql() {
    printf '%s\n' "$1" |
        as_server "$pgbin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$socket" -p "$port" -d postgres -f -
}

# --- the proof -------------------------------------------------------------------------------------------------

store_secret() {
    secret=TOP-SECRET-$(od -An -v -tx1 -N12 /dev/urandom | tr -d ' \n')
    sql "SET client_min_messages = warning;
         CREATE TABLE IF NOT EXISTS quickstart (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, secret text);
         INSERT INTO quickstart (secret) VALUES ('$secret');" || die "the INSERT failed" "$(log_tail)"
    [[ $(sql "SELECT secret FROM quickstart ORDER BY id DESC LIMIT 1") == "$secret" ]] ||
        die "the row that was stored is not the row that is read"
    ok "stored a row with the secret $secret and read it back; rows in the table: $(sql 'TABLE quickstart' | wc -l)"
    sql 'CHECKPOINT'
    relation=$(sql "SELECT pg_relation_filepath('quickstart')")
    ok "CHECKPOINT: the table is in the file $relation"
}

# Lines of hexadecimal and text around a byte of a file.
show_bytes() {
    local file=$1 start=$((($2 / 16 - 1) * 16))
    if ((start < 0)); then start=0; fi
    od -A x -t x1z -v -j "$start" -N 80 -- "$file" | sed '$d; s/^/     /'
}

# Prints the names of the files below a directory that contain one of the strings in $secrets; none: nothing.
files_with_secret() {
    local found try status
    for try in 1 2 3; do
        status=0
        found=$(cd -- "$1" && grep -rlaF -f - . <<<"$secrets" 2>"$step_output") || status=$?
        # 2: a file that the server removed while grep was on its way to it, or worse.
        if ((status < 2)); then break; fi
        sleep "$try"
    done
    ((status < 2)) || die "$1 could not be searched" "$(<"$step_output")"
    while IFS= read -r found; do printf '%s\n' "${found#./}"; done < <(sort <<<"$found")
}

compare_with_backing() {
    local found offset header=8192
    secrets=$secret
    found=$(files_with_secret "$pgdata")
    grep -qxF -e "$relation" <<<"$found" || die "the secret is not in $pgdata/$relation, but in: $found"
    ok "grep finds the secret through the mount, in: ${found//$'\n'/, }"

    offset=$(grep -obaF -e "$secret" -- "$pgdata/$relation" | head -n 1 | cut -d: -f1)
    say "     $pgdata/$relation, at byte $offset:"
    show_bytes "$pgdata/$relation" "$offset"
    say "     $stored/$relation, at byte $((offset + header)), the same place after the header page:"
    show_bytes "$stored/$relation" "$((offset + header))"
    (($(stat -c %s -- "$stored/$relation") == $(stat -c %s -- "$pgdata/$relation") + header)) ||
        die "the backing file is not the mounted file with a header page: the comparison above means nothing"

    # Every secret that was ever stored, in every byte of the backing directory.
    secrets=$(sql 'SELECT secret FROM quickstart ORDER BY id')
    grep -qxF -e "$secret" <<<"$secrets" || die "the stored secrets could not be listed"
    [[ -n $(find "$stored/pg_wal" -type f -size +0 -print -quit) ]] || die "there is no WAL in $stored/pg_wal"
    found=$(files_with_secret "$backing")
    [[ -z $found ]] || die "a secret is in the clear in the backing directory $backing, in: $found"
    ok "grep finds no stored secret ($(wc -l <<<"$secrets") searched for) in the backing directory:" \
        "$(find "$backing" -type f | wc -l) files, $(du -sh --apparent-size -- "$backing" | cut -f1), the WAL among them"
}

# --- the two commands ------------------------------------------------------------------------------------------

start() {
    local stop_command as_user=
    # Its own lines are shown as they come: an installation takes minutes.
    bash "$repo/scripts/setup.sh" || die "this machine could not be made ready" "HINT: the lines above say why"
    step "run tdefs" "$tdefs" --help
    id -- "$server_user" &>/dev/null || die "there is no user $server_user" "HINT: apt-get install postgresql"
    ok "this machine has what is needed"
    make_layout
    make_volume
    mount_volume
    make_cluster
    start_server
    store_secret
    compare_with_backing

    printf -v stop_command '%q --stop %q' "$repo/scripts/quickstart.sh" "$dir"
    if ((EUID == 0)); then as_user="runuser -u $server_user -- "; fi
    say ""
    say "Connect:     $as_user$(printf '%q -h %q -p %s -d postgres' "$pgbin/psql" "$socket" "$port")"
    say "Encrypted:   $backing"
    say "Mounted:     $mount"
    say "Passphrase:  $passphrase"
    say "Keystore:    $keystore (back it up: without it the data is lost)"
    say "Logs:        $dir/log"
    say "Stop:        $stop_command"
}

stop() {
    [[ -d $dir ]] || {
        ok "there is nothing at $dir"
        return
    }
    check_owner
    if mount_is_listed && [[ -s $pgdata/PG_VERSION ]]; then
        find_server "$(<"$pgdata/PG_VERSION")"
        if server_runs; then
            step "stop PostgreSQL" as_server "$pgbin/pg_ctl" stop -w -t 120 -m fast -D "$pgdata"
            ok "stopped PostgreSQL"
        fi
    fi
    stop_stray_server
    if mount_is_listed; then
        step "unmount $mount" "$tdefs" umount "$mount"
        ! mount_is_listed || die "$mount is still mounted"
        ok "unmounted $mount"
    fi
    if [[ -L $socket_link ]]; then
        rmdir -- "$(readlink -- "$socket_link")" 2>/dev/null || true
        rm -f -- "$socket_link"
    fi
    ok "nothing of $dir is mounted or running; the files stay"
    say "Start again:        $(printf '%q %q' "$repo/scripts/quickstart.sh" "$dir")"
    say "Delete everything:  $(printf 'rm -r -- %q' "$dir")"
}

step_output=$(mktemp)
trap 'status=$?; rm -f -- "$step_output"
((status == 0)) || printf "quickstart: not every step was checked\n" >&2' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

action=start
directory=
while (($#)); do
    case $1 in
        --stop) action=stop ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) die "unknown option \"$1\"" "HINT: scripts/quickstart.sh --help" ;;
        *)
            [[ -z $directory ]] || die "more than one directory: \"$directory\", \"$1\""
            [[ -n $1 ]] || die "the directory's name is empty"
            directory=$1
            ;;
    esac
    shift
done
set_places "${directory:-/var/tmp/tdefs-quickstart}"
set_server_account
if [[ $action == start ]]; then start; else stop; fi
