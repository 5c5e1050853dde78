#!/usr/bin/env bash
# Sets up Debian's cluster 15/main on the volume of tdefs@main, with the files of conf/.
set -euo pipefail
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
units=/etc/systemd/system

ln -sf "$repository/.venv/bin/tdefs" /usr/local/bin/tdefs

# of this machine's services none but what systemd itself cannot do without
rm -rf "${units:?}"/* /etc/postgresql/* /var/lib/postgresql/* /var/log/postgresql/* /run/postgresql
install -d -o postgres -g postgres /run/postgresql
for unit in systemd-remount-fs systemd-modules-load systemd-logind systemd-update-utmp systemd-timesyncd \
    systemd-user-sessions systemd-sysusers dbus; do
    ln -s /dev/null "$units/$unit.service"
done
for unit in dev-hugepages dev-mqueue sys-kernel-debug sys-kernel-tracing; do
    ln -s /dev/null "$units/$unit.mount"
done
ln -s /dev/null "$units/getty.target"
ln -s /dev/null "$units/dbus.socket"

# as docs/OPERATING.md tells; nothing is started before systemd is there
(
    cd "$repository"
    sed -n '/^## Under systemd/,/^|/s/^    //p' docs/OPERATING.md | sed 's/ --now//' | bash -euo pipefail
)
sed -i 's/watchdog: 60/watchdog: 3/' /etc/tdefs/tdefs.yaml

# shellcheck source=/dev/null
. /etc/tdefs/main.env
(umask 077 && head -c 24 /dev/urandom | base64 >/etc/tdefs/main.passphrase)
tdefs init "$BACKING" --keystore /etc/tdefs/main.keystore --passphrase-file /etc/tdefs/main.passphrase \
    --scrypt-cost 14 # it is unlocked again and again here
install -d "$MOUNTPOINT"
tdefs mount "$BACKING" "$MOUNTPOINT" --watchdog 0
chown postgres: "$MOUNTPOINT"
# idle, it does not notice that its files are gone
printf "autovacuum = off\nmax_logical_replication_workers = 0\nlisten_addresses = ''\n" >/etc/postgresql-common/createcluster.conf
pg_createcluster -d "$MOUNTPOINT/main" 15 main -- --data-checksums --no-sync
tdefs umount "$MOUNTPOINT"
rm -rf /var/log/tdefs
