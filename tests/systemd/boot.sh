#!/usr/bin/env bash
# Becomes systemd, as process 1 of a machine that shares this one's kernel and files; what it writes is gone with it.
#
#   unshare --mount --uts --ipc --pid --cgroup --fork boot.sh DIRECTORY BACKING REPOSITORY PREPARE
#
# DIRECTORY is empty, and the place for the new root; BACKING is the directory to be /srv/tdefs; REPOSITORY stays
# where it is, read-only. PREPARE is a script that is run in the new root before.
set -euo pipefail
directory=$1 backing=$2 repository=$3 prepare=$4
root=$directory/root

mount --make-rprivate /
# at once, since a copy of a mount keeps others from unmounting it
awk '/ - fuse.tdefs / { print $5 }' /proc/self/mountinfo | while read -r point; do
    umount -l "$(printf '%b' "$point")" || true
done
mount -t tmpfs tmpfs "$directory"
mkdir "$root"
for part in '' etc home opt root usr var; do
    [[ -z $part ]] || mountpoint -q "/$part" || continue # on the root file system
    mkdir -p "$directory/upper/$part" "$directory/work/$part"
    upper=$(mktemp -d -p "$directory/upper/$part") work=$(mktemp -d -p "$directory/work/$part")
    chmod 755 "$upper"
    mount -t overlay overlay -o "lowerdir=/$part,upperdir=$upper,workdir=$work" "$root/$part"
done

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys" # nothing here may change the kernel's settings
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty fuse; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/srv/tdefs" "$root$repository"
mount --bind "$backing" "$root/srv/tdefs"
mount --bind "$repository" "$root$repository"
mount -o remount,bind,ro "$root$repository"

cd "$root"
mkdir run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bash "$prepare"
exec env -i container=tdefs-test "PATH=$PATH" /lib/systemd/systemd --system --unit=multi-user.target
