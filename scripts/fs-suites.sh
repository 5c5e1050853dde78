#!/usr/bin/env bash
# Exercisers of file systems that others wrote, on an encrypted mount and on a plain directory beside it, compared.
#
#   scripts/fs-suites.sh [OPTION...]
#
#   --suite SUITE      only stress-ng, fio, benchmark or python (Python's own tests of files); may be repeated
#   --only EXERCISE    only this one; may be repeated
#   --seconds N        for each stressor of stress-ng, on each side (3)
#
# Run it as root on Debian; all of it takes half an hour. It does its own set-up, and leaves the table, and what was
# said where the reason of a difference is not known, in .cache/fs-suites. Whatever the end, no process, no mount and no
# other file stays behind. Exit code 0: what differs from the plain directory is known (docs/FILE-SYSTEM.md), the
# daemon has lived through all with no complaint, and the volume is sound; 1: not so; 2: it could not be run.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
packages=(bonnie++ dbench fsmark libpython3.11-testsuite postmark)

if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,14s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"
    exit 0
fi
((EUID == 0)) || {
    printf 'fs-suites: stressors change owners and make device nodes\nHINT: run it as root\n' >&2
    exit 2
}
bash "$repo/scripts/setup.sh" --dev || exit 2
if ! dpkg-query -W -f='${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -cx installed |
    grep -qx "${#packages[@]}"; then
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 \
        install "${packages[@]}" </dev/null >/dev/null || exit 2
fi
cd -- "$repo"
exec .venv/bin/python -m tests.suites.fs_suites "$@"
