#!/usr/bin/env bash
# Moves Debian's PostgreSQL clusters of one version onto an encrypted mount, with every step checked.
#
#   scripts/encrypt-cluster.sh [OPTIONS] VERSION NAME... [-- UNLOCK...]      as root, such as: 15 main
#
#   --backing DIR      where the ciphertext goes           (/srv/tdefs/NAME)
#   --keystore FILE    where the wrapped keys go           (/etc/tdefs/NAME.keystore)
#   --policy FILE      what is encrypted                   (everything)
#   --leave-links      leave a pg_wal or a tablespace that is a symbolic link where it is, in the clear
#   UNLOCK             for "tdefs init" and "tdefs mount", such as --passphrase-file FILE; else they ask
#
# Everything in /var/lib/postgresql/VERSION is copied into a new volume, compared, and then served from there: the
# mount takes the place of /var/lib/postgresql/VERSION, and the old files stay beside it in VERSION.clear. Until a
# cluster runs on the mount a failure puts everything back: the old clusters are where they were, and run if they
# ran. After that nothing is put back, since clients may have written. You can always run the command again; it goes
# on with the volume that is there.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
root=/var/lib/postgresql
# In the volume's root, until a cluster is started there: what lies in the volume is a copy that may be made anew.
marker=.encrypt-cluster-unfinished

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

# The type of what is mounted at a place, from the kernel's list; nothing if that is no mount point.
mounted_type() { findmnt --noheadings --first-only --output FSTYPE --mountpoint "$1" || true; }

is_served() { [[ $(mounted_type "$1") == fuse.tdefs ]] && mountpoint -q -- "$1"; }

is_empty() { [[ -z $(find "$1" -mindepth 1 -print -quit) ]]; }

runs() { pg_ctlcluster "$version" "$1" status &>/dev/null; }

# --- what is there ---------------------------------------------------------------------------------------------

check_host() {
    ((EUID == 0)) || die "this must be run as root"
    local program
    for program in pg_ctlcluster pg_conftool findmnt; do
        command -v "$program" >/dev/null || die "there is no $program" "HINT: apt-get install postgresql"
    done
    tdefs=$(command -v tdefs) || tdefs=$repo/.venv/bin/tdefs
    [[ -x $tdefs ]] || die "there is no tdefs" "HINT: run scripts/setup.sh first"
}

# Ends here if there is nothing to do; puts back what a run has left that was killed.
check_state() {
    local type
    type=$(mounted_type "$place")
    if [[ $type == fuse.tdefs && ! -e $backing/data/$marker ]]; then
        is_served "$place" || die "the mount at $place is dead" "HINT: tdefs mount $backing $place"
        ok "$place is on an encrypted mount already"
        start_clusters
        exit 0
    fi
    if [[ -e $clear && -e $backing/data/$marker ]]; then
        say "     an earlier run was interrupted; putting back what it has left"
        moved=yes
        if [[ $type == fuse.tdefs ]]; then final_mounted=yes; fi
        put_back || die "it could not be put back" "HINT: see above"
        type=$(mounted_type "$place")
    fi
    [[ -z $type ]] || die "$place is a mount point itself, of a file system of type $type" \
        "HINT: such a cluster has to be moved by hand: copy it into a mount, and set data_directory"
    if [[ -e $clear ]]; then
        if [[ ! -e $place ]] || is_empty "$place"; then
            die "the clusters are encrypted already, but not mounted" "HINT: tdefs mount $backing $place"
        fi
        die "$clear is there already" "HINT: move or wipe it, if it is not needed any more"
    fi
    [[ -d $place && ! -L $place ]] || die "$place is no directory"
}

check_clusters() {
    local name entry data link links=()
    for name in "${names[@]}"; do
        [[ -d /etc/postgresql/$version/$name ]] || die "there is no cluster $version $name" "HINT: pg_lsclusters"
        data=$(pg_conftool -s "$version" "$name" show data_directory)
        [[ $data == "$place/$name" && ! -L $data && -s $data/PG_VERSION ]] ||
            die "the data directory of $version $name is $data, and not a directory $place/$name" \
                "HINT: such a cluster has to be moved by hand: copy it into a mount, and set data_directory"
        for link in "$data/pg_wal" "$data"/pg_tblspc/*; do
            if [[ -L $link ]]; then links+=("$link -> $(readlink -- "$link")"); fi
        done
    done
    while IFS= read -r -d '' entry; do
        entry=${entry##*/}
        [[ " ${names[*]} " == *" $entry "* ]] || die "$place/$entry would be hidden by the mount" \
            "HINT: name all clusters of the version, and move away what else lies there"
    done < <(find "$place" -mindepth 1 -maxdepth 1 -print0)
    if ((${#links[@]})); then
        [[ $leave_links == yes ]] || die "these lie elsewhere, and would stay in the clear:" "${links[@]}" \
            "HINT: move them into the cluster, or say --leave-links and give each a volume of its own"
        say "     these stay where they are, in the clear:"
        printf '     %s\n' "${links[@]}"
    fi
}

check_room() {
    local needed free
    needed=$(du -sk -- "$place" | cut -f1)
    free=$(df -k --output=avail -- "$backing" | tail -n 1)
    ((free > needed + needed / 20)) ||
        die "there is not enough room in $backing: $free KiB are free, $((needed + needed / 20)) are needed"
}

# --- the steps -------------------------------------------------------------------------------------------------

make_volume() {
    if [[ -e $backing/.tdefs/volume.json ]]; then
        ok "the volume in $backing is there already"
    else
        # what lies inside is the cluster's own, which may let others in
        [[ -d ${backing%/*} ]] || install -d -m 700 -- "${backing%/*}"
        [[ -d ${keystore%/*} ]] || install -d -m 755 -- "${keystore%/*}"
        local -a choice=()
        if [[ -n $policy ]]; then choice=(--policy "$policy"); fi
        "$tdefs" init "$backing" --keystore "$keystore" "${choice[@]}" "${unlock[@]}" ||
            die "the volume could not be made; nothing has changed"
        ok "made a volume in $backing, with the keystore $keystore"
    fi
}

mount_at() {
    "$tdefs" mount "$backing" "$1" "${unlock[@]}" || die "the volume could not be mounted at $1"
    is_served "$1" || die "tdefs mount has succeeded, but $1 is not a mount of it"
}

mount_staging() {
    if [[ $(mounted_type "$staging") == fuse.tdefs ]]; then "$tdefs" umount "$staging"; fi
    mkdir -p -- "$staging"
    is_empty "$staging" || die "$staging is not empty"
    staging_made=yes
    mount_at "$staging"
    staging_mounted=yes
    if [[ ! -e $staging/$marker ]]; then
        is_empty "$staging" || die "the volume in $backing has files that this script has not put there" \
            "HINT: name another one with --backing and --keystore"
        : >"$staging/$marker"
    fi
    # what an earlier run has copied
    find "$staging" -mindepth 1 -maxdepth 1 ! -name "$marker" -exec rm -rf -- {} +
    chown --reference="$place" -- "$staging"
    chmod --reference="$place" -- "$staging"
}

stop_clusters() {
    local name
    for name in "${names[@]}"; do
        if runs "$name"; then
            running+=("$name")
            pg_ctlcluster "$version" "$name" stop -m fast || die "the cluster $version $name could not be stopped"
        fi
        [[ ! -e $place/$name/postmaster.pid ]] || ! kill -0 "$(head -n 1 "$place/$name/postmaster.pid")" 2>/dev/null ||
            die "a server still runs in $place/$name"
    done
}

copy() {
    is_served "$staging" || die "$staging is not mounted any more"
    cp -a -- "$place/." "$staging/" || die "the clusters could not be copied"
    sync -f -- "$staging"
    "$tdefs" umount "$staging" || die "$staging could not be unmounted"
    staging_mounted=
    rmdir -- "$staging"
    staging_made=
    ok "copied $(du -sh -- "$place" | cut -f1) into the volume"
}

switch() {
    mv -T -- "$place" "$clear"
    moved=yes
    install -d -m 755 -- "$place"
    mount_at "$place"
    final_mounted=yes
    ok "mounted the volume at $place"
}

# What the mount gives back, from the disk, is what the old directory has: content, owners, modes, links.
compare() {
    local list=(find . -mindepth 1 ! -name "$marker" \( -type d -printf '%p %y %m %U %G\n' -o -printf '%p %y %m %U %G %s %l\n' \))
    diff <(cd -- "$clear" && "${list[@]}" | sort) <(cd -- "$place" && "${list[@]}" | sort) >&2 ||
        die "the copy has other files than the original"
    diff -rq --no-dereference --exclude="$marker" -- "$clear" "$place" >&2 ||
        die "the copy is not the same as the original"
    ok "compared the copy with the original: they are the same"
}

# From now on the volume has the clusters, and the old directory is a copy that becomes older.
keep() {
    rm -- "$place/$marker"
    sync -f -- "$place"
    kept=yes
}

start_clusters() {
    local name
    for name in "${names[@]}"; do
        if runs "$name" || grep -qx disabled "/etc/postgresql/$version/$name/start.conf" 2>/dev/null; then continue; fi
        if ! pg_ctlcluster "$version" "$name" start || ! runs "$name"; then
            # one that is slow to start may have been written to
            if runs "$name"; then served=yes; fi
            die "the cluster $version $name does not start on the mount" "HINT: its log tells why"
        fi
        served=yes
        ok "the cluster $version $name runs on the mount"
    done
}

# Leaves the old clusters as they were found; says how, where that fails.
put_back() {
    local name failed=
    if [[ $final_mounted == yes ]]; then
        if [[ $kept == yes ]]; then : >"$place/$marker" || failed=yes; fi
        if "$tdefs" umount "$place"; then final_mounted=; else failed=yes; fi
    fi
    if [[ $moved == yes && -z $failed ]]; then
        if [[ -d $place ]]; then rmdir -- "$place" || failed=yes; fi
        if [[ -z $failed ]] && mv -T -- "$clear" "$place"; then moved=; else failed=yes; fi
    fi
    if [[ $staging_mounted == yes ]]; then "$tdefs" umount "$staging" && staging_mounted=; fi
    if [[ $staging_made == yes && -z $staging_mounted ]]; then rmdir -- "$staging" && staging_made=; fi
    if [[ -n $failed ]]; then
        printf '%s\n' "the old clusters are whole in $clear; to put them back:" \
            "  stop the clusters; tdefs umount $place; rmdir $place; mv $clear $place" >&2
        return 1
    fi
    for name in "${running[@]}"; do
        if ! runs "$name"; then pg_ctlcluster "$version" "$name" start || failed=yes; fi
    done
    running=()
    [[ -z $failed ]] || printf 'an old cluster does not start any more: see its log\n' >&2
    [[ -z $failed ]]
}

finish() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    if [[ $status != 0 && -n $served ]]; then
        printf 'the clusters are on the mount %s, and stay there; run the command again when that is mended\n' "$place" >&2
    elif [[ $status != 0 && -n ${clear-} ]]; then
        if [[ -n $staging_made$staging_mounted$moved || ${#running[@]} != 0 ]]; then
            put_back && printf 'the clusters are as they were, in the clear, in %s\n' "$place" >&2
        fi
    fi
    exit "$status"
}

version='' backing='' keystore='' policy='' leave_links=''
names=() unlock=() running=()
staging_made='' staging_mounted='' moved='' final_mounted='' kept='' served=''
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --backing | --keystore | --policy)
            (($# > 1)) || die "$1 needs a value"
            printf -v "${1#--}" %s "$(realpath -m -- "$2")"
            shift
            ;;
        --leave-links) leave_links=yes ;;
        --)
            shift
            unlock=("$@")
            break
            ;;
        -*) die "unknown option \"$1\"" "HINT: scripts/encrypt-cluster.sh --help" ;;
        *) if [[ -z $version ]]; then version=$1; else names+=("$1"); fi ;;
    esac
    shift
done
[[ $version =~ ^[0-9]+(\.[0-9]+)?$ && ${#names[@]} != 0 ]] ||
    die "which cluster?" "HINT: scripts/encrypt-cluster.sh 15 main; pg_lsclusters lists them"
place=$root/$version
clear=$place.clear
staging=$place.tdefs
backing=${backing:-/srv/tdefs/${names[0]}}
keystore=${keystore:-/etc/tdefs/${names[0]}.keystore}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 129' HUP
trap 'exit 143' TERM

check_host
check_state
check_clusters
make_volume
check_room
mount_staging
stop_clusters
copy
switch
compare
keep
start_clusters

say ""
say "Encrypted:   $backing, mounted at $place"
say "Keystore:    $keystore (copy it elsewhere: without it the data is lost)"
say "At boot:     docs/OPERATING.md has the units that mount it; until it is mounted, the clusters do not start"
say "In clear:    $clear, the old files; when you need them no more, wipe them:"
say "             find $clear -type f -exec shred -u {} + && rm -r $clear"
