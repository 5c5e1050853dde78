#!/usr/bin/env bash
# PostgreSQL's own suites, every test of them, against a server on an encrypted mount.
#
#   scripts/pg-regress.sh [OPTION...]    the regression suite (installcheck-parallel)
#
#   --isolation         the isolation suite instead
#   --all               both
#   --tap [SUITE...]    the TAP suites, or only these: subscription, recovery, pg_basebackup, pg_rewind,
#                       pg_verifybackup, pg_upgrade, pg_amcheck
#   --only FILE         only this file of the TAP suites, such as 001_rep_changes.pl; may be repeated
#   --jobs N            files of a TAP suite at a time (2)
#   --plain             on a plain directory, to see whether the suite fails there, too
#   --recommended       with the settings that the README recommends
#   --set NAME=VALUE    with a setting of the server; may be repeated
#   --version VERSION   the server's major version (15); with --tap also 18
#
# --tap runs a server that it builds from the distribution's source package (1.5 minutes, and 50 MB in .cache), with
# every cluster of each suite on a volume of its own. A release that this distribution does not have comes from the
# next one's sources. Logs of a suite that failed stay in .cache/pg-tap.
#
# Run it as root on Debian. It does its own set-up: the suites come from the source package that the installed server
# was built from, or else from the nearest of its major version that is to be had, and stay in .cache. Whatever the
# end, no process, no mount and no other file stays behind.
# Exit code 0: every test passed and the volume is sound; 1: not so; 2: it could not be run.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,24s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"
    exit 0
fi
bash "$repo/scripts/setup.sh" --dev || exit 2
cd -- "$repo"
exec .venv/bin/python -m tests.suites.pg_regress "$@"
