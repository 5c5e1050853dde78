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
# The clusters in /var/lib/postgresql/VERSION are copied into a new volume that is mounted at /srv/postgresql/VERSION,
# compared, and then served from there: data_directory in postgresql.conf says so. The old files stay where they are.
# Until a cluster runs on the mount a failure puts everything back: the settings are as they were, and the old clusters
# run if they ran. After that nothing is put back, since clients may have written. You can always run the command
# again; it goes on with the volume that is there.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# The mount is not made below /var/lib/postgresql, which is the user postgres's: a user who may rename a directory
# above a mount point can lead root's mount anywhere.
root=/srv/postgresql
plain_root=/var/lib/postgresql
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

# Settings and old files lie in directories of the cluster's own user, who could put symbolic links there that lead
# elsewhere. So the owner of the directory does what is done in it.
as_owner_of() {
    local owner
    owner=$(stat -c %U -- "$1")
    shift
    runuser -u "$owner" -- "$@"
}

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

# Where a cluster's files lie.
data_directory() { pg_conftool -s "$version" "$1" show data_directory; }

settings() { printf '/etc/postgresql/%s/%s/postgresql.conf' "$version" "$1"; }

in_settings() { as_owner_of "/etc/postgresql/$version/$1" "${@:2}"; }

remove_copy_of_settings() { in_settings "$1" rm -f -- "$(settings "$1").$suffix"; }

# Ends here if there is nothing to do; puts back what a run has left that was killed.
check_state() {
    local type name
    for name in "${names[@]}"; do
        [[ -d /etc/postgresql/$version/$name ]] || die "there is no cluster $version $name" "HINT: pg_lsclusters"
    done
    type=$(mounted_type "$place")
    if [[ -e $backing/data/$marker ]]; then
        say "     an earlier run was interrupted; putting back what it has left"
        if [[ $type == fuse.tdefs ]]; then mounted=yes; fi
        put_back || die "it could not be put back" "HINT: see above"
        type=$(mounted_type "$place")
    elif [[ $type == fuse.tdefs ]]; then
        is_served "$place" || die "the mount at $place is dead" "HINT: tdefs mount $backing $place"
        for name in "${names[@]}"; do
            [[ $(data_directory "$name") == "$place/$name" ]] ||
                die "a volume is mounted at $place already, and the cluster $version $name is not in it" \
                    "HINT: stop it, copy its directory into $place, and set data_directory"
            remove_copy_of_settings "$name"
        done
        ok "the clusters are on the encrypted mount $place already"
        start_clusters
        exit 0
    fi
    [[ -z $type ]] || die "$place is a mount point, of a file system of type $type"
    for name in "${names[@]}"; do
        [[ $(data_directory "$name") != "$place/$name" ]] ||
            die "the clusters are encrypted already, but not mounted" "HINT: tdefs mount $backing $place"
    done
    [[ ! -L $place ]] || die "$place is a symbolic link"
    [[ ! -e $place ]] || is_empty "$place" || die "$place is not an empty directory" "HINT: move away what lies there"
}

check_clusters() {
    local name data link links=()
    for name in "${names[@]}"; do
        data=$(data_directory "$name")
        [[ $data == "$plain/$name" && ! -L $data && -s $data/PG_VERSION ]] ||
            die "the data directory of $version $name is $data, and not a directory $plain/$name" \
                "HINT: such a cluster has to be moved by hand: copy it into a mount, and set data_directory"
        for link in "$data/pg_wal" "$data"/pg_tblspc/*; do
            if [[ -L $link ]]; then links+=("$link -> $(readlink -- "$link")"); fi
        done
    done
    if ((${#links[@]})); then
        [[ $leave_links == yes ]] || die "these lie elsewhere, and would stay in the clear:" "${links[@]}" \
            "HINT: move them into the cluster, or say --leave-links and give each a volume of its own"
        say "     these stay where they are, in the clear:"
        printf '     %s\n' "${links[@]}"
    fi
}

check_room() {
    local needed free
    needed=$(cd -- "$plain" && du -skc -- "${names[@]}" | tail -n 1 | cut -f1)
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

mount_first() {
    local above
    for above in "$root" "$place"; do
        [[ -d $above ]] || { install -d -m 755 -- "$above" && made+=("$above"); }
    done
    mount_at "$place"
    mounted=yes
    # until all is copied: a user who may exchange a directory in there could lead what root copies anywhere
    take_mount
    if [[ ! -e $place/$marker ]]; then
        is_empty "$place" || die "the volume in $backing has files that this script has not put there" \
            "HINT: name another one with --backing and --keystore"
        : >"$place/$marker"
    fi
    # what an earlier run has copied
    find "$place" -mindepth 1 -maxdepth 1 ! -name "$marker" -exec rm -rf -- {} +
}

# The root of what is mounted, for root alone.
take_mount() { chown root: -- "$place" && chmod 700 -- "$place"; }

stop_clusters() {
    local name
    for name in "${names[@]}"; do
        if runs "$name"; then
            running+=("$name")
            pg_ctlcluster "$version" "$name" stop -m fast || die "the cluster $version $name could not be stopped"
        fi
        [[ ! -e $plain/$name/postmaster.pid ]] || ! kill -0 "$(head -n 1 "$plain/$name/postmaster.pid")" 2>/dev/null ||
            die "a server still runs in $plain/$name"
    done
}

copy() {
    local name
    is_served "$place" || die "$place is not mounted any more"
    for name in "${names[@]}"; do
        cp -a -- "$plain/$name" "$place/" || die "the clusters could not be copied"
    done
    sync -f -- "$place"
    ok "copied $(cd -- "$plain" && du -shc -- "${names[@]}" | tail -n 1 | cut -f1) into the volume"
}

# What is compared must come from the disk.
mount_again() {
    "$tdefs" umount "$place" || die "$place could not be unmounted"
    mounted=
    mount_at "$place"
    mounted=yes
    ok "mounted the volume at $place"
}

# What the mount gives back, from the disk, is what the old directory has: content, owners, modes, links.
compare() {
    local name
    local -a list=(find . \( -type d -printf '%p %y %m %U %G\n' -o -printf '%p %y %m %U %G %s %l\n' \))
    for name in "${names[@]}"; do
        diff <(cd -- "$plain/$name" && "${list[@]}" | sort) <(cd -- "$place/$name" && "${list[@]}" | sort) >&2 ||
            die "the copy of $name has other files than the original"
        diff -rq --no-dereference -- "$plain/$name" "$place/$name" >&2 ||
            die "the copy of $name is not the same as the original"
    done
    ok "compared the copy with the original: they are the same"
}

# From now on pg_ctlcluster and the others find the clusters on the mount.
switch() {
    local name
    for name in "${names[@]}"; do
        # a copy under the name of something that is there would be written into that
        in_settings "$name" cp -a --remove-destination -- "$(settings "$name")" "$(settings "$name").$suffix"
        in_settings "$name" pg_conftool "$version" "$name" set data_directory "$place/$name" || true
        [[ $(data_directory "$name") == "$place/$name" ]] || die "data_directory of $version $name could not be set"
    done
}

# From now on the volume has the clusters, and the old directory is a copy that becomes older.
keep() {
    chown --reference="$plain" -- "$place"
    chmod --reference="$plain" -- "$place"
    rm -f -- "$place/$marker"
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
            die "the cluster $version $name does not start on the mount" "HINT: its log says why"
        fi
        served=yes
        ok "the cluster $version $name runs on the mount"
    done
}

# Leaves the old clusters as they were found; says how, where that fails.
put_back() {
    local name failed=
    for name in "${names[@]}"; do
        # what the new place has of a server that was started there and failed
        if [[ -e $(settings "$name").$suffix ]]; then
            in_settings "$name" mv -f -- "$(settings "$name").$suffix" "$(settings "$name")" || failed=yes
        fi
    done
    if [[ $mounted == yes ]]; then
        if [[ $kept == yes ]]; then
            # whatever has its name by now
            take_mount && rm -rf -- "${place:?}/$marker" && : >"$place/$marker" || failed=yes
        fi
        if "$tdefs" umount "$place"; then mounted=; else failed=yes; fi
    fi
    if [[ -z $mounted ]]; then
        # the innermost first
        for name in "$place" "$root"; do
            if [[ " ${made[*]} " == *" $name "* ]]; then rmdir -- "$name" || failed=yes; fi
        done
        made=()
    fi
    if [[ -n $failed ]]; then
        printf '%s\n' "the old clusters are whole in $plain; to go back to them, stop the clusters, set data_directory" \
            "to it in /etc/postgresql/$version/NAME/postgresql.conf, and: tdefs umount $place" >&2
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
    elif [[ $status != 0 && -n ${plain-} ]]; then
        if [[ -n $mounted || ${#made[@]} != 0 || ${#running[@]} != 0 ]]; then
            put_back && printf 'the clusters are as they were, in the clear, in %s\n' "$plain" >&2
        fi
    fi
    exit "$status"
}

version='' backing='' keystore='' policy='' leave_links=''
names=() unlock=() running=() made=()
mounted='' kept='' served=''
# of a copy of postgresql.conf, until the cluster runs on the mount
suffix=before-tdefs
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
plain=$plain_root/$version
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
mount_first
stop_clusters
copy
mount_again
compare
switch
keep
start_clusters
for name in "${names[@]}"; do remove_copy_of_settings "$name"; done

say ""
say "Encrypted:   $backing, mounted at $place"
say "Keystore:    $keystore (copy it elsewhere: without it the data is lost)"
say "At boot:     docs/OPERATING.md has the units that mount it; until it is mounted, the clusters do not start"
say "Plain:       $plain, the old files; when you need them no more, wipe them:"
for name in "${names[@]}"; do
    # not as root, which would follow links that the cluster's user puts there meanwhile
    say "             runuser -u $(stat -c %U -- "$plain/$name") -- sh -c" \
        "'find $plain/$name -type f -exec shred -u {} + && rm -r $plain/$name'"
done
